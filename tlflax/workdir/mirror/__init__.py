"""Workdirs in object stores: a folder on this machine, and objects that follow it.

A training works in a folder of the cache and never waits for the store. A thread looks for what is
complete and uploads it, in an order that leaves a whole, earlier state whenever it is cut off:

1. What is no longer true goes: `result.json` of a run that is replaced.
2. `config.json`, `metrics.jsonl` and what else says nothing about a checkpoint.
3. Checkpoints, the oldest first: all files of a step, and its `_CHECKPOINT_METADATA` last. A step
   without this object does not exist for any reader.
4. The other files as they were before the checkpoints were looked for; `result.json` last.
5. What was deleted here is deleted there, a step's `_CHECKPOINT_METADATA` first.

One training at a time writes: see `tlflax.workdir.mirror.lease`. It also tells which copy is newer:
where the last training was this machine's, the folder is at least as new as the objects, and what
differs is uploaded; where it was another's, the objects replace the folder.
"""

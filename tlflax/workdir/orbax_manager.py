"""The only home of Orbax: a folder of steps, each with items that are trees of arrays or JSON.

It is imported when a folder of checkpoints is opened, as importing Orbax takes a quarter of a
second.
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from tlflax.utils.files import JsonObject

META = 'meta'
"""The item that is JSON."""

_LOOKS = 10  # at a folder in which a training deletes steps


class _Keep(policies.PreservationPolicy):
    """Keeps the steps in `steps`; Orbax deletes the others once a new one is saved."""

    def __init__(self) -> None:
        self.steps: set[int] = set()

    def should_preserve(
        self,
        checkpoints: Sequence[policies.PolicyCheckpointInfo],
        *,
        context: policies.PreservationContext,
    ) -> Sequence[bool]:
        """Returns whether each checkpoint is kept."""
        return [checkpoint.step in self.steps for checkpoint in checkpoints]


class Manager:
    """Saves and restores the steps of a folder, in the background where it saves.

    Args:
        folder: It exists.
        read_only: Nothing is saved or deleted.
    """

    def __init__(self, folder: Path, *, read_only: bool) -> None:
        self._keep = _Keep()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._keep,
            # Folders made in the background leave threads waiting for minutes when that fails.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            read_only=read_only,
            create=False,  # Orbax creates nothing where some of several processes take no part
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=0, active_processes={0}, barrier_sync_key_prefix='tlflax'
            ),
            cleanup_tmp_directories=not read_only,
        )
        self._orbax = _opened(folder, options)

    def save(self, step: int, arrays: Mapping[str, Any], meta: JsonObject, keep: set[int]) -> None:
        """Starts saving a step: trees of host arrays by name, and `META`.

        Args:
            step: Its number.
            arrays: The trees.
            meta: Plain values.
            keep: The steps that stay; the others are deleted once this one is saved.
        """
        items: dict[str, ocp.args.CheckpointArgs] = {
            name: ocp.args.StandardSave(tree) for name, tree in arrays.items()
        }
        items[META] = ocp.args.JsonSave(meta)
        self._keep.steps = keep
        self._orbax.save(step, args=ocp.args.Composite(**items), force=True)

    def restore(self, step: int, shapes: Mapping[str, Any]) -> Any:
        """Restores items of a step as host arrays, whatever number of devices saved them.

        Args:
            step: Its number.
            shapes: Of each item a tree of arrays like those saved, or of their shapes; of `META`
                anything.
        """
        items: dict[str, ocp.args.CheckpointArgs] = {
            name: ocp.args.JsonRestore() if name == META else ocp.args.StandardRestore(_host(tree))
            for name, tree in shapes.items()
        }
        return self._orbax.restore(step, args=ocp.args.Composite(**items))

    def delete(self, step: int) -> None:
        """Deletes a step."""
        self._orbax.delete(step)

    def reload(self) -> None:
        """Looks at the folder again, in which steps were moved."""
        self._orbax.reload()

    def wait(self) -> None:
        """Waits for the current save, and raises its error."""
        self._orbax.wait_until_finished()

    def close(self) -> None:
        """Ends the threads."""
        self._orbax.close()


def _opened(folder: Path, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
    """Opens a folder, again where a training deletes a step while Orbax looks at all of them."""
    for _ in range(_LOOKS - 1):
        with contextlib.suppress(FileNotFoundError):
            return ocp.CheckpointManager(folder, options=options)
    return ocp.CheckpointManager(folder, options=options)


def _host(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), tree)

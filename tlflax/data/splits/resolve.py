"""The ways in: whatever names a split, to the files of that split and what they hold."""

from pathlib import Path

from tlflax.data.ingest import object_store
from tlflax.data.inputs import manifest, pattern
from tlflax.data.inputs.demos import resolve_demo
from tlflax.data.inputs.folder import list_folder
from tlflax.data.inputs.listing import Listing
from tlflax.data.inputs.walk import Report, stop
from tlflax.utils import assets
from tlflax.utils.errors import UserError, did_you_mean

NAMES = ('train', 'val', 'test')
Known = dict[str, list[manifest.Row]]
"""Manifests that have been read, by their paths as written."""


def list_input(
    spec: str, *, key: str, known: Known | None = None, report: Report = stop
) -> Listing:
    """Lists the files of one split, and fetches or writes them first where needed.

    Args:
        spec: Class folders, a manifest, a pattern, 'tfds:...', 'py:...', 'demo:...' or a URL.
        key: The configuration key it came from: for messages, and for which split of a manifest is
            meant.
        known: What has been read already; is added to.
        report: Is given what is wrong with parts of it: a folder, or a line of a manifest. Raises
            it by default.

    Raises:
        UserError: There is no such thing, or it cannot be had.
    """
    path, _, part = spec.partition('#')
    if manifest.is_manifest(path) and not object_store.is_url(spec):
        known = {} if known is None else known
        if path not in known:
            known[path] = manifest.read_manifest(path, key=key, report=report)
        return manifest.list_manifest(path, known[path], split=_part(spec, key, known[path], part))
    if spec.startswith('demo:'):
        root = resolve_demo(spec, where=key)
        return list_folder(root, key=key, report=report)
    if spec.startswith('tfds:'):
        from tlflax.data.ingest import tfds  # TensorFlow is imported only where it is needed

        root = tfds.materialize(spec, assets.cache_folder())
        return list_folder(root, key=key, report=report)
    if spec.startswith('py:'):
        from tlflax.data.ingest import python_function

        root = python_function.materialize(spec, assets.cache_folder(), key=key)
        return list_folder(root, key=key, report=report)
    if object_store.is_url(spec):
        spec = object_store.fetch(spec, assets.cache_folder(), key=key)
    if pattern.is_pattern(spec):
        return pattern.list_pattern(spec, key=key, report=report)
    return list_folder(Path(spec).expanduser(), key=key, report=report)


def _part(spec: str, key: str, rows: list[manifest.Row], part: str) -> str | None:
    """Returns which split of a manifest is meant: what '#' says, or else the key's own."""
    there = manifest.splits(rows)
    wanted = part or key.rpartition('.')[2]
    if not there and not part:
        return None
    if wanted in there:
        return wanted
    if not part and wanted not in NAMES:
        named = ' or '.join(f'{spec}#{name}' for name in sorted(there))
        raise UserError(f'{spec} holds several splits', where=key, fix=f'say which: {named}')
    what = f'{spec} has no line whose split is {wanted!r}'
    raise UserError(what, where=key, fix=did_you_mean(wanted, sorted(there)))

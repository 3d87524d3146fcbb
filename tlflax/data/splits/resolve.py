"""Turns what names a split, in any of its forms, into a listing of files."""

from pathlib import Path

from tlflax.data.ingest import object_store
from tlflax.data.inputs import manifest, pattern
from tlflax.data.inputs.demos import resolve_demo
from tlflax.data.inputs.folder import list_folder
from tlflax.data.inputs.listing import Listing
from tlflax.data.inputs.walk import Report, stop
from tlflax.utils import assets
from tlflax.utils.errors import UserError, did_you_mean
from tlflax.utils.storage.connect import is_url

NAMES = ('train', 'val', 'test')
_MATERIALIZED = ('demo:', 'tfds:', 'py:')
Known = dict[str, list[manifest.Row]]
"""Manifests that have been read, by their paths as written."""


def list_input(
    spec: str, *, split: str = '', known: Known | None = None, report: Report = stop
) -> Listing:
    """Lists the files of one split, and fetches or writes them first where needed.

    Args:
        spec: Class folders, a manifest, a pattern, 'tfds:...', 'py:...', 'demo:...' or a URL.
        split: Which split of a manifest is meant where `spec` does not say so: 'train', 'val' or
            'test'; '' where that is not known.
        known: The manifests that have been read already; is added to.
        report: Takes what is wrong with parts of it: a folder, or a line of a manifest. Raises it
            by default.

    Raises:
        UserError: It does not exist, or it cannot be fetched.
    """
    path, _, part = spec.partition('#')
    if manifest.is_manifest(path) and not is_url(spec):
        known = {} if known is None else known
        if path not in known:
            known[path] = manifest.read_manifest(path, report=report)
        rows = known[path]
        return manifest.list_manifest(path, rows, split=_part(spec, rows, part, split))
    if spec.startswith(_MATERIALIZED):
        return list_folder(_materialize(spec), report=report)
    if is_url(spec):
        spec = object_store.fetch(spec, assets.cache_folder())
    if pattern.is_pattern(spec):
        return pattern.list_pattern(spec, report=report)
    return list_folder(spec, report=report)


def _materialize(spec: str) -> Path:
    """Returns the folder of class folders that one of `_MATERIALIZED` stands for."""
    if spec.startswith('demo:'):
        return resolve_demo(spec)
    if spec.startswith('tfds:'):
        from tlflax.data.ingest import tfds  # TensorFlow is imported only where it is needed

        return tfds.materialize(spec, assets.cache_folder())
    from tlflax.data.ingest import python_function

    return python_function.materialize(spec, assets.cache_folder())


def _part(spec: str, rows: list[manifest.Row], part: str, split: str) -> str | None:
    """Returns which split of a manifest is meant: what '#' says, or else `split`."""
    there = manifest.splits(rows)
    wanted = part or split
    if not there and not part:
        return None
    if wanted in there:
        return wanted
    if not wanted:
        named = ' or '.join(f'{spec}#{name}' for name in sorted(there))
        raise UserError(f'{spec} holds several splits', fix=f'say which: {named}')
    what = f'{spec} has no line whose split is {wanted!r}'
    raise UserError(what, fix=did_you_mean(wanted, sorted(there)))

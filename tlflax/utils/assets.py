"""Downloads that are verified by digest and kept in the user's cache folder.

An asset is downloaded into a temporary folder in the cache, verified, and renamed, so the cache
never holds a part of one. Every process checks its digest again, and at each use that no file has
changed since, so a file that was copied or changed by hand is used only if it is right. What is in
the cache needs no network.
"""

import contextlib
import dataclasses
import os
import shutil
import tempfile
import time
from pathlib import Path

from absl import logging

from tlflax.utils.download import Mirror, MirrorError, matches
from tlflax.utils.errors import UserError, as_user_error, located
from tlflax.utils.files import expand

_PARTIAL = '.partial-'
_DAY = 86400.0


@dataclasses.dataclass(frozen=True)
class Asset:
    """A file or folder to download once.

    Attributes:
        what: Its name in messages.
        license: The license of its contents, and whom to credit.
        key: The config key that asks for it.
        own: The command-line argument that takes a file or folder of the user's own instead.
        mirrors: Where it can be downloaded, in the order in which they are tried.
        parts: The subfolders of demo images that hold class folders.
    """

    what: str
    license: str
    key: str
    own: str
    mirrors: tuple[Mirror, ...]
    parts: tuple[str, ...] = ()


def cache_folder() -> Path:
    """Returns `TLFLAX_CACHE`, else `tlflax` in the user's cache folder; it may not exist yet."""
    if chosen := os.environ.get('TLFLAX_CACHE'):
        with located('TLFLAX_CACHE'):
            return Path(expand(chosen)).absolute()
    base = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    return Path(expand(base)).absolute() / 'tlflax'


def fetch(asset: Asset, *, cache: Path | None = None) -> Path:
    """Returns the file or folder of an asset, downloading it at its first use.

    Safe to call from several processes at once.

    Args:
        asset: The asset.
        cache: The cache folder, `cache_folder()` by default.

    Raises:
        UserError: No mirror serves it, or the cache folder cannot be used.
    """
    cache = cache or cache_folder()
    with as_user_error(
        'the cache folder cannot be used ({reason})',
        where=str(cache),
        fix='fix that, or set TLFLAX_CACHE to another folder',
        of=(OSError,),
    ):
        for mirror in asset.mirrors:
            target = cache / mirror.target
            if matches(target, mirror.digest):
                return target
            if target.exists():
                logging.warning('%s is incomplete or was changed', target)
        return _download(asset, cache)


def _download(asset: Asset, cache: Path) -> Path:
    cache.mkdir(parents=True, exist_ok=True)
    _remove_stale(cache)
    tried = []
    for mirror in asset.mirrors:
        logging.info(
            'Fetching %s (%.0f MB; %s) from %s, to be kept in %s',
            *(asset.what, mirror.size / 1e6, asset.license, mirror, cache),
        )
        with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=cache) as partial:
            try:
                made = mirror.obtain(Path(partial))
            except MirrorError as error:
                logging.warning('%s: %s', mirror, error)
                tried.append(f'{mirror} ({error})')
            else:
                return _publish(made, cache / mirror.target, mirror.digest)
    places = ' or '.join(dict.fromkeys(str(cache / mirror.target) for mirror in asset.mirrors))
    raise UserError(
        f'{asset.what} could not be fetched from {" or ".join(tried)}',
        where=asset.key,
        fix=f'give your own with {asset.own}, or copy {places} from a machine that has it, '
        'or set TLFLAX_CACHE to a folder that holds it',
    )


def _publish(made: Path, target: Path, digest: str) -> Path:
    """Moves a download to its place; a different folder that is there gets another name."""
    try:
        os.replace(made, target)
    except OSError:
        if not target.is_dir():
            raise
        if not matches(target, digest):  # else another process was faster
            aside = tempfile.mkdtemp(prefix=f'{target.name}.changed-', dir=target.parent)
            os.replace(target, aside)
            os.replace(made, target)
            logging.warning('the former contents of %s are now in %s', target, aside)
    return target


def _remove_stale(cache: Path) -> None:
    """Deletes the partial downloads of processes that were killed more than a day ago."""
    for partial in cache.glob(f'{_PARTIAL}*'):
        with contextlib.suppress(FileNotFoundError):  # another process may do the same
            if partial.stat().st_mtime < time.time() - _DAY:
                shutil.rmtree(partial, ignore_errors=True)

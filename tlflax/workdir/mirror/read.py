"""A workdir in an object store, for commands that do not train: what they need is fetched."""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tlflax.utils import files as file_tools
from tlflax.utils.errors import UserError
from tlflax.utils.files import write_json
from tlflax.utils.storage.connect import connect, explaining, is_url
from tlflax.utils.storage.download import Copy, Remote, listed
from tlflax.workdir.mirror import scan
from tlflax.workdir.mirror.places import LEASE, MARKER, Place, incomplete, is_part, root, step_of

_KINDS = ('.json', '.jsonl', '.csv')  # files that every command may ask for
_SPARED = ('opt_state',)  # parts of a step that only training needs
_LOOKS = 5  # at a folder in which a training deletes steps


def fetched(workdir: str | Path, *, needed: bool = True) -> Path:
    """Returns the folder of a workdir; where it is a URL, a copy without the arrays of checkpoints.

    `fetch_step` completes a checkpoint. What is there already is not fetched again.

    Args:
        workdir: A folder, which is returned unchanged, or the URL of one.
        needed: Whether it must have something in it.

    Raises:
        UserError: It cannot be read, or there is nothing.
    """
    if not (isinstance(workdir, str) and is_url(workdir)):
        return Path(workdir)
    place = Place(workdir)
    if _is_ours(place):
        return place.run
    if not _update(place, lambda path: False) and needed:
        raise UserError(
            'there is no run', where=place.url, fix='fix the URL, or train with this --workdir'
        )
    return place.read


def fetch_step(checkpoints: Path, step: int) -> None:
    """Completes a checkpoint in what `fetched` returned; does nothing elsewhere.

    Args:
        checkpoints: A folder of checkpoints.
        step: Which.

    Raises:
        UserError: It cannot be fetched.
    """
    parts = _below(checkpoints)
    if parts is None:
        return
    place, relative = parts
    wanted = f'{relative}{step}/'

    def chosen(path: str) -> bool:
        return path.startswith(wanted) and path[len(wanted) :].split('/')[0] not in _SPARED

    _update(place, chosen)


@contextlib.contextmanager
def added_to(workdir: str | Path) -> Iterator[Path]:
    """Yields what `fetched` returns, and uploads the files that the block writes there."""
    folder = fetched(workdir)
    before = scan.look(folder).files
    yield folder
    if not (isinstance(workdir, str) and is_url(workdir)):
        return
    store, top = connect(workdir.rstrip('/'))
    with explaining(
        workdir,
        refused='may not be written',
        failed='cannot be written',
        fix=f'check the network; the files are in {folder}',
    ):
        for path, stamp in scan.look(folder).files.items():
            if before.get(path) != stamp:
                store.put_file(str(folder / path), f'{top.rstrip("/")}/{path}')


def _is_ours(place: Place) -> bool:
    """Returns whether the last training was this machine's, whose folder is the newest copy."""
    try:
        noted = json.loads(place.session.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    store, top = connect(place.url)
    with explaining(place.url):
        try:
            lease = json.loads(store.cat_file(f'{top}/{LEASE}'))
        except FileNotFoundError:
            return False
        except (ValueError, RecursionError):
            return False
    if not (isinstance(noted, dict) and isinstance(lease, dict) and noted.get('ready')):
        return False
    return noted.get('session') == lease.get('session') and place.run.is_dir()


def _update(place: Place, chosen: Callable[[str], bool]) -> bool:
    """Fetches what every command needs and what is chosen; returns whether there is anything."""
    store, top = connect(place.url)
    with explaining(place.url, failed='cannot be fetched'), _locked(place):
        copy = Copy(place.read, place.index, place.folder, place.url)
        for look in range(_LOOKS):
            objects = _wanted(listed(store, top), place.read, chosen)
            try:
                copy.update(store, objects)
                break
            except FileNotFoundError:  # deleted since it was listed
                if look == _LOOKS - 1:
                    raise
    return bool(objects)


def _wanted(
    objects: Mapping[str, Remote], here: Path, chosen: Callable[[str], bool]
) -> dict[str, Remote]:
    """Returns the objects to have here: what is needed, chosen, or here already."""
    broken = incomplete(objects)
    return {
        path: item
        for path, item in objects.items()
        if is_part(path)
        and step_of(path) not in broken
        and (_is_basic(path) or chosen(path) or (here / path).is_file())
    }


def _is_basic(path: str) -> bool:
    step = step_of(path)
    if not step:
        return path.endswith(_KINDS)
    inside = path.removeprefix(step)
    return inside == MARKER or '/' not in inside or inside.startswith('meta/')


def _below(checkpoints: Path) -> tuple[Place, str] | None:
    """Returns the place of a folder that `fetched` returned, and the path in it, with a slash."""
    folder = checkpoints.resolve()
    if not folder.is_relative_to(root()):
        return None
    digest, kind, _, *rest = folder.relative_to(root()).parts
    if kind != 'read':
        return None
    origin = json.loads((root() / digest / 'origin.json').read_bytes())
    return Place(origin['url']), ''.join(f'{part}/' for part in rest)


@contextlib.contextmanager
def _locked(place: Place) -> Iterator[None]:
    """Lets one process at a time change the copy."""
    place.folder.mkdir(parents=True, exist_ok=True)
    write_json(place.folder / 'origin.json', {'url': place.url})
    path = place.folder / 'reading'
    descriptor = file_tools.lock(path, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)

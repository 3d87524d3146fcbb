"""A workdir that is written here and followed by an object store."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from tlflax.utils import interrupts
from tlflax.utils.errors import UserError, as_user_error
from tlflax.utils.files import write_json
from tlflax.utils.parallel import processes
from tlflax.utils.progress import progress
from tlflax.utils.storage.connect import Store, connect, explaining, is_url
from tlflax.utils.storage.download import fetch_all, listed
from tlflax.workdir.lock import locked
from tlflax.workdir.mirror.follow import Follower
from tlflax.workdir.mirror.lease import Lease
from tlflax.workdir.mirror.places import LEASE, Place, incomplete, is_part, step_of
from tlflax.workdir.mirror.upload import Sent, Uploads, delete


@contextlib.contextmanager
def mirrored(workdir: str) -> Iterator[str]:
    """Yields the folder to write for a workdir, which the objects follow where it is a URL.

    Ends when everything is uploaded. A run that was cut off anywhere continues from there, on this
    machine or another. Of several processes the primary one does all of this.

    Args:
        workdir: A folder, which is yielded unchanged, or the URL of one.

    Raises:
        UserError: The store cannot be used, another training runs in the workdir, or, at the end,
            something could not be uploaded, which is then on this machine still.
    """
    if not is_url(workdir):
        yield workdir
        return
    place = Place(workdir)
    if not processes.is_primary():  # it neither reads nor writes the workdir
        yield str(place.run)
        return
    store, top = connect(place.url)
    with _cache_errors(place):
        place.folder.mkdir(parents=True, exist_ok=True)
    lease = Lease(store, f'{top}/{LEASE}', place.url, interrupts.again)
    with _alone(place), _held(lease, place) as ours:
        with _explained(place.url):
            remove_incomplete(store, top)
            sent = _prepared(store, top, place, ours)
        write_json(place.session, {'session': lease.session, 'ready': True})
        follower = Follower(Uploads(store, top, place.run, sent, lease.check).round, place.url)
        try:
            yield str(place.run)
        except BaseException as error:
            _end(follower, lease, place, error)
            raise
        _end(follower, lease, place, None)


@contextlib.contextmanager
def _alone(place: Place) -> Iterator[None]:
    """Keeps other processes of this machine out."""
    try:
        holding = locked(place.folder)
        holding.__enter__()
    except UserError as error:
        error.where = place.url
        raise
    with contextlib.ExitStack() as stack:
        stack.push(holding)
        yield


@contextlib.contextmanager
def _held(lease: Lease, place: Place) -> Iterator[bool]:
    """Holds a lease; yields whether the folder on this machine is at least as new as the objects.

    That this process has ended is known here while it still looks alive to others: see `Lease`.
    """
    try:
        former = json.loads(place.session.read_bytes())
        mine, ready = str(former['session']), bool(former['ready'])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        mine, ready = '', False
    with _explained(place.url):
        was_ours = lease.acquire(mine)
    try:
        ours = was_ours and ready and place.run.is_dir()
        write_json(place.session, {'session': lease.session, 'ready': ours})
        yield ours
    finally:
        with contextlib.suppress(Exception):  # whoever comes next waits a little
            lease.release()


def _end(follower: Follower, lease: Lease, place: Place, under_way: BaseException | None) -> None:
    """Waits for the uploads, and says what went wrong with them.

    Raises:
        UserError: It did, and nothing else is being raised that says more.
    """
    failed = follower.finish()
    error = None
    if lease.lost:
        error = UserError(
            f'another training took over this workdir ({lease.lost}) while the store could not be '
            f'reached, so this one has stopped',
            where=place.url,
            fix=f'leave it to that one; what was computed here is in {place.run}',
        )
    elif failed is not None:
        error = UserError(
            f'{failed.what}, so not everything is there',
            fix=f'nothing is lost, it is in {place.run}: run the same command on this machine to '
            'upload it',
        )
    if error is None:
        return
    if under_way is None or (lease.lost and not isinstance(under_way, UserError)):
        raise error from under_way
    logging.warning('WARNING: %s', error)


def _prepared(store: Store, top: str, place: Place, ours: bool) -> Sent:
    """Makes the folder on this machine as new as the objects; returns what of it they hold."""
    if ours:
        return Sent.load(place.sent)
    objects = {path: item for path, item in listed(store, top).items() if is_part(path)}
    with (
        _cache_errors(place),
        tempfile.TemporaryDirectory(prefix='.partial-', dir=place.folder) as partial,
    ):
        files, parts = Path(partial, 'files'), Path(partial, 'parts')
        files.mkdir()
        parts.mkdir()
        with progress('fetching the workdir', len(objects)) as tick:
            for _ in fetch_all(store, objects, list(objects), files, parts):
                tick(1)
        if objects:
            size = sum(max(item.size, 0) for item in objects.values())
            logging.info('%s: fetched %d files (%.0f MB)', place.url, len(objects), size / 1e6)
        shutil.rmtree(place.run, ignore_errors=True)
        place.run.parent.mkdir(exist_ok=True)
        files.rename(place.run)
        sent = Sent.all_of(place.sent, place.run)
        sent.save()
        return sent


def remove_incomplete(store: Store, top: str) -> None:
    """Deletes the objects of steps that a process was killed while it uploaded or deleted."""
    objects = listed(store, top)
    broken = incomplete(objects)
    for path, item in objects.items():
        if step_of(path) in broken:
            delete(store, item.path)


def _explained(url: str) -> contextlib.AbstractContextManager[None]:
    return explaining(
        url,
        refused='may not be read and written',
        failed='cannot be used as a workdir',
        fix='check the network, then run the same command again',
    )


def _cache_errors(place: Place) -> contextlib.AbstractContextManager[None]:
    return as_user_error(
        'the cache folder cannot be used ({reason})',
        where=str(place.folder),
        fix='make room or fix that, or set TLFLAX_CACHE to another folder',
        of=(OSError,),
    )

"""Keeps files on this machine equal to objects, and fetches only what is new or has changed.

An object counts as changed when its size, or its entity tag or else its time of modification,
differs from what was noted when it was fetched.
"""

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from absl import logging

from tlflax.utils.files import atomic_write
from tlflax.utils.progress import progress
from tlflax.utils.storage.connect import Store

_TAGS = (
    *('ETag', 'etag', 'md5Hash', 'generation', 'crc32c', 'content_md5', 'mtime', 'LastModified'),
    *('last_modified', 'updated', 'modified', 'created'),
)
_THREADS = 16  # each waits for the network nearly all the time


class Remote(NamedTuple):
    """An object as the store describes it; size -1 and an empty tag where it does not say."""

    path: str
    size: int
    tag: str


def listed(store: Store, top: str) -> dict[str, Remote]:
    """Returns every object below a folder that a file can be named after, by relative path."""
    found = store.find(top, detail=True)
    start, objects = top.rstrip('/') + '/', {}
    for path, info in found.items():
        relative = path.removeprefix(start)
        if info.get('type') != 'directory' and is_name(relative):
            objects[relative] = remote(path, info)
    return objects


def is_name(relative: str) -> bool:
    """Tells whether the relative path of an object can be that of a file in a folder."""
    parts = relative.split('/')
    return not ({'', '.', '..'} & set(parts)) and '\0' not in relative


def remote(path: str, info: Mapping[str, object]) -> Remote:
    """Returns what a store says of an object."""
    size = info.get('size')
    tag = next((str(info[name]) for name in _TAGS if info.get(name)), '')
    return Remote(path, -1 if size is None else int(str(size)), tag)


@dataclasses.dataclass(frozen=True)
class Copy:
    """A folder that is kept equal to objects.

    Attributes:
        files: The folder.
        index: A file beside it: what was noted of the objects that were fetched.
        cache: A folder of the same disk, for unfinished downloads.
        name: The URL, for the log.
        what: What the objects are, for the bar of progress.
    """

    files: Path
    index: Path
    cache: Path
    name: str
    what: str = 'files'

    def update(self, store: Store, objects: Mapping[str, Remote]) -> None:
        """Makes the folder hold these objects, by relative path, and no others."""
        noted = _load(self.index)
        todo = [
            path
            for path, item in objects.items()
            if not _is_here(self.files / path, item, noted, path)
        ]
        gone = self._remove_others(objects)
        size = sum(max(objects[path].size, 0) for path in todo)
        logging.info(
            '%s: %d objects, %d to fetch (%.0f MB), %d gone',
            *(self.name, len(objects), len(todo), size / 1e6, gone),
        )
        self.files.mkdir(parents=True, exist_ok=True)
        # Beside unfinished downloads: what a killed process leaves is swept with theirs.
        with (
            tempfile.TemporaryDirectory(prefix='.partial-', dir=self.cache) as partial,
            open(self.index, 'a', encoding='utf-8') as notes,
            progress(f'fetching {self.what}', len(todo)) as tick,
        ):
            for path in fetch_all(store, objects, todo, self.files, Path(partial)):
                item = objects[path]
                notes.write(json.dumps([path, item.size, item.tag]) + '\n')
                notes.flush()
                tick(1)
        if todo or gone:
            lines = [json.dumps([path, item.size, item.tag]) for path, item in objects.items()]
            atomic_write(self.index, '\n'.join(lines) + '\n')

    def _remove_others(self, objects: Mapping[str, Remote]) -> int:
        """Deletes files without an object, and folders without a file; returns how many files."""
        kept = [path for path in self.files.rglob('*') if not path.is_dir()]
        gone = [path for path in kept if path.relative_to(self.files).as_posix() not in objects]
        for old in gone:
            old.unlink(missing_ok=True)
        for folder in sorted(self.files.rglob('*'), reverse=True):  # the deepest first
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        return len(gone)


def fetch_all(
    store: Store, objects: Mapping[str, Remote], todo: list[str], files: Path, partial: Path
) -> Iterator[str]:
    """Fetches objects, several at once, each whole or not at all; yields each as it is done.

    Args:
        store: Where they are.
        objects: All of them, by relative path.
        todo: The relative paths of those to fetch.
        files: The folder to put them in.
        partial: An empty folder of the same disk.
    """
    failures: list[Exception] = []

    def fetch_one(number: int) -> str | None:
        path, part = todo[number], partial / str(number)
        item = objects[path]
        try:
            if failures:
                return None
            store.get_file(item.path, str(part))
            if item.size >= 0 and part.stat().st_size != item.size:
                raise OSError(f'{item.path} came with {part.stat().st_size} of {item.size} bytes')
            target = files / path
            target.parent.mkdir(parents=True, exist_ok=True)
            part.replace(target)
            return path
        except Exception as error:  # raised once the others have finished, whose work is kept
            failures.append(error)
            return None

    with ThreadPoolExecutor(_THREADS) as pool:
        tasks = [pool.submit(fetch_one, number) for number in range(len(todo))]
        try:
            for task in as_completed(tasks):
                if (path := task.result()) is not None:
                    yield path
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    if failures:
        raise failures[0]


def _is_here(target: Path, item: Remote, noted: dict[str, tuple[int, str]], relative: str) -> bool:
    """Whether an object was fetched and has not changed since, as far as the store tells."""
    if noted.get(relative) != (item.size, item.tag) or not (item.tag or item.size >= 0):
        return False
    return target.is_file() and (item.size < 0 or target.stat().st_size == item.size)


def _load(index: Path) -> dict[str, tuple[int, str]]:
    """Returns the size and tag noted for each path; ignores a line that a killed process cut."""
    noted: dict[str, tuple[int, str]] = {}
    with (
        contextlib.suppress(FileNotFoundError),
        open(index, encoding='utf-8', errors='replace') as file,
    ):
        for line in file:
            with contextlib.suppress(ValueError, TypeError):
                path, size, tag = json.loads(line)
                noted[path] = (size, tag)
    return noted

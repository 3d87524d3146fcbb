"""Folders in object stores, mirrored into the cache: `gs://`, `s3://` and others that fsspec knows.

Only objects that are new or have changed are fetched, several at once, each whole or not at all;
what was deleted there is deleted here. An object counts as changed when its size, or its entity
tag or else its time of modification, differs from what was noted when it was fetched.
"""

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple, Protocol

from absl import logging

from tlflax.data.images.scan import IMAGE_EXTENSIONS
from tlflax.data.inputs.pattern import is_pattern, split_base
from tlflax.data.inputs.walk import IGNORED_FOLDERS, kind_of_stray
from tlflax.utils.errors import UserError, as_user_error, did_you_mean, printable, reason
from tlflax.utils.files import atomic_write
from tlflax.utils.progress import progress

_URL = re.compile(r'([a-z][a-z0-9+.-]*)://')
_TAGS = (
    *('ETag', 'etag', 'md5Hash', 'generation', 'crc32c', 'content_md5', 'mtime', 'LastModified'),
    *('last_modified', 'updated', 'modified', 'created'),
)
_THREADS = 16  # each waits for the network nearly all the time
_NO_ACCESS = (
    *('NoCredentialsError', 'PartialCredentialsError', 'DefaultCredentialsError'),
    *('ClientAuthenticationError', 'TokenRetrievalError', 'RefreshError'),
)


class Store(Protocol):
    """The part of fsspec's `AbstractFileSystem` that is used here."""

    def find(self, path: str, *, detail: bool) -> dict[str, Mapping[str, object]]:
        """Describes every object below a folder, by path."""

    def get_file(self, rpath: str, lpath: str) -> object:
        """Fetches an object to a file."""


class Remote(NamedTuple):
    """An object as the store describes it; size -1 and an empty tag where it does not say."""

    path: str
    size: int
    tag: str


def is_url(spec: str) -> bool:
    """Tells whether a specification is a URL with a scheme that is not one of ours."""
    return _URL.match(spec) is not None


def fetch(url: str, cache_dir: Path) -> str:
    """Mirrors a folder and returns where it is now: the folder, or a pattern in it.

    Objects with another ending than an image's are left where they are.

    Args:
        url: A folder of class folders, or a pattern; see `tlflax.data.inputs.pattern`.
        cache_dir: Where to write, in a folder `mirrors`.

    Raises:
        UserError: The package for such URLs is missing, the bucket or folder does not exist or may
            not be read, or the mirror cannot be written.
    """
    base, rest = split_base(url) if is_pattern(url) else (url.rstrip('/'), '')
    store, top = _connect(base)
    with _explaining(base):
        found = store.find(top, detail=True)
    ignored: Counter[str] = Counter()
    remote = _select(found, top, ignored)
    if not remote:
        raise UserError(
            f'{base} holds no image, or does not exist'
            + (f' ({sum(ignored.values())} objects have other endings)' if ignored else ''),
            fix='fix the URL; images end in .jpg, .png, .gif, .bmp, .webp, .tif or nothing',
        )
    name = re.sub(r'[^A-Za-z0-9_.-]+', '_', base)[-40:]
    place = cache_dir / 'mirrors' / f'{name}-{hashlib.sha256(base.encode()).hexdigest()[:12]}'
    with _explaining(base):
        _update(store, remote, place, cache_dir, base)
    return str(place / 'files' / rest)


def _connect(base: str) -> tuple[Store, str]:
    """Returns the file system of a URL and the path in it."""
    scheme = base.partition('://')[0]
    install = f"pip install 'tlflax[cloud]' has those for s3:// and gs:// ({scheme}:// may need "
    install += 'another)'
    try:
        import fsspec
        from fsspec.registry import known_implementations
    except ImportError:
        raise UserError(f'{base} needs the package fsspec', fix=install) from None
    try:
        fsspec.get_filesystem_class(scheme)
    except ValueError:
        hint = did_you_mean(scheme, known_implementations)
        hint = hint if hint.startswith('did') else 'give gs://, s3:// or another that fsspec knows'
        raise UserError(f'{scheme}:// is not known', fix=hint) from None
    except ImportError as error:
        what = f'{base} needs a package that is not installed ({error})'
        raise UserError(what, fix=install) from error
    with _explaining(base):
        return fsspec.core.url_to_fs(base, use_listings_cache=False)


@contextlib.contextmanager
def _explaining(base: str) -> Iterator[None]:
    """Turns what stores raise, each in types of its own, into a sentence."""
    missing = f'there is no such bucket or folder: {base}'
    try:
        with as_user_error(missing, fix='fix the URL', of=(FileNotFoundError,)):
            yield
    except UserError:
        raise
    except Exception as error:
        said = printable(f'{type(error).__name__}: {reason(error)}')
        if isinstance(error, PermissionError) or type(error).__name__ in _NO_ACCESS:
            raise UserError(
                f'{base} may not be read ({said})',
                fix='give the credentials that its own tools use (AWS_PROFILE or '
                'AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; GOOGLE_APPLICATION_CREDENTIALS)',
            ) from error
        raise UserError(
            f'{base} cannot be mirrored ({said})',
            fix='check the network and the room in the cache folder; what was fetched is kept',
        ) from error


def _select(
    found: Mapping[str, Mapping[str, object]], top: str, ignored: Counter[str]
) -> dict[str, Remote]:
    """Returns the objects to mirror, by relative path, and counts the others."""
    start, chosen = top.rstrip('/') + '/', {}
    for path, info in found.items():
        relative = path.removeprefix(start)
        parts = relative.split('/')
        if info.get('type') == 'directory' or not parts[-1]:
            continue
        extension = os.path.splitext(parts[-1])[1].lower()
        if any(part.startswith('.') or part in IGNORED_FOLDERS for part in parts):
            ignored['hidden'] += 1
        elif '' in parts or '\0' in relative:
            ignored['names that no folder can hold'] += 1
        elif extension and extension not in IMAGE_EXTENSIONS:
            ignored[kind_of_stray(relative)] += 1
        else:
            size = info.get('size')
            tag = next((str(info[name]) for name in _TAGS if info.get(name)), '')
            chosen[relative] = Remote(path, -1 if size is None else int(str(size)), tag)
    return chosen


def _update(
    store: Store, remote: dict[str, Remote], place: Path, cache_dir: Path, base: str
) -> None:
    """Makes `place`/files hold these objects and no others."""
    files, index = place / 'files', place / 'index.jsonl'
    noted = _load(index)
    todo = [path for path, item in remote.items() if not _is_here(files / path, item, noted, path)]
    kept = [path for path in files.rglob('*') if not path.is_dir()]
    gone = [path for path in kept if path.relative_to(files).as_posix() not in remote]
    for old in gone:
        old.unlink(missing_ok=True)
    for folder in sorted(files.rglob('*'), reverse=True):  # the deepest first
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    size = sum(max(remote[path].size, 0) for path in todo)
    logging.info(
        '%s: %d objects, %d to fetch (%.0f MB), %d gone', base, len(remote), len(todo), size / 1e6,
        len(gone),
    )  # fmt: skip
    files.mkdir(parents=True, exist_ok=True)
    # Beside unfinished downloads: what a killed process leaves is swept with theirs.
    with (
        tempfile.TemporaryDirectory(prefix='.partial-', dir=cache_dir) as partial,
        open(index, 'a', encoding='utf-8') as notes,
        progress('fetching images', len(todo)) as tick,
    ):
        for path in _fetch_all(store, remote, todo, files, Path(partial)):
            item = remote[path]
            notes.write(json.dumps([path, item.size, item.tag]) + '\n')
            notes.flush()
            tick(1)
    if todo or gone:
        _compact(index, remote)


def _fetch_all(
    store: Store, remote: dict[str, Remote], todo: list[str], files: Path, partial: Path
) -> Iterator[str]:
    """Fetches objects, several at once, and yields each as it is done."""
    failures: list[Exception] = []

    def fetch_one(number: int) -> str | None:
        path, part = todo[number], partial / str(number)
        item = remote[path]
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


def _compact(index: Path, remote: dict[str, Remote]) -> None:
    """Writes the notes again, without what is gone."""
    lines = [json.dumps([path, item.size, item.tag]) for path, item in remote.items()]
    atomic_write(index, '\n'.join(lines) + '\n')

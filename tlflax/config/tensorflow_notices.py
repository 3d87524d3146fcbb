"""Keeps TensorFlow's start-up notices out of what a command prints."""

import contextlib
import importlib.abc
import importlib.machinery
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from types import ModuleType

_NOTICES = b'oneDNN custom operations', b'absl::InitializeLog'  # of no use to the user
_STDERR = 2


def hold_back() -> None:
    """Lets TensorFlow, if this process ever imports it, load without printing its notices.

    No log level silences the notice that it uses oneDNN. For commands: while TensorFlow loads, file
    descriptor 2 is another file.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds TensorFlow, to be loaded by `_Loader`."""

    def find_spec(
        self, fullname: str, path: Iterable[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Returns TensorFlow's specification; None for every other module."""
        if fullname != 'tensorflow':
            return None
        spec = importlib.machinery.PathFinder.find_spec(
            fullname, None if path is None else list(path), target
        )
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(fullname, spec.origin)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        """Runs the module without its notices."""
        with without_notices():
            super().exec_module(module)


@contextlib.contextmanager
def without_notices() -> Iterator[None]:
    """Holds back what is written to file descriptor 2; all but the notices follows at the end."""
    try:
        stderr = os.dup(_STDERR)
    except OSError:  # it is closed
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), _STDERR)
        try:
            yield
        finally:
            os.dup2(stderr, _STDERR)
            os.close(stderr)
            held.seek(0)
            for line in held:
                if not any(notice in line for notice in _NOTICES):
                    os.write(_STDERR, line)

"""Reads a weights file in a process of its own, which may hang, crash or fill its memory.

HDF5 is parsed by a C library that is not made for hostile files. The child imports neither JAX nor
TensorFlow, works under limits of time and memory, and writes what it found to a pipe: a line of
JSON that describes the tensors or says what is wrong, then their bytes.
"""

import contextlib
import io
import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from tlflax.models.weights import archives
from tlflax.utils.errors import reason

Found = tuple[dict[str, np.ndarray], dict[str, str]]
Reader = Callable[[Path, int], Found]

_SECONDS, _BYTES_PER_SECOND = 60.0, 1 << 20  # a disk far away may be that slow
_HEADER_BYTES = 1 << 26
_COPIES = 3  # of all contents, that are in memory at a time: the file, what is unpacked, an array


def read(reader: Reader, path: Path, most: int) -> Found:
    """Calls a reader of `tlflax.models.weights.hdf5` in a new process.

    Args:
        reader: The function.
        path: The file.
        most: The most bytes that it may hold.

    Raises:
        ValueError: What the reader raised, or that it takes too long or too much memory or crashes.
    """
    size = os.path.getsize(path)
    most, seconds = archives.most_bytes(size, most), _SECONDS + size / _BYTES_PER_SECOND
    process = _start(reader.__name__, path, most, seconds)
    late = threading.Event()

    def end() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        return _receive(cast(io.BufferedReader, process.stdout), most)
    except EOFError:
        if late.is_set():
            raise ValueError(f'it takes longer than {seconds:.0f} s') from None
        code = process.wait()
        ended = signal.Signals(-code).name if code < 0 else f'exit code {code}'
        raise ValueError(f'the process that read it ended ({ended})') from None
    finally:
        timer.cancel()
        process.kill()
        process.communicate()
        timer.join()


def _start(reader: str, path: Path, most: int, seconds: float) -> 'subprocess.Popen[bytes]':
    libraries = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    code = f'from {__name__} import work; work()'
    command = [sys.executable, '-P', '-c', code, reader, str(path)]
    return subprocess.Popen(
        [*command, str(most), str(math.ceil(seconds))],
        # One thread: each takes address space, which is limited.
        env=os.environ | {'PYTHONPATH': libraries, 'OPENBLAS_NUM_THREADS': '1'},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def _receive(pipe: io.BufferedReader, most: int) -> Found:
    """Reads what a child sends, and no more than `most` bytes of it."""
    try:
        header: Any = json.loads(pipe.readline(_HEADER_BYTES))
    except ValueError:  # nothing, or a part
        raise EOFError from None
    if fault := header.get('fault'):
        raise ValueError(fault)
    kinds = {name: (np.dtype(kind), tuple(shape)) for name, kind, shape in header['tensors']}
    archives.check_announced(sum(k.itemsize * math.prod(s) for k, s in kinds.values()), most)
    tensors = {}
    for name, (kind, shape) in kinds.items():
        tensors[name] = np.empty(shape, kind)
        content = tensors[name].reshape(-1).view(np.uint8)
        if pipe.readinto(content.data) != content.size:
            raise EOFError
    return tensors, header['metadata']


# The child


def _limit(most: int, seconds: int) -> None:
    """Limits this process to memory for some contents, to time, and to writing no file."""
    with contextlib.suppress(OSError):  # only Linux has it, and only Linux limits address space
        pages = int(Path('/proc/self/statm').read_text().split()[0])
        memory = pages * resource.getpagesize() + _COPIES * most
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    for nothing in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(nothing, (0, 0))


def work() -> None:
    """Reads the file that the arguments of this process name, and sends what it holds."""
    from tlflax.models.weights import hdf5

    reader, path, most, seconds = sys.argv[1:]
    pipe = sys.stdout.buffer
    _limit(int(most), int(seconds))
    tensors: dict[str, np.ndarray] = {}
    try:
        tensors, metadata = getattr(hdf5, reader)(Path(path), int(most))
        kinds = [(name, tensor.dtype.str, tensor.shape) for name, tensor in tensors.items()]
        header: dict[str, Any] = {'tensors': kinds, 'metadata': metadata}
    except MemoryError:
        header = {'fault': 'it takes more memory than a file of its size should'}
    except Exception as error:
        header = {'fault': reason(error)}
    pipe.write(json.dumps(header).encode() + b'\n')
    for tensor in tensors.values():
        pipe.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    pipe.flush()

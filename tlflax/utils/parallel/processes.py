"""Several processes that train together, and what they tell each other outside of programs.

All run the same code in the same order. Process 0, the primary one, alone reads and writes the
workdir; `on_primary` gives its results to the others. Small values travel through the key-value
store of JAX's coordination service, large ones through the devices. With one process all of this
costs nothing.
"""

import contextlib
import functools
import itertools
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar

import numpy as np

from tlflax.utils import interrupts
from tlflax.utils.errors import UserError, shown
from tlflax.utils.parallel.connect import connect
from tlflax.utils.parallel.launch import Launch
from tlflax.utils.parallel.watch import Client, Watch

T = TypeVar('T')
P = ParamSpec('P')

_SMALL = 2**16  # bytes of a message that goes through the key-value store
_BLOCK = 2**26  # bytes that go through the devices at once
_ASK = 60_000  # milliseconds of one question to the key-value store, which is repeated


class _Group:
    """The processes that run together, as one of them sees them."""

    def __init__(self, client: Client, count: int, index: int) -> None:
        self.client, self.count, self.index = client, count, index
        self._calls, self.inside = itertools.count(), False

    def send(self, value: object, call: int) -> None:
        """Gives a value of the primary process to all others."""
        data = pickle.dumps(value)
        small = len(data) <= _SMALL
        self.client.key_value_set_bytes(
            f'tlflax-call/{call}', b's' + data if small else b'l%d' % len(data)
        )
        if not small:
            _broadcast(np.frombuffer(data, np.uint8))

    def receive(self, call: int) -> Any:
        """Returns what `send` gives."""
        data = self._get(f'tlflax-call/{call}')
        if data[:1] == b'l':
            return pickle.loads(_broadcast(np.zeros(int(data[1:]), np.uint8)).tobytes())
        return pickle.loads(data[1:])

    def gather(self, value: object) -> list[Any]:
        """Returns the small values of all processes, by their numbers."""
        call = next(self._calls)
        self.client.key_value_set_bytes(f'tlflax-all/{call}/{self.index}', pickle.dumps(value))
        found = [self._get(f'tlflax-all/{call}/{number}') for number in range(self.count)]
        return [pickle.loads(data) for data in found]

    def _get(self, key: str) -> bytes:
        while True:  # whoever is to answer may work for hours; `Watch` ends this if it is lost
            try:
                return self.client.blocking_key_value_get_bytes(key, _ASK)
            except Exception as error:
                if 'DEADLINE_EXCEEDED' not in str(error):
                    raise

    def next_call(self) -> int:
        """Returns the number of the next exchange, which is the same in all processes."""
        return next(self._calls)


_group: _Group | None = None


def count() -> int:
    """Returns the number of processes that run together; within `on_primary`, 1."""
    return 1 if _group is None or _group.inside else _group.count


def index() -> int:
    """Returns the number of this process, from 0."""
    return 0 if _group is None or _group.inside else _group.index


def is_primary() -> bool:
    """Returns whether this is the process that reads and writes the workdir."""
    return index() == 0


def on_primary(function: Callable[P, T]) -> Callable[P, T]:
    """Makes a function that runs in the primary process alone, and returns its result in all.

    Meanwhile that process is alone, with its own devices. The result can be pickled; a `UserError`
    is raised in all processes.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        group = _group
        if group is None or group.inside:
            return function(*args, **kwargs)
        number = group.next_call()
        if group.index:
            failed, value = group.receive(number)
            if failed:
                raise UserError(value[0], where=value[1], fix=value[2])
            result: T = value
            return result
        group.inside = True
        try:
            result = function(*args, **kwargs)
        except UserError as error:
            group.send((True, (error.what, error.where, error.fix)), number)
            raise
        finally:
            group.inside = False
        group.send((False, result), number)
        return result

    return call


@on_primary
def of_primary(value: T) -> T:
    """Returns the value that the primary process has; arrays are host arrays."""
    return value


def gather(value: T) -> list[T]:
    """Returns a small value of each process, by their numbers; waits for all of them."""
    return [value] if _group is None or _group.inside else _group.gather(value)


def require_known() -> None:
    """Checks that JAX does not run in other processes too, of which tlflax was not told.

    Raises:
        UserError: It does.
    """
    import jax

    if _group is None and jax.process_count() > 1:
        raise UserError(
            f'{jax.process_count()} processes run together, and tlflax was not told',
            where='jax.distributed',
            fix='train by the command, or within tlflax.utils.parallel.processes.started',
        )


def require_same(facts: Mapping[str, object], fix: str) -> None:
    """Checks that all processes are at the same work.

    Args:
        facts: What must be the same in all, by what a message calls it.
        fix: What to do about it.

    Raises:
        UserError: Something differs; raised in every process.
    """
    found = gather(dict(facts))
    for number, other in enumerate(found):
        for name, value in found[0].items():
            if other.get(name) != value:
                raise UserError(
                    f'{name} is {shown(other.get(name))} in process {number}, and {shown(value)} '
                    'in process 0',
                    fix=fix,
                )


def gather_arrays(value: np.ndarray) -> np.ndarray:
    """Returns the arrays of all processes, of one shape and type, stacked; through the devices."""
    if _group is None or _group.inside:
        return value[None]
    from jax.experimental import multihost_utils

    # As bytes: JAX would turn numbers of 64 bits into those of 32.
    plain = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
    found = np.asarray(multihost_utils.process_allgather(plain))
    return np.frombuffer(found.tobytes(), value.dtype).reshape(_group.count, *value.shape)


def _broadcast(data: np.ndarray) -> np.ndarray:
    """Returns the bytes of the primary process, sent through the devices block by block."""
    from jax.experimental import multihost_utils

    blocks = [data[at : at + _BLOCK] for at in range(0, len(data), _BLOCK)]
    found = [multihost_utils.broadcast_one_to_all(block) for block in blocks]
    return np.concatenate([np.asarray(block, np.uint8) for block in found])


@contextlib.contextmanager
def started(launch: Launch | None) -> Iterator[None]:
    """Connects this process with the others of its run, for the time of the block.

    When the block raises in one process, all end: with its sentence and exit code, and the others
    within a few seconds.

    Args:
        launch: The place of this process; None: it is alone, and nothing happens.

    Raises:
        UserError: The others cannot be reached.
    """
    global _group
    client = None if launch is None else connect(launch)
    if client is None:
        yield
        return
    import jax

    _group = _Group(client, jax.process_count(), jax.process_index())
    watch = Watch(client, _group.count, _group.index)
    agreed = None
    try:
        devices = {'the number of devices': jax.local_device_count()}
        require_same(devices, 'give each process as many')
        try:
            yield
        except interrupts.Agreed as interrupt:
            agreed = interrupt
        _group.gather('end')  # whoever leaves first would seem to be lost
    except BaseException as error:
        watch.fail(error)
        raise
    watch.stop()
    _group = None
    jax.distributed.shutdown()
    if agreed is not None:
        raise agreed

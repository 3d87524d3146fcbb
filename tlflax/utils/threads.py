"""One compiled program that several threads run at the same time."""

import weakref
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import jax

from tlflax.utils import cpu

Result = TypeVar('Result')
Operands = tuple[object, ...]


class ThreadedProgram(Generic[Result]):
    """Calls a jitted function many times, as many at a time as there are cores.

    The function is compiled once for each combination of shapes, and before the threads run it,
    which would each compile it. The threads end when the object is no longer referenced.

    Args:
        function: Takes and returns trees of arrays.
        name: Prefix of the threads' names.
    """

    def __init__(self, function: Callable[..., Result], *, name: str) -> None:
        self._function = jax.jit(function)
        self._compiled: dict[Hashable, Callable[..., Result] | Future[Callable[..., Result]]] = {}
        self._pool = ThreadPoolExecutor(cpu.cores(), thread_name_prefix=name)
        # Without waiting: the last reference may be dropped on one of these threads.
        weakref.finalize(self, self._pool.shutdown, wait=False)

    def map(self, calls: Sequence[Operands]) -> list[Result]:
        """Returns the results of `function(*operands)` for each of `calls`, in order.

        Waits until all results are computed. An exception of a call is raised here.
        """
        programs = [self._program(operands) for operands in calls]
        if len(calls) == 1:
            return [_run(programs[0], calls[0])]
        return list(self._pool.map(_run, programs, calls))

    def begin_to_compile(self, operands: Operands) -> None:
        """Lets a thread compile the function for operands like these, which may be shapes alone."""
        self._compiled[_key(operands)] = self._pool.submit(_compile, self._function, operands)

    def _program(self, operands: Operands) -> Callable[..., Result]:
        key = _key(operands)
        if key not in self._compiled:
            self._compiled[key] = _compile(self._function, operands)
        found = self._compiled[key]
        return found.result() if isinstance(found, Future) else found


def _key(operands: Operands) -> Hashable:
    leaves, tree = jax.tree.flatten(operands)
    return tree, *((leaf.shape, leaf.dtype) for leaf in leaves)


def _compile(function: jax.stages.Wrapped, operands: Operands) -> Callable[..., Result]:
    return function.lower(*operands).compile()


def _run(program: Callable[..., Result], operands: Operands) -> Result:
    return jax.block_until_ready(program(*operands))

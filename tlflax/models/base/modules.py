"""Flax NNX modules as pure functions of nested dicts.

A module is split once into its static half and its variables: parameters, which an optimizer
trains, and state, which changes in training without a gradient (the statistics of BatchNorm).
Both are nested dicts with names as keys, so that labels, checkpoints and messages address a
variable by one path, such as `head/norm/mean`.
"""

import contextlib
import contextvars
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool

from tlflax.utils.trees import Tree, flatten, merge, unflatten

Builder = Callable[[nnx.Rngs], nnx.Module]
Path = tuple[Any, ...]


class Variables(NamedTuple):
    """The arrays of a model.

    Attributes:
        params: What an optimizer may train.
        state: What changes in training without a gradient; {} for most models.
    """

    params: Tree
    state: Tree

    def merge(self, other: 'Variables') -> 'Variables':
        """Returns the variables of both, which have no path in common."""
        return Variables(merge(self.params, other.params), merge(self.state, other.state))

    def branch(self, name: str) -> 'Variables':
        """Returns the variables of a part of the model; {} for what it has not."""
        return Variables(self.params.get(name, {}), self.state.get(name, {}))

    def without(self, name: str) -> 'Variables':
        """Returns the variables of all other parts of the model."""
        return Variables(
            *({key: branch for key, branch in tree.items() if key != name} for tree in self)
        )


class Training(NamedTuple):
    """What a module needs to know of a training step.

    Attributes:
        key: Of dropout.
        mask: Which examples are real; the others count in no statistic.
        live: The paths of the state that changes; a layer whose state does not change uses it as
            in evaluation.
    """

    key: Array
    mask: Bool[Array | np.ndarray, ' b']
    live: frozenset[str]

    def inside(self, branch: str) -> 'Training':
        """Returns what a part of the model needs to know, whose paths begin with `branch`."""
        prefix = f'{branch}/'
        own = frozenset(p.removeprefix(prefix) for p in self.live if p.startswith(prefix))
        return self._replace(live=own)


_MISSING = np.zeros((0,), np.float32)  # fits no operation, so that it is never computed with

_MASK: contextvars.ContextVar[Array | np.ndarray | None] = contextvars.ContextVar(
    'mask', default=None
)


class MaskedBatchNorm(nnx.BatchNorm):
    """BatchNorm whose statistics leave out the examples that only fill a batch."""

    def __call__(
        self, x: Array, use_running_average: bool | None = None, *, mask: Array | None = None
    ) -> Array:
        """See `nnx.BatchNorm`; without a mask, that of the training step applies."""
        real = _MASK.get()
        if mask is None and real is not None and x.shape[0] % real.shape[0] == 0:
            rows = jnp.repeat(real, x.shape[0] // real.shape[0])
            mask = rows.reshape(-1, *[1] * (x.ndim - 1))
        return super().__call__(x, use_running_average, mask=mask)


@dataclasses.dataclass(frozen=True)
class Static:
    """The static half of a module; hashable, and equal for modules of one architecture.

    Attributes:
        graph: The graph definition.
        params: The paths of the parameters in the graph.
        state: The paths of the state.
        rngs: The paths of the module's own random keys and counters, which each call sets.
    """

    graph: nnx.GraphDef
    params: tuple[Path, ...]
    state: tuple[Path, ...]
    rngs: tuple[Path, ...]

    def module(self, variables: Variables, key: Array | None = None) -> nnx.Module:
        """Returns the module that holds these variables; `key` sets its random keys.

        Layers whose variables are missing cannot be called.
        """
        values: dict[Path, Array] = {}
        for paths, tree in ((self.params, variables.params), (self.state, variables.state)):
            flat = flatten(tree)
            values |= {path: flat.get(_name(path), _MISSING) for path in paths}
        for number, path in enumerate(self.rngs):
            start = jax.random.key(0) if key is None else key
            counter = path[-1] == 'count'
            values[path] = jnp.uint32(0) if counter else jax.random.fold_in(start, number)
        return nnx.merge(self.graph, nnx.from_flat_state(list(values.items())))

    def apply(
        self,
        variables: Variables,
        x: Array | np.ndarray,
        training: Training | None = None,
        **arguments: Any,
    ) -> tuple[Array, Tree]:
        """Calls the module and returns its output and its new state; see `call`."""
        module = self.module(variables, None if training is None else training.key)
        return call(module, variables.state, x, training, **arguments)


def call(
    module: nnx.Module,
    state: Tree,
    x: Array | np.ndarray,
    training: Training | None,
    **arguments: Any,
) -> tuple[Array, Tree]:
    """Calls a module in evaluation or training mode.

    Args:
        module: Holds `state`; changed by the call.
        state: The state before the call.
        x: The input.
        training: None for evaluation: no dropout, and the state is used and stays as it is.
        **arguments: Passed to the module.

    Returns:
        The output and the new state.
    """
    live = frozenset() if training is None else training.live
    for path, part in nnx.iter_modules(module):
        if isinstance(part, nnx.BatchNorm):
            part.use_running_average = _name((*path, 'mean')) not in live
        if isinstance(part, nnx.Dropout):
            part.deterministic = training is None
    if training is not None and _takes_key(module):
        arguments['key'] = training.key
    with _masking(None if training is None else training.mask):
        y = module(x, **arguments)
    if not live:
        return y, state
    after = _values(nnx.state(module, _is_state))
    return y, unflatten(
        {path: after[path] if path in live else old for path, old in flatten(state).items()}
    )


def static(build: Builder) -> Static:
    """Returns the static half of a module, without computing any variable."""
    module = nnx.eval_shape(lambda: _built(build, 0))
    graph, *parts = nnx.split(module, nnx.Param, nnx.RngState, ...)
    params, rngs, state = (tuple(path for path, _ in nnx.to_flat_state(part)) for part in parts)
    return Static(graph, params, state, rngs)


def init(build: Builder, key: Array) -> Variables:
    """Returns the first variables of a module."""
    _, *parts = nnx.split(_built(build, key), nnx.Param, nnx.RngState, ...)
    params, _, state = (unflatten(_values(part)) for part in parts)
    return Variables(params, state)


def _built(build: Builder, key: Array | int) -> nnx.Module:
    module = build(nnx.Rngs(key))
    for _, part in nnx.iter_modules(module):
        if type(part) is nnx.BatchNorm:
            part.__class__ = MaskedBatchNorm  # people write nnx.BatchNorm, which knows no padding
    return module


def _takes_key(module: nnx.Module) -> bool:
    return 'key' in inspect.signature(type(module).__call__).parameters


def _is_state(_: Path, value: Any) -> bool:
    return isinstance(value, nnx.Variable) and not isinstance(value, nnx.Param | nnx.RngState)


def _values(state: Any) -> dict[str, Array | np.ndarray]:
    return {_name(path): variable[...] for path, variable in nnx.to_flat_state(state)}


def _name(path: Path) -> str:
    return '/'.join(map(str, path))


@contextlib.contextmanager
def _masking(mask: Array | np.ndarray | None) -> Iterator[None]:
    token = _MASK.set(mask)
    try:
        yield
    finally:
        _MASK.reset(token)

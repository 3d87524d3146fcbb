"""The type checker of jaxtyping's import hook: beartype, and what it needs to know of our hints."""

import typing
from collections.abc import Callable

import numpy as np
from beartype import BeartypeConf, FrozenDict, beartype

_CONF = BeartypeConf(
    # The hook decorates methods, not classes, so beartype cannot know what `Self` is.
    # An int is a float, as for mypy, and NumPy's scalars are numbers.
    hint_overrides=FrozenDict(
        {
            typing.Self: object,
            int: int | np.integer,
            float: float | int | np.floating | np.integer,
        }
    ),
)


def check(function: Callable) -> Callable:
    """Returns the function with its arguments and its result checked against its annotations."""
    for hint in list(getattr(function, '__annotations__', {}).values()):
        _make_checkable(hint)
    return beartype(conf=_CONF)(function)


def _make_checkable(hint: object) -> None:
    """Lets `isinstance` check the protocols in a hint by the names of their members."""
    if getattr(hint, '_is_protocol', False):
        typing.runtime_checkable(hint)
    for part in typing.get_args(hint):
        for inner in part if isinstance(part, list) else [part]:
            _make_checkable(inner)

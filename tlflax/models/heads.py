"""Trainable heads, which map backbone features to class logits.

Each is a Flax NNX module as `tlflax.models.standard_heads` describes: one of those, a class in a
file of the user's own, or an ensemble.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from tlflax.models import ensemble_head
from tlflax.models.base import modules
from tlflax.models.base.modules import Static, Variables
from tlflax.models.standard_heads import HEADS, Shape
from tlflax.utils import python_file
from tlflax.utils.errors import UserError, did_you_mean, located

_KEPT = 64  # static halves; the sweep's candidates are fewer


def builder(
    name: str, shape: Shape, num_classes: int, *, units: int, dropout: float
) -> modules.Builder:
    """Returns what builds a head: random keys to a module of features, [b, *shape], to logits.

    Args:
        name: A key of `HEADS`, or 'py:FILE.py:NAME' for a class of the user's own.
        shape: The shape of one example's features, (h, w, c) or (c,).
        num_classes: Number of logits.
        units: Width of the dense hidden layer, for heads that have one.
        dropout: Fraction of the last layer's inputs that dropout sets to zero.

    Raises:
        UserError: There is no such head, or, when it builds, it does not fit the features.
    """
    key, head = 'config.model.head', _find(name)

    def build(rngs: nnx.Rngs) -> nnx.Module:
        with located(key), python_file.explaining(name):
            module = head(shape, num_classes, units=units, dropout=dropout, rngs=rngs)
        if not isinstance(module, nnx.Module):
            raise UserError(
                f'{name} makes a {type(module).__name__}, not a Flax NNX module',
                where=key,
                fix='name a class of nnx.Module',
            )
        return module

    return build


def class_leaves(name: str) -> tuple[str, ...]:
    """Returns the paths of a head's parameters whose last axis is the class, and nothing else.

    They can be split by class. There are none where a head may mix the logits of several classes.
    """
    return ('logits/kernel', 'logits/bias') if name in HEADS else ()


def _find(name: str) -> Any:
    """Returns the class of a head, or what builds it; a user's file may name anything."""
    key = 'config.model.head'
    if python_file.is_spec(name):
        return python_file.load(name, where=key).value
    if name.startswith(ensemble_head.PREFIX):
        return ensemble_head.head(name)
    if name in HEADS:
        return HEADS[name]
    if name == 'auto':
        raise UserError(
            'it stands for many heads, and one is needed here',
            where=key,
            fix='name one, or let python -m tlflax.train or tlflax.sweep.auto.run choose',
        )
    fix = did_you_mean(name, ['auto', *HEADS, 'py:FILE.py:NAME'])
    raise UserError(f'{name!r} is not a head', where=key, fix=fix)


def static(name: str, shape: Shape, num_classes: int, *, units: int, dropout: float) -> Static:
    """Returns the static half of a head that was tried on features; see `builder`.

    Raises:
        UserError: The head does not fit the features, or does not return logits.
    """
    make = _static if python_file.is_spec(name) else _own_static
    return make(name, shape, num_classes, units=units, dropout=dropout)


def _static(name: str, shape: Shape, num_classes: int, *, units: int, dropout: float) -> Static:
    made = modules.static(builder(name, shape, num_classes, units=units, dropout=dropout))
    features = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    variables = jax.eval_shape(
        lambda: init(name, shape, num_classes, jax.random.key(0), units=units, dropout=dropout)
    )
    with located('config.model.head'), python_file.explaining(name):
        logits = jax.eval_shape(made.apply, variables, features)[0]
    if logits.shape != (1, num_classes):
        raise UserError(
            f'{name} turns features [1, {", ".join(map(str, shape))}] into {list(logits.shape)}',
            where='config.model.head',
            fix=f'return logits [b, {num_classes}], one for each class',
        )
    return made


_own_static = functools.lru_cache(_KEPT)(_static)  # trying a head takes a tenth of a second


def init(
    name: str, shape: Shape, num_classes: int, key: Array, *, units: int, dropout: float
) -> Variables:
    """Returns the first variables of a head, float32; arguments as in `builder`.

    Those of tlflax's heads come from one compiled program, which has the values of one operation
    after the other, each compiled by itself, and takes a tenth of the time.
    """
    if name in HEADS:
        return _own_init(key, name, shape, num_classes, units=units, dropout=dropout)
    return modules.init(builder(name, shape, num_classes, units=units, dropout=dropout), key)


@functools.partial(jax.jit, static_argnames=('name', 'shape', 'num_classes', 'units', 'dropout'))
def _own_init(
    key: Array, name: str, shape: Shape, num_classes: int, *, units: int, dropout: float
) -> Variables:
    return modules.init(builder(name, shape, num_classes, units=units, dropout=dropout), key)

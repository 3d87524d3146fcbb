"""Taps: the outputs of several layers, pooled, as one vector of features."""

import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tlflax.utils.errors import UserError, did_you_mean

Pooling = Literal['flatten', 'mean', 'max', 'grid2', 'grid4']


class Tap(NamedTuple):
    """What is taken of one layer's output.

    Attributes:
        layer: The layer.
        pooling: 'flatten' keeps every position, 'mean' and 'max' reduce them to one; 'grid2' and
            'grid4' to the means of 2x2 and 4x4 cells. Vectors, as those of dense layers, stay.
    """

    layer: str
    pooling: Pooling

    def __str__(self) -> str:
        return f'{self.layer}:{self.pooling}'

    def pooled(self, x: Float[Array, 'b ...']) -> Float[Array, 'b d']:
        """Turns the layer's output into rows."""
        if self.pooling == 'flatten' or x.ndim == 2:
            return x.reshape(x.shape[0], -1)
        if self.pooling == 'max':
            return x.max((1, 2))
        return cells(x, {'mean': 1, 'grid2': 2, 'grid4': 4}[self.pooling])

    def columns(self, shape: tuple[int, ...]) -> int:
        """Returns the length of a row, for the shape of the output for one image."""
        x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        return int(jax.eval_shape(self.pooled, x).shape[1])


def parse(texts: Sequence[str], layers: Sequence[str]) -> tuple[Tap, ...]:
    """Returns the taps that a configuration names, in the order of their layers.

    Args:
        texts: Each 'LAYER' or 'LAYER:POOLING'; without a pooling, every position is kept.
        layers: Those of the backbone, in order.

    Raises:
        UserError: There is no such layer or pooling, or a tap is named twice.
    """
    found = []
    for text in texts:
        layer, _, pooling = text.partition(':')
        for value, choices in ((layer, layers), (pooling or 'flatten', get_args(Pooling))):
            if value not in choices:
                raise UserError(
                    f'{text!r} is not a layer and a pooling: there is no {value!r}',
                    where='config.features.layers',
                    fix=did_you_mean(value, choices),
                )
        found.append(Tap(layer, cast(Pooling, pooling or 'flatten')))
    if len(set(found)) < len(found):
        raise UserError('a tap is named twice', where='config.features.layers', fix='remove one')
    return tuple(sorted(found, key=lambda tap: layers.index(tap.layer)))


def cells(x: Float[Array, 'b h w c'], side: int) -> Float[Array, 'b d']:
    """Returns the means of side x side cells of a map, row by row.

    Sizes differ by one where they have to; a map that is smaller than that has fewer cells a side.
    """
    *_, h, w, _ = x.shape
    rows, columns = _cuts(h, min(side, h)), _cuts(w, min(side, w))
    means = [x[:, row, column].mean((1, 2)) for row in rows for column in columns]
    return jnp.concatenate(means, axis=1)


def _cuts(length: int, parts: int) -> list[slice]:
    edges = [round(part * length / parts) for part in range(parts + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]

"""Fixed maps from the feature maps of layers to the rows that linear models take.

A representation names layers of the backbone. The output of each is pooled or flattened, then
normalized; the rows of several layers are concatenated, each with a weight. Only standardization
has numbers of its own, and those come from the training images without their labels, so a fitted
representation is a part of a head.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

Pooling = Literal['flatten', 'mean', 'max', 'grid2', 'grid4']
Normalization = Literal['raw', 'standard', 'row', 'power']

_SMALLEST = 1e-12  # norm of a row: one of zeros stays zero


class Moments(NamedTuple):
    """The mean and deviation of each column over the training rows.

    Attributes:
        mean: f32[d].
        deviation: f32[d], one for a constant column.
    """

    mean: Float[Array, ' d']
    deviation: Float[Array, ' d']


@dataclasses.dataclass(frozen=True)
class Part:
    """How the output of one layer becomes the columns of a row.

    Attributes:
        layer: A layer of the backbone.
        pooling: 'flatten' keeps every position, 'mean' and 'max' reduce them to one; 'grid2' and
            'grid4' to the means of 2x2 and 4x4 cells. Vectors, as those of dense layers, stay.
        normalization: 'raw'; 'standard': zero mean and unit variance in each column; 'row': unit
            norm; 'power': signed square root, then unit norm (Perronnin et al. 2010, ECCV).
        weight: Factor of the result.
    """

    layer: str
    pooling: Pooling
    normalization: Normalization
    weight: float = 1.0

    def pooled(self, x: Float[Array, 'b ...']) -> Float[Array, 'b d']:
        """Turns the layer's output into rows that are not normalized yet."""
        if self.pooling == 'flatten' or x.ndim == 2:
            return x.reshape(x.shape[0], -1)
        if self.pooling == 'max':
            return x.max((1, 2))
        return cells(x, {'mean': 1, 'grid2': 2, 'grid4': 4}[self.pooling])

    def normalized(
        self, rows: Float[Array, 'b d'], moments: Moments | None = None
    ) -> Float[Array, 'b d']:
        """Normalizes rows, and applies the weight.

        Args:
            rows: From `pooled`.
            moments: Of the training rows; needed by 'standard' alone.
        """
        if self.normalization == 'power':
            rows = row_normalized(signed_root(rows))
        elif self.normalization == 'row':
            rows = row_normalized(rows)
        elif self.normalization == 'standard':
            if moments is None:
                raise ValueError('a standardized representation needs the moments of its columns')
            rows = (rows - moments.mean) / moments.deviation
        return self.weight * rows


Representation = tuple[Part, ...]


def fit(
    representation: Representation, outputs: Mapping[str, Float[Array, 'n ...']]
) -> list[Moments | None]:
    """Returns the moments that each part needs.

    Args:
        representation: Its parts.
        outputs: The training images' features at every layer it names.
    """
    return [
        moments(part.pooled(outputs[part.layer])) if part.normalization == 'standard' else None
        for part in representation
    ]


def apply(
    representation: Representation,
    fitted: Sequence[Moments | None],
    outputs: Mapping[str, Float[Array, 'b ...']],
) -> Float[Array, 'b d']:
    """Returns the rows of some images.

    Args:
        representation: Its parts.
        fitted: See `fit`.
        outputs: Features at every layer it names.
    """
    rows = [
        part.normalized(part.pooled(outputs[part.layer]), own)
        for part, own in zip(representation, fitted, strict=True)
    ]
    return jnp.concatenate(rows, axis=1)


def moments(rows: Float[Array, 'n d']) -> Moments:
    """Returns the mean and the deviation of each column."""
    deviation = rows.std(0)
    return Moments(rows.mean(0), jnp.where(deviation > 0, deviation, 1))


def row_normalized(rows: Float[Array, 'b d']) -> Float[Array, 'b d']:
    """Scales each row to a Euclidean norm of one; a row of zeros stays."""
    return rows / jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), _SMALLEST)


def signed_root(rows: Float[Array, 'b d']) -> Float[Array, 'b d']:
    """Returns the square root of each magnitude, with its sign."""
    return jnp.sign(rows) * jnp.sqrt(jnp.abs(rows))


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

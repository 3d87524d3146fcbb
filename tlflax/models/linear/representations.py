"""Fixed maps from features to the rows that linear models take.

A representation takes columns of the features, normalizes each part and concatenates them, each
with a weight. Only standardization has numbers of its own, and those come from the training images
without their labels, so a fitted representation is a part of a head.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

Normalization = Literal['raw', 'standard', 'row', 'power']

_SMALLEST = 1e-12  # norm of a row: one of zeros stays zero
_CONSTANT = 1e-5  # deviation of a column relative to its mean: less is rounding


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
    """How some columns of the features become columns of a row.

    Attributes:
        start: The first column.
        stop: The column after the last.
        normalization: 'raw'; 'standard': zero mean and unit variance in each column; 'row': unit
            norm; 'power': signed square root, then unit norm (Perronnin et al. 2010, ECCV).
        weight: Factor of the result.
    """

    start: int
    stop: int
    normalization: Normalization
    weight: float = 1.0

    def of(self, features: Float[Array, 'b columns']) -> Float[Array, 'b d']:
        """Returns the columns, not normalized yet."""
        return features[:, self.start : self.stop]

    def normalized(
        self, rows: Float[Array, 'b d'], moments: Moments | None = None
    ) -> Float[Array, 'b d']:
        """Normalizes rows, and applies the weight.

        Args:
            rows: From `of`.
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
    representation: Representation, features: Float[Array, 'n columns']
) -> list[Moments | None]:
    """Returns the moments that each part needs, of the training images' features."""
    return [
        moments(part.of(features)) if part.normalization == 'standard' else None
        for part in representation
    ]


def apply(
    representation: Representation,
    features: Float[Array, 'b columns'],
    fitted: Sequence[Moments | None] | None = None,
) -> Float[Array, 'b d']:
    """Returns the rows of some images.

    Args:
        representation: Its parts.
        features: Of the images.
        fitted: See `fit`; None where no part is standardized.
    """
    own = fitted or [None] * len(representation)
    rows = [p.normalized(p.of(features), m) for p, m in zip(representation, own, strict=True)]
    return jnp.concatenate(rows, axis=1)


def moments(rows: Float[Array, 'n d']) -> Moments:
    """Returns the mean and the deviation of each column."""
    mean, deviation = rows.mean(0), rows.std(0)
    varies = deviation > _CONSTANT * jnp.abs(mean)
    return Moments(mean, jnp.where(varies, deviation, 1))


def row_normalized(rows: Float[Array, 'b d']) -> Float[Array, 'b d']:
    """Scales each row to a Euclidean norm of one; a row of zeros stays."""
    return rows / jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), _SMALLEST)


def signed_root(rows: Float[Array, 'b d']) -> Float[Array, 'b d']:
    """Returns the square root of each magnitude, with its sign."""
    return jnp.sign(rows) * jnp.sqrt(jnp.abs(rows))

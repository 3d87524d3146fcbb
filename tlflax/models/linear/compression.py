"""Training features as solvers of linear models take them: scaled, in few coordinates."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float

_LARGEST_GRAM = 5000  # rows; with more, their eigenvectors cost more than they save
_BLOCK = 4096  # columns


@dataclasses.dataclass(frozen=True)
class Compressed:
    """Features of training images, scaled and perhaps rotated into few coordinates.

    Attributes:
        coordinates: f32[n, r]; the mean square norm of a row is one.
        combine: f64[n, r]; `features.T @ combine @ weights` is the kernel for unscaled features
            that corresponds to weights of the coordinates. None if the coordinates are the scaled
            features.
        scale: The root of the mean square norm of a row of features.
    """

    coordinates: Float[np.ndarray, 'n r']
    combine: Float[np.ndarray, 'n r'] | None
    scale: float

    def kernel(
        self, features: Float[np.ndarray, 'n d'], weights: Float[np.ndarray, 'r num_classes']
    ) -> Float[np.ndarray, 'd num_classes']:
        """Returns the kernel for unscaled features."""
        if self.combine is None:
            return np.asarray(weights) / np.float32(self.scale)
        return features.T @ (self.combine @ np.asarray(weights, np.float64)).astype(np.float32)


def compress(features: Float[np.ndarray, 'n d']) -> Compressed:
    """Scales rows; if they are far fewer than columns, rotates them into the space they span.

    The best kernel is a linear combination of rows, and a rotation preserves norms: the problem
    stays the same, and an iteration costs a fraction.
    """
    n, d = features.shape
    if 2 * n > d or n > _LARGEST_GRAM:
        scale = math.sqrt(np.mean([np.dot(row, row) for row in features], dtype=np.float64)) or 1.0
        return Compressed(features / np.float32(scale), None, scale)
    return from_gram(inner_products(features))


def inner_products(
    rows: Float[np.ndarray, 'n d'], others: Float[np.ndarray, 'm d'] | None = None
) -> Float[np.ndarray, 'n m']:
    """Computes the inner products of rows with other rows, or with each other.

    In float64, by blocks of columns: in float32 the small eigenvalues would be noise.
    """
    found = np.zeros((len(rows), len(rows if others is None else others)))
    for start in range(0, rows.shape[1], _BLOCK):
        block = rows[:, start : start + _BLOCK].astype(np.float64)
        other = block if others is None else others[:, start : start + _BLOCK].astype(np.float64)
        found += block @ other.T
    return found


def from_gram(gram: Float[np.ndarray, 'n n']) -> Compressed:
    """Rotates scaled rows into the space they span, from their inner products alone.

    Inner products of further rows with these, times `combine @ weights`, are their scores.
    """
    scale = math.sqrt(np.trace(gram) / len(gram)) or 1.0
    values, vectors = np.linalg.eigh(gram / scale**2)
    kept = values > 1e-12 * max(values[-1], np.finfo(np.float64).tiny)
    roots, vectors = np.sqrt(values[kept]), vectors[:, kept]
    return Compressed((vectors * roots).astype(np.float32), vectors / (roots * scale**2), scale)

"""Training features as solvers of linear models take them: scaled, in few coordinates."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float

_LARGEST_GRAM = 5000  # rows; with more, their eigenvectors cost more than they save


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
    scale = math.sqrt(np.mean([np.dot(row, row) for row in features], dtype=np.float64)) or 1.0
    if 2 * n > d or n > _LARGEST_GRAM:
        return Compressed(features / np.float32(scale), None, scale)
    # In float64, by blocks: in float32 the small eigenvalues would be noise.
    blocks = (features[:, i : i + 4096].astype(np.float64) for i in range(0, d, 4096))
    values, vectors = np.linalg.eigh(sum(block @ block.T for block in blocks) / scale**2)
    kept = values > 1e-12 * values[-1]
    roots, vectors = np.sqrt(values[kept]), vectors[:, kept]
    return Compressed((vectors * roots).astype(np.float32), vectors / (roots * scale**2), scale)

"""The rows that the linear layer of a probe takes."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from tlflax.features import on_host
from tlflax.features.batches import Source
from tlflax.models.linear import representations
from tlflax.models.linear.representations import Moments, Part

Representation = Literal['raw', 'standard', 'row', 'power']
"""Normalizations of features: see `tlflax.models.linear.representations.Part`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Features of images in order, and their classes.

    Attributes:
        features: f32[n, d], the inputs of the linear layer, not yet standardized.
        label: i32[n].
        num_classes: Number of classes.
    """

    features: Float[np.ndarray, 'n d']
    label: Int[np.ndarray, ' n']
    num_classes: int

    def moments(
        self, representation: Representation, used: Bool[np.ndarray, ' n'] | None = None
    ) -> Moments | None:
        """Returns the mean and deviation of each column over the rows used, if they are needed."""
        if representation != 'standard':
            return None
        rows = self.features if used is None else self.features[used]
        return representations.moments(jnp.asarray(rows))

    def normalized(self, moments: Moments | None) -> Float[np.ndarray, 'n d']:
        """Returns the features, standardized if there are moments."""
        if moments is None:
            return self.features
        return (self.features - np.asarray(moments.mean)) / np.asarray(moments.deviation)


def read_rows(
    source: Source, head: str, num_classes: int, representation: Representation = 'raw'
) -> Rows:
    """Reads the rows of a split for one of the linear heads, or for one on normalized rows.

    Raises:
        UserError: The features are not kept on the device.
    """
    features, label = on_host.read(source)
    features = features.mean((1, 2)) if head == 'gap_linear' else features.reshape(len(label), -1)
    if representation in ('row', 'power'):
        part = Part(0, features.shape[1], representation)
        features = np.asarray(part.normalized(jnp.asarray(features)))
    return Rows(features, label, num_classes)

"""The rows that a linear probe takes, as the linear layer of its head does."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from tlflax.features import on_host
from tlflax.features.batches import Source
from tlflax.models.linear import representations
from tlflax.models.linear.representations import Moments

Representation = Literal['raw', 'standard']
"""Normalizations that a linear layer can hold: see `tlflax.models.linear.representations.Part`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Features of images in order, and their classes.

    Attributes:
        features: f32[n, d], the inputs of the linear layer.
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
        if representation == 'raw':
            return None
        rows = self.features if used is None else self.features[used]
        return representations.moments(jnp.asarray(rows))

    def normalized(self, moments: Moments | None) -> Float[np.ndarray, 'n d']:
        """Returns the features, standardized if there are moments."""
        if moments is None:
            return self.features
        return (self.features - np.asarray(moments.mean)) / np.asarray(moments.deviation)


def read_rows(source: Source, head: str, num_classes: int) -> Rows:
    """Reads the rows of a split for one of the linear heads.

    Raises:
        UserError: The features are not kept on the device.
    """
    features, label = on_host.read(source)
    features = features.mean((1, 2)) if head == 'gap_linear' else features.reshape(len(label), -1)
    return Rows(features, label, num_classes)

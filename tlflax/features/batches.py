"""What a source of batches is: the protocol that training and evaluation rely on."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Array, Float, Int

HostBatch = dict[str, Any]
"""NumPy arrays [b, ...] (features may be on the device): 'image' or 'features', 'label', 'mask',
'index' and, where images have weights, 'weight'."""


class OnDevice(NamedTuple):
    """Features that stay on the device for the whole run.

    Attributes:
        features: One row for each (image, view).
        label: The class of each row.
        weight: The factor of each row's training loss; None: 1.
    """

    features: Float[Array, 'rows ...']
    label: Int[Array, ' rows']
    weight: Float[Array, ' rows'] | None = None


class Source(Protocol):
    """Images or features of one split, in batches of a fixed shape.

    Attributes:
        num_examples: Examples in an epoch.
        on_device: All features, where they fit on the device; None: they come in batches.
    """

    num_examples: int
    on_device: OnDevice | None

    def train_batches(self, epoch: int, start_step: int) -> Iterator[HostBatch]:
        """Yields an epoch's shuffled, augmented batches, from `start_step` on."""
        ...

    def eval_batches(self) -> Iterator[HostBatch]:
        """Yields every example once, in order."""
        ...

    def train_rows(self, epoch: int) -> Int[np.ndarray, 'steps b']:
        """The on-device rows of an epoch's batches; -1 is padding."""
        ...

    def eval_rows(self) -> Int[np.ndarray, 'steps b']:
        """The on-device rows of every example once, in order; -1 is padding."""
        ...

"""What a source of batches is: the two protocols that training and evaluation rely on."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Int

from tlflax.data.augment import sampling
from tlflax.data.pipeline.batch import Batch


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


class StreamedSource(Protocol):
    """Images or features of one split that come from the host in batches of one shape."""

    @property
    def num_examples(self) -> int:
        """Examples in an epoch."""
        ...

    def train_batches(self, epoch: int, start_step: int) -> Iterator[Batch]:
        """Yields an epoch's shuffled, augmented batches, from `start_step` on."""
        ...

    def eval_batches(self) -> Iterator[Batch]:
        """Yields every example once, in order."""
        ...


@runtime_checkable
class OnDeviceSource(Protocol):
    """Features of one split that are all on the device; a batch is a choice of their rows."""

    @property
    def num_examples(self) -> int:
        """Examples in an epoch."""
        ...

    @property
    def on_device(self) -> OnDevice:
        """The features."""
        ...

    def train_rows(self, epoch: int) -> Int[np.ndarray, 'steps b']:
        """Returns the rows of an epoch's batches; -1 is padding."""
        ...

    def eval_rows(self) -> Int[np.ndarray, 'steps b']:
        """Returns the rows of every example once, in order; -1 is padding."""
        ...


Source = StreamedSource | OnDeviceSource
"""Where the batches of one split come from."""


@dataclasses.dataclass(frozen=True)
class Order:
    """How the examples of a split are put into batches.

    Attributes:
        batch_size: Examples of a batch over all processes.
        seed: The run's seed.
        balanced: Draw classes equally often; see `tlflax.data.augment.sampling.epoch_order`.
    """

    batch_size: int
    seed: int
    balanced: bool = False

    def train(self, epoch: int, labels: Int[np.ndarray, ' n']) -> Int[np.ndarray, 'steps b']:
        """Returns the positions of an epoch's examples, shuffled; -1 is padding."""
        order = sampling.epoch_order(self.seed, epoch, labels, balanced=self.balanced)
        return sampling.batch_rows(order, self.batch_size)

    def eval(self, n: int) -> Int[np.ndarray, 'steps b']:
        """Returns the positions of all examples in order; -1 is padding."""
        return sampling.batch_rows(np.arange(n), self.batch_size)

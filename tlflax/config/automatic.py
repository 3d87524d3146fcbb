"""The length of a training from its number of images: `train.batch_size=0` and `train.epochs=0`.

Passes over a few hundred images have few steps, passes over many have thousands, while a head on
frozen features needs about as many steps on either.
"""

import dataclasses
import math

from tlflax.config.schema import TrainConfig

STEPS = 1500  # that a training has, about
EPOCHS = (20, 300)  # fewest and most
STEPS_PER_EPOCH = 15  # at least, where a batch need not be smaller than the smallest
BATCH = (8, 256)  # smallest and largest


def resolve(train: TrainConfig, images: int) -> TrainConfig:
    """Returns the configuration with the batch size and the epochs that 0 stands for.

    Args:
        train: What is asked for.
        images: Number of training images, at least 1.
    """
    batch = train.batch_size or _batch_size(images)
    epochs = train.epochs or _epochs(math.ceil(images / batch))
    return dataclasses.replace(train, batch_size=batch, epochs=epochs)


def describe(asked: TrainConfig, resolved: TrainConfig, images: int) -> str:
    """Returns a sentence about what was chosen; empty if nothing was."""
    if asked == resolved:
        return ''
    steps = math.ceil(images / resolved.batch_size)
    return (
        f'{images} training images: batches of {resolved.batch_size}, {steps} steps an epoch, at '
        f'most {resolved.epochs} epochs, {steps * resolved.epochs} steps'
    )


def _batch_size(images: int) -> int:
    """Returns a power of two; for fewer images than the smallest batch, as many as there are."""
    wanted = min(max(images // STEPS_PER_EPOCH, BATCH[0]), BATCH[1])
    return min(1 << (wanted.bit_length() - 1), images)


def _epochs(steps_per_epoch: int) -> int:
    return min(max(math.ceil(STEPS / steps_per_epoch), EPOCHS[0]), EPOCHS[1])

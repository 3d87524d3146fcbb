"""Batch size and epochs from the number of images."""

import math

import pytest

from tlflax.config import automatic
from tlflax.config.schema import TrainConfig

AUTO = TrainConfig(batch_size=0, epochs=0)


@pytest.mark.parametrize(
    ('images', 'batch', 'epochs'),
    [
        (1, 1, 300),
        (7, 7, 300),
        (8, 8, 300),
        (100, 8, 116),  # 13 steps an epoch
        (239, 8, 50),
        (240, 16, 100),
        (250, 16, 94),
        (300, 16, 79),
        (800, 32, 60),
        (1187, 64, 79),
        (10_000, 256, 38),
        (100_000, 256, 20),
    ],
)
def test_by_hand(images, batch, epochs):
    chosen = automatic.resolve(AUTO, images)
    assert (chosen.batch_size, chosen.epochs) == (batch, epochs)


def test_promises_for_any_number_of_images():
    for images in range(8, 30_000, 7):
        chosen = automatic.resolve(AUTO, images)
        batch, steps = chosen.batch_size, math.ceil(images / chosen.batch_size)
        assert batch & (batch - 1) == 0
        assert 8 <= batch <= 256
        assert steps >= 15 or batch == 8
        assert steps <= 31 or batch in (8, 256)
        assert 20 <= chosen.epochs <= 300
        assert chosen.epochs * steps >= 1500 or chosen.epochs == 300
        assert (chosen.epochs - 1) * steps < 1500 or chosen.epochs == 20


def test_what_is_given_stays():
    given = TrainConfig(batch_size=50, epochs=7, seed=3)
    assert automatic.resolve(given, 300) == given
    assert automatic.describe(given, given, 300) == ''
    assert automatic.resolve(TrainConfig(batch_size=50, epochs=0), 300).epochs == 250
    assert automatic.resolve(TrainConfig(batch_size=0, epochs=7), 300).epochs == 7


def test_description():
    told = automatic.describe(AUTO, automatic.resolve(AUTO, 800), 800)
    assert told == (
        '800 training images: batches of 32, 25 steps an epoch, at most 60 epochs, 1500 steps'
    )

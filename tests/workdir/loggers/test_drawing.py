"""Pictures of a run's outcome: every cell has its color, every mistake its place."""

import numpy as np
import pytest

from tlflax.workdir.loggers import drawing

NAMES = ['green', 'red', 'yellow']
COUNTS = np.array([[9, 0, 0], [1, 3, 0], [0, 0, 0]])


def test_cells_are_colored_by_the_share_of_their_row():
    picture = drawing.confusion_matrix(COUNTS, NAMES)
    blue, red = drawing._BLUE.astype(np.uint8), drawing._RED.astype(np.uint8)
    full = (picture == blue).all(-1)
    assert full.sum() > 0.8 * 48 * 48  # one cell but for its number
    half = np.round(255 + (red.astype(float) - 255) * 0.5).astype(np.uint8)  # root of 1/4
    assert (picture == half).all(-1).sum() > 0.8 * 48 * 48
    rows, columns = np.where(full)
    below, _ = np.where((picture == half).all(-1))
    assert rows.max() < below.min()
    assert columns.max() - columns.min() == rows.max() - rows.min() == 47


@pytest.mark.parametrize('classes', [1, 2, 40, 200, 1000])
def test_any_number_of_classes(classes):
    counts = np.eye(classes, dtype=int) * 3
    picture = drawing.confusion_matrix(counts, [f'class {n}' for n in range(classes)])
    assert max(picture.shape) < 1400
    blue = (picture == drawing._BLUE.astype(np.uint8)).all(-1).sum()
    side = max(1, min(48, 960 // classes))
    assert 0.7 * classes * side**2 < blue <= classes * side**2


def test_numbers_of_images_are_written():
    one, two = (drawing.confusion_matrix(COUNTS * n, NAMES) for n in (1, 2))
    assert one.shape == two.shape
    changed = (one != two).any(-1)
    rows, _ = np.where(changed)
    assert 0 < changed.sum() < 0.1 * changed.size
    assert rows.max() - rows.min() <= 2 * 48


def color(number):
    return np.array([50 + number, 7, 200], np.uint8)


@pytest.mark.parametrize('count', [1, 3, 4])
def test_mistakes_keep_their_shape(count):
    shown = [
        drawing.Mistake(color(n) + np.zeros((20, 10 * (n + 1), 1), np.uint8), 'a' * 99, '\n', 0.9)
        for n in range(count)
    ]
    picture = drawing.mistakes(shown)
    for number in range(count):
        rows, columns = np.where((picture == color(number)).all(-1))
        size = (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1)
        wide = 10 * (number + 1)
        assert size == (round(160 * 20 / max(20, wide)), round(160 * wide / max(20, wide)))
        assert len(rows) == size[0] * size[1]

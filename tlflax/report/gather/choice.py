"""Which images a page shows: examples of each cell of the confusion matrix, mistakes, doubts."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Float64, Int

_CELL = 12  # images of a cell
_IN_CELLS = 600  # images of all cells together
_CARDS = 24  # mistakes, and images of low probability
_CERTAIN, _FEWEST = 0.99, 6  # of these a few are shown even if all are certain


@dataclasses.dataclass(frozen=True)
class Choice:
    """Rows of a split.

    Attributes:
        cells: Of each (true, predicted) cell that is not empty, the most confident first.
        mistakes: The most confident mistakes, the most confident first.
        uncertain: The images of lowest probability, the lowest first.
    """

    cells: Mapping[tuple[int, int], Sequence[int]]
    mistakes: Sequence[int]
    uncertain: Sequence[int]

    @property
    def cards(self) -> list[int]:
        """The rows that are shown with everything that is known of them."""
        return list(dict.fromkeys([*self.mistakes, *self.uncertain]))

    @property
    def rows(self) -> list[int]:
        """All rows, those of the cards first."""
        in_cells = (row for rows in self.cells.values() for row in rows)
        return list(dict.fromkeys([*self.cards, *in_cells]))


def choose(labels: Int[np.ndarray, ' n'], probabilities: Float[np.ndarray, 'n classes']) -> Choice:
    """Chooses the images to show; the largest cells of mistakes first, as far as the room goes.

    Args:
        labels: The true classes.
        probabilities: Each image's predicted distribution.
    """
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    order = np.argsort(-confidence, kind='stable')
    by_cell: dict[tuple[int, int], list[int]] = {}
    for row in order.tolist():
        by_cell.setdefault((int(labels[row]), int(predicted[row])), []).append(row)
    doubtful = int((confidence < _CERTAIN).sum())
    wrong = order[predicted[order] != labels[order]]
    return Choice(
        cells=dict(_within(by_cell)),
        mistakes=wrong[:_CARDS].tolist(),
        uncertain=order[::-1][: max(_FEWEST, doubtful)][:_CARDS].tolist(),
    )


def _within(
    cells: Mapping[tuple[int, int], list[int]],
) -> Iterable[tuple[tuple[int, int], list[int]]]:
    """Yields the cells with as many rows as there is room for; each has at least one."""
    room = _IN_CELLS
    for cell in sorted(cells, key=lambda cell: (cell[0] == cell[1], -len(cells[cell]), cell)):
        shown = cells[cell][: max(1, min(_CELL, room))]
        room -= len(shown)
        if room > -_IN_CELLS:
            yield cell, shown


def places(labels: Int[np.ndarray, ' n'], digests: np.ndarray) -> Float64[np.ndarray, ' n']:
    """Returns the place of each image in its class, by the digests of the files, in [0, 1).

    The images of the lowest places are an equal share of each class, whatever their names are.
    """
    found = np.zeros(len(labels))
    for label in np.unique(labels).tolist():
        own = np.flatnonzero(labels == label)
        own = own[np.argsort(digests[own].astype(str), kind='stable')]
        found[own] = np.arange(len(own)) / len(own)
    return found


def confusion(
    labels: Int[np.ndarray, ' n'], predicted: Int[np.ndarray, ' n'], classes: int
) -> list[list[int]]:
    """Returns the numbers of images by true and by predicted class."""
    counts = np.bincount(labels.astype(np.int64) * classes + predicted, minlength=classes * classes)
    return counts.reshape(classes, classes).tolist()

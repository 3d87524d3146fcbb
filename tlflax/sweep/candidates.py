"""The heads that `model.head='auto'` tries, in a fixed order, and what each costs."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from tlflax.models.base.taps import Tap
from tlflax.models.linear import logistic_regression, ridge
from tlflax.models.linear.representations import Part, Representation
from tlflax.models.linear.search import CrossValidate

RIDGE, LOGISTIC = 'ridge', 'logistic regression'
SOLVERS: dict[str, CrossValidate] = {
    RIDGE: ridge.cross_validate,
    LOGISTIC: logistic_regression.cross_validate,
}
STRENGTHS = {RIDGE: tuple(np.logspace(0, -4, 9)), LOGISTIC: tuple(np.logspace(-2, -5.5, 8))}

_LARGEST_GRAM = 5000  # rows; with more, linear models work on the columns
_ITERATIONS = 60  # of L-BFGS for a strength, about
_CELLS = 0.5**0.5  # weight of the cells of an earlier layer beside the last one


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A linear model on a representation.

    Attributes:
        solver: A key of `SOLVERS`.
        representation: What it takes.
        words: The representation in words.
    """

    solver: str
    representation: Representation
    words: str

    @property
    def name(self) -> str:
        """What tables call it."""
        return f'{self.solver}, {self.words}'

    @property
    def columns(self) -> int:
        """Length of a row; prediction takes as many products for each class."""
        return sum(part.stop - part.start for part in self.representation)

    def cost(self, n: int, num_classes: int, folds: int) -> float:
        """Returns about how many floating-point operations its search takes.

        Args:
            n: Training images.
            num_classes: Number of classes.
            folds: Of the cross-validation.
        """
        d, c, strengths = self.columns, num_classes, len(STRENGTHS[self.solver])
        few = 2 * n <= d and n <= _LARGEST_GRAM
        r = min(n, d) if few else d
        prepared = 2 * n * n * d + 10.0 * n**3 if few else 0.0
        if self.solver == RIDGE:
            smaller = min(n, r)
            return prepared + 10.0 * smaller**3 + strengths * 2.0 * n**3 / folds
        return prepared + strengths * _ITERATIONS * 4.0 * n * r * c * (folds + 1)


def candidates(taps: Sequence[Tap], columns: Sequence[int]) -> list[Candidate]:
    """Returns the candidates for some taps, in the order in which they are tried.

    Args:
        taps: What the features consist of.
        columns: Of each tap.
    """
    stops = np.cumsum(columns).tolist()
    spans = {
        (tap.layer, tap.pooling): (stop - count, stop)
        for tap, count, stop in zip(taps, columns, stops, strict=True)
    }
    last = taps[-1].layer
    flat, pooled = spans.get((last, 'flatten')), spans.get((last, 'mean'))
    earlier = [span for (layer, _), span in spans.items() if layer != last]
    found = []

    def add(solver: str, words: str, *parts: Part) -> None:
        found.append(Candidate(solver, parts, words))

    if pooled:
        add(RIDGE, f'{last} pooled', Part(*pooled, 'raw'))
        add(LOGISTIC, f'{last} pooled, unit rows', Part(*pooled, 'row'))
    both = [Part(*flat, 'power')] if flat else []
    both += [Part(*span, 'power', _CELLS) for span in earlier]
    cells = [Part(*span, 'power') for span in earlier]
    if flat:
        add(RIDGE, last, Part(*flat, 'raw'))
    if flat and earlier:
        add(RIDGE, f'roots of {last} and earlier layers', *both)
    if earlier:
        add(LOGISTIC, 'roots of earlier layers', *cells)
    if flat:
        add(LOGISTIC, f'{last}, unit rows', Part(*flat, 'row'))
        add(RIDGE, f'roots of {last}', Part(*flat, 'power'))
    if earlier:
        add(RIDGE, 'roots of earlier layers', *cells)
    if flat:
        add(LOGISTIC, f'roots of {last}', Part(*flat, 'power'))
    if flat and earlier:
        add(LOGISTIC, f'roots of {last} and earlier layers', *both)
    return found


def affordable(
    found: Sequence[Candidate], n: int, num_classes: int, folds: int, budget: float
) -> list[Candidate]:
    """Returns the candidates that a budget of operations allows, counted in their order.

    The first whose cost is below the budget is always among them, so there is one.

    Args:
        found: In the order in which they are tried.
        n: Training images.
        num_classes: Number of classes.
        folds: Of the cross-validation.
        budget: Floating-point operations of all together.
    """
    kept, spent = [], 0.0
    for candidate in found:
        cost = candidate.cost(n, num_classes, folds)
        if spent + cost <= budget:
            kept.append(candidate)
            spent += cost
    return kept or [min(found, key=lambda one: one.cost(n, num_classes, folds))]

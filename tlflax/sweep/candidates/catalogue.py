"""The heads that `model.head='auto'` tries, in a fixed order."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from tlflax.models.base.taps import Pooling, Tap
from tlflax.models.linear.representations import Normalization, Part, Representation
from tlflax.models.standard_heads import SMALLEST
from tlflax.sweep.candidates.fitted import Candidate
from tlflax.sweep.candidates.linear import LOGISTIC, RIDGE, Linear
from tlflax.sweep.candidates.similarity import ClassMeans, Neighbors
from tlflax.sweep.candidates.trained import RATES, Trained

_CELLS = 0.5**0.5  # weight of the cells of an earlier layer beside the last one
_PLACELESS = ('mean', 'max')  # poolings that leave no position
_WORDS: dict[Normalization, str] = {
    'raw': '',
    'row': ', unit rows',
    'standard': ', standardized',
}

Span = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Layout:
    """What the columns of the features are.

    Attributes:
        taps: What they consist of.
        columns: Of each tap.
        shape: Of the last layer's output for one image.
    """

    taps: tuple[Tap, ...]
    columns: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def last(self) -> str:
        """The last layer."""
        return self.taps[-1].layer

    def span(self, pooling: Pooling) -> Span | None:
        """Returns the first and the last column, excluded, of a tap of the last layer."""
        return self._spans.get(Tap(self.last, pooling))

    @property
    def earlier(self) -> list[Span]:
        """The columns of each tap of earlier layers that says where something is."""
        found = self._spans.items()
        return [s for tap, s in found if tap.layer != self.last and tap.pooling not in _PLACELESS]

    @property
    def averages(self) -> list[Span]:
        """The columns of each layer's average."""
        return [span for tap, span in self._spans.items() if tap.pooling == 'mean']

    @property
    def _spans(self) -> dict[Tap, Span]:
        stops = np.cumsum(self.columns).tolist()
        columns = zip(self.taps, self.columns, stops, strict=True)
        return {tap: (stop - count, stop) for tap, count, stop in columns}


def referee(layout: Layout) -> Linear:
    """Returns the cheap and good candidate by which other choices are judged."""
    roots = _roots(layout)
    if roots:
        return Linear(RIDGE, *roots[0])
    (tap, *_), stop = layout.taps, layout.columns[0]
    return _normalized(RIDGE, str(tap), (0, stop), 'raw')


def candidates(layout: Layout, *, mirrored: bool = False) -> list[Candidate]:
    """Returns the candidates for some features, in the order in which they are tried.

    Args:
        layout: What the features consist of.
        mirrored: Whether some are fitted to mirror images too.
    """
    last, flat, pooled = layout.last, layout.span('flatten'), layout.span('mean')
    roots = _roots(layout)
    averages, trained = _averages(layout.averages), _trained(layout)
    found: list[Candidate] = []
    found += [
        _normalized(RIDGE, words, span, 'raw')
        for words, span in ((f'{last} pooled', pooled), (last, flat))
        if span
    ]
    found += [Linear(RIDGE, *rows) for rows in roots]
    if mirrored:
        found += [Linear(RIDGE, *rows, mirrored=True) for rows in roots]
    found += averages[:1] + trained[:1]
    if flat:
        found += [_normalized(LOGISTIC, last, flat, 'row')]
    found += [Linear(LOGISTIC, *rows) for rows in roots[1:] + roots[:1]]
    if pooled:
        found += [_normalized(LOGISTIC, f'{last} pooled', pooled, 'row')]
    found += _similarity(last, pooled, flat)
    found += averages + _others(last, pooled, flat) + trained
    return list(dict.fromkeys(found))


def _normalized(solver: str, words: str, span: Span, normalization: Normalization) -> Linear:
    return Linear(solver, (Part(*span, normalization),), words + _WORDS[normalization])


def _roots(layout: Layout) -> list[tuple[Representation, str]]:
    """Returns the signed square roots of all layers, of the earlier ones and of the last one."""
    last, flat, earlier = layout.last, layout.span('flatten'), layout.earlier
    cells = tuple(Part(*span, 'power') for span in earlier)
    if not flat:
        return [(cells, 'roots of earlier layers')] if cells else []
    own = (Part(*flat, 'power'),)
    if not cells:
        return [(own, f'roots of {last}')]
    both = (*own, *(Part(*span, 'power', _CELLS) for span in earlier))
    return [
        (both, f'roots of {last} and earlier layers'),
        (cells, 'roots of earlier layers'),
        (own, f'roots of {last}'),
    ]


def _averages(spans: Sequence[Span]) -> list[Candidate]:
    """Returns models on the averages of several layers (after Evci et al. 2022, Head2Toe)."""
    if len(spans) < 2:
        return []
    roots = tuple(Part(*span, 'power') for span in spans)
    standard = tuple(Part(*span, 'standard') for span in spans)
    return [
        Linear(RIDGE, roots, 'roots of averages of all layers'),
        Linear(LOGISTIC, standard, 'averages of all layers, standardized'),
    ]


def _trained(layout: Layout) -> list[Candidate]:
    flat = layout.span('flatten')
    if not flat or len(layout.shape) != 3:
        return []
    side, part = min(layout.shape[:2]), Part(*flat, 'raw')
    fitting = [head for head in RATES if side >= SMALLEST[head]]
    return [Trained(head, part, layout.shape, layout.last) for head in fitting]


def _similarity(last: str, pooled: Span | None, flat: Span | None) -> list[Candidate]:
    found: list[Candidate] = []
    if pooled:
        words, part = f'{last} pooled', Part(*pooled, 'row')
        found += [ClassMeans(part, words), Neighbors(part, words)]
    if flat:
        found += [ClassMeans(Part(*flat, 'row'), last)]
    return found


def _others(last: str, pooled: Span | None, flat: Span | None) -> list[Candidate]:
    """Returns the other normalizations, the cheap ones first."""
    spans = [(words, span) for words, span in ((f'{last} pooled', pooled), (last, flat)) if span]
    order: list[tuple[str, Normalization]] = [
        (RIDGE, 'row'),
        (RIDGE, 'standard'),
        (LOGISTIC, 'raw'),
        (LOGISTIC, 'standard'),
    ]
    return [_normalized(solver, *span, kind) for span in spans for solver, kind in order]


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

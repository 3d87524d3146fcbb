"""What linear models are fitted to: one representation of images, with and without each fold."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from tlflax.models.linear import representations
from tlflax.models.linear.compression import Compressed, compress
from tlflax.models.linear.representations import Moments, Representation
from tlflax.models.linear.search import CrossValidate
from tlflax.models.linear.strengths import CrossValidated


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """The rows of one representation, prepared for solvers.

    Moments are those of the rows that a model is fitted on: moments of all rows would show it the
    held-out ones. So a standardized representation has other rows for each fold.

    Attributes:
        representation: What the rows are.
        label: i32[n].
        num_classes: Number of classes.
        fold: The fold of each row; -1: in the training side of every fold.
        whole: All rows.
        moments: Of each part of the representation, over all rows.
        without: For each fold, the rows normalized by the moments of the others; empty where
            nothing is standardized.
    """

    representation: Representation
    label: Int[np.ndarray, ' n']
    num_classes: int
    fold: Int[np.ndarray, ' n']
    whole: Compressed
    moments: Sequence[Moments | None]
    without: Sequence[Compressed]

    def cross_validate(
        self, solver: CrossValidate, strengths: Iterable[float]
    ) -> Iterator[CrossValidated]:
        """Solves for every strength, on all rows and without each fold."""
        if not self.without:
            yield from solver(self.whole, self.label, self.num_classes, self.fold, strengths)
            return
        folds = [np.where(self.fold == held, 0, -1) for held in range(len(self.without))]
        rows = [self.whole, *self.without]
        held = [np.full_like(self.fold, -1), *folds]
        paths = [
            solver(part, self.label, self.num_classes, own, copy)
            for part, own, copy in zip(rows, held, itertools.tee(strengths, len(rows)), strict=True)
        ]
        for whole, *parts in zip(*paths, strict=True):
            scores = whole.held_out.copy()
            for point, own in zip(parts, folds, strict=True):
                scores[own >= 0] = point.held_out[own >= 0]
            yield whole._replace(held_out=scores)

    def linear(
        self, features: Float[np.ndarray, 'n columns'], found: CrossValidated
    ) -> tuple[Float[np.ndarray, 'd num_classes'], Float[np.ndarray, ' num_classes']]:
        """Returns kernel and bias of a solution, for rows that are not standardized.

        Args:
            features: Those that the problem was prepared from.
            found: From `cross_validate`.
        """
        rows = _rows(self.representation, features, self.moments)
        kernel, bias = self.whole.kernel(rows, found.weights), found.bias
        start = 0
        for part, own in zip(self.representation, self.moments, strict=True):
            stop = start + part.stop - part.start
            if own is not None:
                mean, deviation = (np.asarray(array) for array in own)
                kernel[start:stop] /= deviation[:, None]
                bias = bias - part.weight * (mean @ kernel[start:stop])
            start = stop
        return kernel, bias


def prepare(
    representation: Representation,
    features: Float[np.ndarray, 'n columns'],
    label: Int[np.ndarray, ' n'],
    num_classes: int,
    fold: Int[np.ndarray, ' n'],
) -> Problem:
    """Returns the problem of a representation; see `Problem`."""
    device = jnp.asarray(features)
    moments = representations.fit(representation, device)
    without = []
    if any(own is not None for own in moments):
        for held in range(int(fold.max()) + 1):
            own = representations.fit(representation, device[fold != held])
            without.append(compress(_rows(representation, features, own)))
    whole = compress(_rows(representation, features, moments))
    return Problem(representation, label, num_classes, fold, whole, moments, without)


def _rows(
    representation: Representation,
    features: Float[np.ndarray, 'n columns'],
    moments: Sequence[Moments | None],
) -> Float[np.ndarray, 'n d']:
    return np.asarray(representations.apply(representation, jnp.asarray(features), moments))

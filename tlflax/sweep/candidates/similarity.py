"""Nearest class mean and nearest neighbors by cosine similarity."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from tlflax.models.ensemble_head import Branch
from tlflax.models.linear import neighbors
from tlflax.models.linear.representations import Part
from tlflax.sweep.candidates.fitted import Fitted, Training, calibrated

VOTES = (1, 3, 5, 10, 20, 50)
"""Numbers of neighbors that are tried."""


@dataclasses.dataclass(frozen=True)
class _OnUnitRows:
    """A candidate on one part of the features.

    Attributes:
        part: What it takes, as rows of unit norm.
        words: The same in words.
    """

    part: Part
    words: str

    @property
    def columns(self) -> int:
        """Length of a row."""
        return self.part.stop - self.part.start


@dataclasses.dataclass(frozen=True)
class ClassMeans(_OnUnitRows):
    """The class whose mean is most similar (Mensink et al. 2013); see `Candidate`."""

    @property
    def name(self) -> str:
        """What tables call it."""
        return f'nearest class mean, {self.words}'

    def cost(self, n: int, num_classes: int, folds: int) -> float:
        """See `Candidate`."""
        return 2.0 * n * self.columns * num_classes * (folds + 1)

    def fit(self, training: Training, rivals: Sequence[Fitted]) -> Fitted:
        """See `Candidate`."""
        del rivals
        rows = training.features[:, self.part.start : self.part.stop]
        label, classes = training.label, training.num_classes
        scores = neighbors.class_mean_scores(rows, label, classes, training.fold)
        factor, found, loss, accuracy = calibrated(scores, label)
        means = neighbors.class_means(rows, label, classes)
        params = {
            'kernel': jnp.asarray(means.T * np.float32(factor)),
            'bias': jnp.zeros(classes),
        }
        return Fitted(Branch((self.part,)), params, found, loss, accuracy, 'class means')


@dataclasses.dataclass(frozen=True)
class Neighbors(_OnUnitRows):
    """Votes of the most similar images (Wu et al. 2018, arXiv:1805.01978); see `Candidate`."""

    @property
    def name(self) -> str:
        """What tables call it."""
        return f'nearest neighbors, {self.words}'

    def cost(self, n: int, num_classes: int, folds: int) -> float:
        """See `Candidate`."""
        return len(VOTES) * 2.0 * n * n * (self.columns + num_classes)

    def fit(self, training: Training, rivals: Sequence[Fitted]) -> Fitted:
        """See `Candidate`."""
        del rivals
        rows = training.features[:, self.part.start : self.part.stop]
        label, classes, fold = training.label, training.num_classes, training.fold
        tried = []
        for votes in VOTES:
            scores = neighbors.neighbor_scores(rows, rows, label, classes, votes, fold, fold)
            scores[fold < 0] = np.nan
            tried.append((votes, *calibrated(scores, label)))
        votes, factor, found, loss, accuracy = min(tried, key=lambda one: one[3])
        votes = min(votes, len(rows))
        params = {
            'rows': jnp.asarray(neighbors.unit(rows)),
            'targets': jnp.eye(classes)[label],
            'factor': jnp.float32(factor),
        }
        branch = Branch((self.part,), 'knn', votes, (len(rows),))
        return Fitted(branch, params, found, loss, accuracy, f'{votes} neighbors')

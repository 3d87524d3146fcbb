"""Ridge and logistic regression on a representation, each along a path of strengths."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from tlflax.models.ensemble_head import Branch
from tlflax.models.linear import calibration, logistic_regression, ridge
from tlflax.models.linear.representations import Part, Representation
from tlflax.models.linear.search import CrossValidate, search
from tlflax.sweep.candidates.fitted import Fitted, Training

RIDGE, LOGISTIC = 'ridge', 'logistic regression'
SOLVERS: dict[str, CrossValidate] = {
    RIDGE: ridge.cross_validate,
    LOGISTIC: logistic_regression.cross_validate,
}
STRENGTHS = {RIDGE: tuple(np.logspace(0, -4, 9)), LOGISTIC: tuple(np.logspace(-2, -5.5, 8))}

_LARGEST_GRAM = 5000  # rows; with more, linear models work on the columns
_HOPELESS = 1.5  # times the loss of the best rival: ends the path of a dear solver
_ITERATIONS = 60  # of L-BFGS for a strength, about


@dataclasses.dataclass(frozen=True)
class Linear:
    """A linear model on a representation; see `Candidate`.

    Attributes:
        solver: A key of `SOLVERS`.
        representation: What it takes.
        words: The representation in words.
        mirrored: Whether it is fitted to mirror images too.
    """

    solver: str
    representation: Representation
    words: str
    mirrored: bool = False

    @property
    def name(self) -> str:
        """What tables call it."""
        return f'{self.solver}, {self.words}{", with mirror images" if self.mirrored else ""}'

    @property
    def columns(self) -> int:
        """Length of a row."""
        return sum(part.stop - part.start for part in self.representation)

    def cost(self, n: int, num_classes: int, folds: int) -> float:
        """See `Candidate`."""
        n *= 2 if self.mirrored else 1
        d, c, strengths = self.columns, num_classes, len(STRENGTHS[self.solver])
        few = 2 * n <= d and n <= _LARGEST_GRAM
        r = min(n, d) if few else d
        prepared = 2 * n * n * d + 10.0 * n**3 if few else 0.0
        repeats = 1
        if any(part.normalization == 'standard' for part in self.representation):
            repeats = folds + 1 if self.solver == RIDGE else 2
            prepared *= folds + 1
        if self.solver == RIDGE:
            smaller = min(n, r)
            return prepared + repeats * (10.0 * smaller**3 + strengths * 2.0 * n**3 / folds)
        return prepared + repeats * strengths * _ITERATIONS * 4.0 * n * r * c * (folds + 1)

    def fit(self, training: Training, rivals: Sequence[Fitted]) -> Fitted:
        """See `Candidate`."""
        bar = _HOPELESS * min((rival.loss for rival in rivals), default=np.inf)
        problem = training.problem(self.representation, mirrored=self.mirrored)
        found = search(
            lambda strengths: problem.cross_validate(SOLVERS[self.solver], strengths),
            training.label,
            training.fold,
            STRENGTHS[self.solver],
            bar if self.solver == LOGISTIC else np.inf,
        )
        kernel, bias = problem.linear(training.rows(mirrored=self.mirrored), found.best)
        factor, n = np.float32(found.factor), len(training.label)
        return Fitted(
            branch=Branch(tuple(map(_without_moments, self.representation))),
            params={'kernel': jnp.asarray(kernel * factor), 'bias': jnp.asarray(bias * factor)},
            log_probabilities=calibration.log_softmax(found.factor * found.best.held_out[:n]),
            loss=found.loss,
            accuracy=found.accuracy,
            setting=f'strength {found.best.strength:.3g}',
        )


def _without_moments(part: Part) -> Part:
    """Standardization is a part of the kernel."""
    if part.normalization == 'standard':
        return dataclasses.replace(part, normalization='raw')
    return part

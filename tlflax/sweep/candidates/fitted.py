"""What a candidate is fitted to, and what comes of it."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Int

from tlflax.models.ensemble_head import Branch
from tlflax.models.linear import calibration, problem
from tlflax.models.linear.problem import Problem
from tlflax.models.linear.representations import Representation


@dataclasses.dataclass(frozen=True, eq=False)
class Training:
    """The training images as candidates see them.

    Attributes:
        features: f32[n, columns].
        label: i32[n].
        num_classes: Number of classes.
        fold: The fold of each image; -1: in the training side of every fold.
        mirrored: The features of the mirror images; None: they are not used.
    """

    features: Float[np.ndarray, 'n columns']
    label: Int[np.ndarray, ' n']
    num_classes: int
    fold: Int[np.ndarray, ' n']
    mirrored: Float[np.ndarray, 'n columns'] | None = None
    _problems: dict[tuple[Representation, bool], Problem] = dataclasses.field(
        default_factory=dict, repr=False
    )

    def problem(self, representation: Representation, *, mirrored: bool) -> Problem:
        """Returns what linear models on a representation are fitted to.

        Args:
            representation: What the rows are.
            mirrored: Fit to the mirror images too, each in the fold of its image.
        """
        key = representation, mirrored
        if key not in self._problems:
            copies = 2 if mirrored else 1
            made = problem.prepare(
                representation,
                self.rows(mirrored=mirrored),
                np.tile(self.label, copies),
                self.num_classes,
                np.tile(self.fold, copies),
            )
            if made.whole.combine is None:  # as large as the features
                return made
            self._problems[key] = made
        return self._problems[key]

    def rows(self, *, mirrored: bool) -> Float[np.ndarray, 'm columns']:
        """Returns the features, followed by those of the mirror images if asked for."""
        if not mirrored:
            return self.features
        if self.mirrored is None:
            raise ValueError('the mirror images have no features here')
        return np.concatenate([self.features, self.mirrored])


class Fitted(NamedTuple):
    """A candidate after its search.

    Attributes:
        branch: Its structure as a branch of a head.
        params: The parameters of the branch, fitted to all images.
        log_probabilities: f64[n, num_classes], by models that did not see the image; NaN for an
            image in no fold, and in a fold that was not computed.
        loss: Their mean cross-entropy, in nats.
        accuracy: Of the held-out images, in 0..1.
        setting: What was searched: a strength, a number of neighbors, a number of steps.
        complete: Whether every fold was computed.
    """

    branch: Branch
    params: dict[str, Any]
    log_probabilities: Float[np.ndarray, 'n num_classes']
    loss: float
    accuracy: float
    setting: str
    complete: bool = True

    def losses(self, label: Int[np.ndarray, ' n']) -> Float[np.ndarray, ' n']:
        """Returns the cross-entropy of each image; NaN where it was not held out."""
        return -self.log_probabilities[np.arange(len(label)), label]

    def scaled(self, factor: float) -> 'Fitted':
        """Returns the same with its scores times a factor, but for `loss`."""
        held = 'factor' in self.params
        params = {
            name: value * factor if name == 'factor' or not held else value
            for name, value in self.params.items()
        }
        scores = calibration.log_softmax(factor * self.log_probabilities)
        return self._replace(params=params, log_probabilities=scores)


class Candidate(Protocol):
    """A kind of head that may be chosen."""

    @property
    def name(self) -> str:
        """What tables call it."""

    @property
    def columns(self) -> int:
        """Length of a row; about what prediction costs, for each class."""

    def cost(self, n: int, num_classes: int, folds: int) -> float:
        """Returns about how many floating-point operations its search takes.

        Args:
            n: Training images.
            num_classes: Number of classes.
            folds: Of the cross-validation.
        """

    def fit(self, training: Training, rivals: Sequence[Fitted]) -> Fitted:
        """Searches its setting by cross-validation and fits it to all images.

        Args:
            training: The images.
            rivals: What was fitted before; a dear candidate may give up against them.
        """


def calibrated(
    scores: Float[np.ndarray, 'n num_classes'], label: Int[np.ndarray, ' n']
) -> tuple[float, Float[np.ndarray, 'n num_classes'], float, float]:
    """Calibrates held-out scores.

    Args:
        scores: NaN for images that were not held out.
        label: The class of each image.

    Returns:
        The factor of the scores; log-probabilities, their loss and their accuracy.
    """
    held_out = np.isfinite(scores).all(1)
    factor = calibration.fit_factor(scores[held_out], label[held_out])
    found = calibration.log_softmax(factor * scores)
    own, right = found[held_out], label[held_out]
    loss = -own[np.arange(len(right)), right].mean()
    return factor, found, float(loss), float((own.argmax(1) == right).mean())

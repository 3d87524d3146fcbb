"""Heads trained by steps on the features, for a number of steps that cross-validation finds."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from tlflax.data.augment import sampling
from tlflax.models import heads
from tlflax.models.base.modules import Static, Variables
from tlflax.models.ensemble_head import Branch
from tlflax.models.linear.representations import Part
from tlflax.sweep.candidates.fitted import Fitted, Training, calibrated

RATES = {'mlp': 1e-3, 'conv': 2e-3, 'gap_linear': 1e-2}
"""The heads that are tried, and the peak of each one's one-cycle schedule."""

_STEPS = (200, 600, 1800, 5400)  # of training; the next number while the one before gains
_FEW = 600  # steps that are tried however few the images are; more only up to one for each image
_GAIN = 0.005  # by which part the loss has to be lower
_BATCH = 32
_DECAY = 1e-2  # of AdamW, per unit of learning rate
_UNITS = 64
_BEHIND = 2.0  # standard errors behind a rival on the first fold after which a head gives up
_CHUNK = 512  # images at once in evaluation


@dataclasses.dataclass(frozen=True)
class Trained:
    """A head of `tlflax.models.standard_heads`; see `Candidate`.

    AdamW with a one-cycle schedule (Smith & Topin 2017, arXiv:1708.07120) over a number of steps,
    not of epochs. After the first fold it gives up where it is clearly behind a rival (Maron &
    Moore 1994, 'Hoeffding races').

    Attributes:
        head: A key of `RATES`.
        part: The feature map, flattened.
        shape: Of the feature map for one image.
        layer: Its name.
    """

    head: str
    part: Part
    shape: tuple[int, ...]
    layer: str

    @property
    def name(self) -> str:
        """What tables call it."""
        return f'{self.head} trained by steps, {self.layer}'

    @property
    def columns(self) -> int:
        """Length of a row."""
        return self.part.stop - self.part.start

    def cost(self, n: int, num_classes: int, folds: int) -> float:
        """See `Candidate`; of the first fold, as most do not go on."""
        del n, folds
        *positions, channels = self.shape
        products = {
            'gap_linear': self.columns + channels * num_classes,
            'mlp': self.columns * _UNITS,
            'conv': self.columns * 9 * 32 + int(np.prod(positions)) // 4 * 32 * 9 * 64,
        }[self.head]
        return 6.0 * products * _BATCH * _STEPS[0]

    def fit(self, training: Training, rivals: Sequence[Fitted]) -> Fitted:
        """See `Candidate`."""
        scale = float(np.sqrt(np.square(training.features[:, self._columns]).mean())) or 1.0
        branch = Branch((self._scaled(1 / scale),), self.head, _UNITS, self.shape)
        fitting = _Fitting(self, training, branch, scale)
        folds = np.unique(training.fold[training.fold >= 0]).tolist()
        first = fitting.assess(fitting.scores(_STEPS[0], folds[:1]), _STEPS[0], complete=False)
        if any(_is_behind(first, rival, training.label) for rival in rivals):
            return first
        best = fitting.assess(fitting.scores(_STEPS[0], folds), _STEPS[0])
        chosen = _STEPS[0]
        most = max(_FEW, len(training.label))
        for steps in [steps for steps in _STEPS[1:] if steps <= most]:
            longer = fitting.assess(fitting.scores(steps, folds), steps)
            if longer.loss > best.loss * (1 - _GAIN):
                break
            best, chosen = longer, steps
        return best._replace(params=fitting.params(chosen, best))

    @property
    def _columns(self) -> slice:
        return slice(self.part.start, self.part.stop)

    def _scaled(self, factor: float) -> Part:
        return dataclasses.replace(self.part, weight=float(np.float32(factor)))


def _is_behind(first: Fitted, rival: Fitted, label: Int[np.ndarray, ' n']) -> bool:
    """Whether the loss on the first fold is higher by more than two standard errors."""
    excess = first.losses(label) - rival.losses(label)
    excess = excess[np.isfinite(excess)]
    if len(excess) < 2:
        return False
    return bool(excess.mean() > _BEHIND * excess.std(ddof=1) / np.sqrt(len(excess)))


@dataclasses.dataclass(frozen=True, eq=False)
class _Fitting:
    """Trains one head on the training images, and without each fold.

    Attributes:
        candidate: The head.
        training: The images.
        branch: The head as a branch.
        scale: Root mean square of the features.
    """

    candidate: Trained
    training: Training
    branch: Branch
    scale: float

    @functools.cached_property
    def _features(self) -> Float[Array, 'n ...']:
        rows = self.training.features[:, self.candidate._columns] * np.float32(1 / self.scale)
        return jnp.asarray(rows.reshape(-1, *self.candidate.shape))

    @functools.cached_property
    def _options(self) -> dict[str, Any]:
        return {'units': _UNITS, 'dropout': 0.0}

    @functools.cached_property
    def _static(self) -> Static:
        name, shape = self.candidate.head, self.candidate.shape
        return heads.static(name, shape, self.training.num_classes, **self._options)

    def _train(self, steps: int, used: Int[np.ndarray, ' m']) -> Variables:
        """Trains on some of the images; the order is a function of their number alone."""
        name, shape = self.candidate.head, self.candidate.shape
        first = heads.init(
            name, shape, self.training.num_classes, jax.random.key(0), **self._options
        )
        epochs = -(-steps * _BATCH // len(used))
        order = np.concatenate([sampling.permutation(0, e, len(used)) for e in range(epochs)])
        rows = used[order[: steps * _BATCH]].reshape(steps, _BATCH)
        label = jnp.asarray(self.training.label)
        params = train(self._static, first, self._features, label, rows, RATES[name])
        return Variables(params, first.state)

    def scores(self, steps: int, folds: Sequence[int]) -> Float[np.ndarray, 'n num_classes']:
        """Returns the scores of images in some folds, each by the head trained without its fold."""
        fold = self.training.fold
        found = np.full((len(fold), self.training.num_classes), np.nan, np.float32)
        for held in folds:
            trained = self._train(steps, np.flatnonzero(fold != held))
            rows = np.flatnonzero(fold == held)
            for start in range(0, len(rows), _CHUNK):
                own = rows[start : start + _CHUNK]
                padded = np.pad(own, (0, _CHUNK - len(own)), mode='edge')
                scores = _evaluate(self._static, trained, self._features[padded])
                found[own] = np.asarray(scores)[: len(own)]
        return found

    def assess(
        self, scores: Float[np.ndarray, 'n num_classes'], steps: int, *, complete: bool = True
    ) -> Fitted:
        """Returns the outcome of held-out scores, without parameters."""
        factor, found, loss, accuracy = calibrated(scores, self.training.label)
        setting = f'{steps} steps' if complete else f'{steps} steps, one fold only'
        params = {'factor': jnp.float32(factor)}
        return Fitted(self.branch, params, found, loss, accuracy, setting, complete)

    def params(self, steps: int, found: Fitted) -> dict[str, Any]:
        """Trains on all images and returns the parameters of the branch."""
        everything = np.arange(len(self.training.label))
        return {**found.params, 'head': self._train(steps, everything).params}


@functools.partial(jax.jit, static_argnames=('static', 'rate'))
def train(
    static: Static,
    first: Variables,
    features: Float[Array, 'n ...'],
    label: Int[Array, ' n'],
    rows: Int[Array, 'steps b'],
    rate: float,
) -> dict[str, Any]:
    """Minimizes cross-entropy by AdamW with a one-cycle schedule, a step for each row of `rows`.

    Args:
        static: The head.
        first: Its first variables.
        features: Of all images.
        label: The class of each.
        rows: The images of each batch.
        rate: The peak learning rate, reached after 30 % of the steps.

    Returns:
        The trained parameters.
    """
    schedule = optax.cosine_onecycle_schedule(len(rows), rate)
    tx = optax.adamw(schedule, weight_decay=_DECAY)

    def loss(params: dict[str, Any], batch: Array) -> Array:
        logits, _ = static.apply(Variables(params, first.state), features[batch])
        return optax.softmax_cross_entropy_with_integer_labels(logits, label[batch]).mean()

    def step(carry: tuple[Any, optax.OptState], batch: Array) -> tuple[Any, None]:
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (first.params, tx.init(first.params)), rows)
    return params


@functools.partial(jax.jit, static_argnames=('static',))
def _evaluate(
    static: Static, variables: Variables, features: Float[Array, 'n ...']
) -> Float[Array, 'n num_classes']:
    return static.apply(variables, features)[0]

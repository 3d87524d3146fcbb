"""The learning-rate range test (Smith 2015, arXiv:1506.01186).

The rate rises exponentially from step to step, and what the training loss does tells which rates
are too low, which serve and which are too high. As in fastai's `lr_find`, the test ends where the
smoothed loss is more than four times the best.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Float

from tlflax.features.batches import Source
from tlflax.train.finders import batches
from tlflax.train.setup import Run
from tlflax.utils.errors import UserError
from tlflax.utils.progress import progress

LOW, HIGH = 1e-7, 10.0
STEPS = 160  # 20 for each factor of ten
DIVERGED = 4.0  # times the best smoothed loss
SMOOTHING = 0.9  # of the loss: the share of the past
_FIRST = STEPS // 10  # steps that are left out: their average is one of few
_AROUND = 4  # steps on either side that the slope is taken over
_FALL = 0.05  # least share of the loss that has to go for a suggestion


class RangeTest(NamedTuple):
    """The losses of a range test.

    Attributes:
        rate: The learning rate of each step.
        loss: Of each step's batch, before its update.
        smoothed: The loss, smoothed.
    """

    rate: Float[np.ndarray, ' n']
    loss: Float[np.ndarray, ' n']
    smoothed: Float[np.ndarray, ' n']


class Suggestion(NamedTuple):
    """Suggested learning rates, of two significant digits.

    Attributes:
        steepest: Where the smoothed loss falls fastest.
        valley: What fastai's valley algorithm gives, which is more cautious.
        lowest: Where the smoothed loss is lowest, already too high to train with.
    """

    steepest: float
    valley: float
    lowest: float


def reference_rate(run: Run) -> float:
    """Returns the rate that the test varies: of all labels that have none of their own.

    Raises:
        UserError: It is zero.
    """
    optim = run.config.optim
    if not optim.learning_rate:
        raise UserError(
            'nothing is trained with a learning rate of 0',
            where='config.optim.learning_rate',
            fix='give any other; rates of single labels keep their ratio to it',
        )
    return optim.learning_rate


def rising(run: Run, reference: float, count: int = STEPS) -> Run:
    """Returns the run with a rate that rises from `LOW` to `HIGH` in `count` steps.

    The update of every optimizer is proportional to its rate, so it is multiplied by a factor. The
    ratio of the labels' rates stays.

    Args:
        run: One with a constant schedule.
        reference: The rate that stands for all of the run's.
        count: Number of steps.
    """
    growth = (HIGH / LOW) ** (1 / (count - 1))
    factor = optax.scale_by_schedule(lambda step: LOW / reference * growth**step)
    tx = optax.chain(run.learner.tx, factor)
    learner = dataclasses.replace(run.learner, tx=tx)
    return dataclasses.replace(run, learner=learner, runner=dataclasses.replace(run.runner, tx=tx))


def range_test(run: Run, source: Source, count: int = STEPS) -> RangeTest:
    """Takes the steps of the test, until the loss diverges.

    Args:
        run: From `rising`.
        source: The training split.
        count: As for `rising`.

    Raises:
        UserError: The loss is not finite from the start.
    """
    state, losses = batches.first_state(run), list[float]()
    average, best, smoothed = 0.0, math.inf, list[float]()
    size = run.config.train.batch_size
    with progress('learning rates', count * size) as tick:
        for number, batch in zip(range(count), batches.endless(run, source), strict=False):
            state, sums = batches.step(run, state, batch)
            loss = float(sums.loss) / max(float(sums.examples), 1)
            if not math.isfinite(loss):
                break
            average = SMOOTHING * average + (1 - SMOOTHING) * loss
            losses.append(loss)
            smoothed.append(average / (1 - SMOOTHING ** (number + 1)))
            best = min(best, smoothed[-1])
            tick(size)
            if number >= _FIRST and smoothed[-1] > DIVERGED * best:
                break
    jax.block_until_ready(state)
    if len(losses) <= _FIRST:
        raise UserError(
            f'the training loss is not finite after {len(losses)} steps at rates below '
            f'{LOW * (HIGH / LOW) ** (_FIRST / (count - 1)):.1g}',
            where='config.optim and config.loss',
            fix='check the images, the weights and their preprocessing',
        )
    rates = LOW * (HIGH / LOW) ** (np.arange(len(losses)) / (count - 1))
    return RangeTest(rates, np.array(losses), np.array(smoothed))


def suggest(test: RangeTest) -> Suggestion | None:
    """Returns where the smoothed loss falls fastest, before it is lowest; None if it hardly falls.

    The slope is that of a line through nine points, about half a factor of ten. As the smoothing
    looks back, by ten steps on average, the rate is higher than where the loss itself falls
    fastest, and nearer to the highest that trains well.
    """
    start = test.smoothed[_FIRST]
    lowest = int(np.argmin(test.smoothed))
    if lowest <= _FIRST or test.smoothed[lowest] > (1 - _FALL) * start:
        return None
    slopes = _slopes(test.smoothed)
    steepest = _FIRST + int(np.argmin(slopes[_FIRST : lowest + 1]))
    kept = test.smoothed[_FIRST : lowest + 1]
    valley = longest_descent(kept)
    middle = _FIRST + valley[0] + (valley[-1] - valley[0]) // 2
    rates = (test.rate[i] for i in (steepest, middle, lowest))
    return Suggestion(*(float(f'{rate:.2g}') for rate in rates))


def _slopes(values: Float[np.ndarray, ' n']) -> Float[np.ndarray, ' n']:
    """Returns the slope of the least-squares line through each point and those around it."""
    offsets = np.arange(-_AROUND, _AROUND + 1)
    padded = np.pad(values, _AROUND, mode='edge')
    windows = np.lib.stride_tricks.sliding_window_view(padded, len(offsets))
    return windows @ offsets / np.sum(offsets**2)


def longest_descent(values: Sequence[float] | Float[np.ndarray, ' n']) -> list[int]:
    """Returns the positions of the longest decreasing subsequence; the first of equals.

    Its middle is the suggestion of fastai's `valley`.
    """
    length, before = [1] * len(values), [-1] * len(values)
    for i in range(len(values)):
        for j in range(i):
            if values[i] < values[j] and length[j] + 1 > length[i]:
                length[i], before[i] = length[j] + 1, j
    found, at = list[int](), int(np.argmax(length)) if len(values) else -1
    while at >= 0:
        found.append(at)
        at = before[at]
    return found[::-1]

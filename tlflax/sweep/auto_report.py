"""What `model.head='auto'` tried, for people and as `auto.json` and `auto.csv`."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from tlflax.models.linear import ensemble
from tlflax.models.linear.calibration import cross_entropy
from tlflax.sweep.candidates.fitted import Candidate, Fitted, Training
from tlflax.sweep.trials import FOLDS
from tlflax.train.metrics.proportions import wilson_interval
from tlflax.utils.files import JsonObject, csv_text

_COLUMNS = ('candidate', 'weight', 'cv_accuracy', 'low', 'high', 'cv_loss', 'setting', 'seconds')


class Tried(NamedTuple):
    """A candidate with the best model of its search.

    Attributes:
        candidate: The candidate.
        fitted: Its best model.
        seconds: That the search took.
    """

    candidate: Candidate
    fitted: Fitted
    seconds: float


def make(
    tried: Sequence[Tried],
    counts: Int[np.ndarray, ' m'],
    factor: float,
    training: Training,
    dropped: Sequence[str],
) -> JsonObject:
    """Returns the contents of `auto.json`.

    Args:
        tried: The candidates.
        counts: How often each counts in the ensemble.
        factor: Of their scores there.
        training: The images.
        dropped: The names of those that were too dear.
    """
    held_out = training.fold >= 0
    label, n = training.label[held_out], int(held_out.sum())
    chosen = [one.fitted for one, count in zip(tried, counts, strict=True) if count]
    scores = np.stack([one.scaled(factor).log_probabilities[held_out] for one in chosen])
    mean = ensemble.mean(scores, counts[counts > 0])
    right, loss = int((mean.argmax(1) == label).sum()), cross_entropy(label, mean)
    complete = [one for one in tried if one.fitted.complete]
    best = max(complete, key=lambda one: (one.fitted.accuracy, -one.fitted.loss))
    why = (
        f'the mean of {len(chosen)} of {len(tried)} candidates has the lowest cross-validated '
        f'loss, {loss:.4f}, with accuracy {right / n:.4f}; the most accurate candidate alone '
        f'({best.candidate.name}) has {best.fitted.loss:.4f} and {best.fitted.accuracy:.4f}'
    )
    weights = (counts / counts.sum()).tolist()
    return {
        'why': why,
        'folds': FOLDS,
        'images': n,
        'cv_accuracy': right / n,
        'cv_accuracy_interval': list(wilson_interval(right, n)),
        'cv_loss': loss,
        'candidates': [_row(one, weight) for one, weight in zip(tried, weights, strict=True)],
        'not_tried': list(dropped),
    }


def _row(one: Tried, weight: float) -> JsonObject:
    fitted = one.fitted
    n = int(np.isfinite(fitted.log_probabilities).all(1).sum())
    low, high = wilson_interval(round(fitted.accuracy * n), n)
    numbers = (weight, fitted.accuracy, low, high, fitted.loss)
    row = (one.candidate.name, *map(float, numbers), fitted.setting, one.seconds)
    return dict(zip(_COLUMNS, row, strict=True))


def format_csv(rows: Sequence[JsonObject]) -> str:
    """Returns the table of candidates as CSV."""
    return csv_text(rows, _COLUMNS)


def format_table(report: JsonObject) -> str:
    """Shows for people what was tried."""
    lines = ['weight  accuracy  (95 % interval)     loss  candidate (setting)']
    for row in report['candidates']:
        interval = f'({row["low"]:.4f} to {row["high"]:.4f})'
        lines.append(
            f'{row["weight"]:6.2f}  {row["cv_accuracy"]:8.4f}  {interval}  {row["cv_loss"]:7.4f}'
            f'  {row["candidate"]} ({row["setting"]})'
        )
    if report['not_tried']:
        lines.append(f'too dear for so many images: {", ".join(report["not_tried"])}')
    lines += map(_shown, report['trials'])
    return '\n'.join([*lines, report['why']])


def _shown(trial: JsonObject) -> str:
    mark = ' (chosen)' if trial['chosen'] else ''
    numbers = f'accuracy {trial["accuracy"]:.4f}, loss {trial["loss"]:.4f}'
    return f'{trial["key"]} {trial["value"]}: {numbers}{mark}'

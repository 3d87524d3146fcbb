"""What the folds of a cross-validation say together, as pure functions."""

import math
from collections.abc import Sequence

import numpy as np
import scipy.stats
from jaxtyping import Float

from tlflax.data.table import ImageTable
from tlflax.inference.evaluation import summarize
from tlflax.train.metrics.proportions import wilson_interval
from tlflax.train.result import calibrate
from tlflax.utils.files import JsonObject

METRICS = ('accuracy', 'loss', 'balanced_accuracy', 'macro_f1', 'expected_calibration_error')
_LEVEL = 0.95


def corrected_interval(
    values: Sequence[float], held_out: float, trained: float
) -> tuple[float, float]:
    """Returns the 95 % interval of the mean over the folds of one or several cross-validations.

    Folds share most of their training images, so their variance alone is too small. It is
    corrected as by Nadeau & Bengio (2003), for repeated cross-validation (Bouckaert & Frank 2004):
    the squared standard error is (1 / J + held_out / trained) times the variance of the J values,
    and t has J - 1 degrees of freedom.

    Args:
        values: Of each fold, at least two.
        held_out: Images of a fold, on average.
        trained: Images that its classifier was trained on, on average.
    """
    count = len(values)
    scale = math.sqrt((1 / count + held_out / trained) * float(np.var(values, ddof=1)))
    half = float(scipy.stats.t.ppf((1 + _LEVEL) / 2, count - 1)) * scale
    mean = float(np.mean(values))
    return mean - half, mean + half


def over_folds(rows: Sequence[JsonObject]) -> JsonObject:
    """Returns `mean`, `low` and `high` of each metric over the folds; see `corrected_interval`.

    No limit lies outside of the values that a metric can have.

    Args:
        rows: Of each fold the metrics, `num_examples` and `train_examples`.
    """
    held_out, trained = (
        float(np.mean([row[key] for row in rows])) for key in ('num_examples', 'train_examples')
    )
    found = {}
    for name in METRICS:
        values = [row[name] for row in rows]
        low, high = corrected_interval(values, held_out, trained)
        most = math.inf if name == 'loss' else 1.0
        mean = float(np.mean(values))
        found[name] = {'mean': mean, 'low': max(low, 0.0), 'high': min(high, most)}
    return found


def pooled(
    table: ImageTable, probabilities: Float[np.ndarray, 'n classes'], repeats: int
) -> tuple[JsonObject, JsonObject | None]:
    """Evaluates all out-of-fold predictions together.

    Args:
        table: The images, each `repeats` times.
        probabilities: The prediction for each, by the classifier that it was held out from.
        repeats: Each image counts once in the interval of the accuracy.

    Returns:
        The metrics, and what `tlflax.train.result.calibrate` says of the predictions.
    """
    found = summarize(probabilities, table).metrics
    images = len(table) // repeats
    right = round(found['accuracy'] * images)
    found['accuracy_interval'] = list(wilson_interval(right, images))
    return found, calibrate(probabilities, table)


def format_folds(rows: Sequence[JsonObject], means: JsonObject) -> str:
    """Shows the metrics of each fold, their means and the intervals of these, for people."""
    titles = ('accuracy', 'loss', 'balanced', 'macro F1', 'calibration error')
    wide = max(len('95 % from'), *(len(row['workdir']) for row in rows))
    lines = [f'{"fold":{wide}}  images  ' + '  '.join(f'{title:>8}' for title in titles)]

    def line(name: str, count: int | str, values: Sequence[float | None]) -> str:
        cells = (
            f'{math.nan if value is None else value:{max(8, len(title))}.4f}'
            for value, title in zip(values, titles, strict=True)
        )
        return f'{name:{wide}}  {count:>6}  ' + '  '.join(cells)

    for row in rows:
        lines.append(line(row['workdir'], row['num_examples'], [row[name] for name in METRICS]))
    for name, key in (('mean', 'mean'), ('95 % from', 'low'), ('to', 'high')):
        lines.append(line(name, '', [means[metric][key] for metric in METRICS]))
    return '\n'.join(lines)

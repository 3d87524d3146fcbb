"""95 % intervals of the metrics of a classifier's predictions.

They say how far a metric would vary with other images of the same kind, for the same classifier.

- Proportions (accuracy, top-5 accuracy, each class's precision and recall) have Wilson's interval.
  A class's F1 is 2 J / (1 + J), where J is the share of right examples among those that are of the
  class or are predicted as it, so its interval follows from Wilson's of J. Unlike the bootstrap's,
  these intervals have a width where all examples are right.
- All others have the percentile interval of the bootstrap (Efron 1979): the 2.5 and 97.5 %
  quantiles over 10,000 resamples of the images (fewer beyond 10,000 images). Where no image is
  wrong, no resample has a wrong one, and the intervals of balanced accuracy and macro F1 have no
  width. That of the calibration error is corrected for its bias (see `bootstrap`).

Images of one unit (copies of one file, or a group) are not independent. They are resampled
together, and Wilson's interval counts them as fewer.
"""

import numpy as np
from jaxtyping import Float, Float64, Int

from tlflax.train.metrics.bootstrap import bootstrap_intervals
from tlflax.train.metrics.proportions import share_intervals
from tlflax.train.metrics.scores import in_top


def intervals(
    labels: Int[np.ndarray, ' n'],
    probabilities: Float[np.ndarray, 'n classes'],
    unit: Int[np.ndarray, ' n'],
) -> dict[str, list[float] | None]:
    """Returns the intervals of the metrics of all classes together.

    Args:
        labels: The true classes.
        probabilities: Each example's predicted distribution.
        unit: The number of each example's unit; see `resampling.unit_numbers`.

    Returns:
        [low, high] of `accuracy`, `top5_accuracy` (for more than 5 classes) and `BOOTSTRAPPED`;
        None where a metric is not defined.
    """
    right = {'accuracy': probabilities.argmax(-1) == labels}
    if probabilities.shape[1] > 5:
        right['top5_accuracy'] = in_top(labels, probabilities, 5)
    one = np.zeros(len(labels), np.int64)
    shares = {name: share_intervals(of, one, unit, 1)[0].tolist() for name, of in right.items()}
    return {**shares, **bootstrap_intervals(labels, probabilities, unit)}


def class_intervals(
    labels: Int[np.ndarray, ' n'],
    predicted: Int[np.ndarray, ' n'],
    unit: Int[np.ndarray, ' n'],
    classes: int,
) -> dict[str, Float64[np.ndarray, 'classes 2']]:
    """Returns the intervals of each class's precision, recall and F1."""
    right = labels == predicted
    wrong = ~right
    of_either = share_intervals(
        np.concatenate([right, right[wrong]]),
        np.concatenate([labels, predicted[wrong]]),
        np.concatenate([unit, unit[wrong]]),
        classes,
    )
    return {
        'precision': share_intervals(right, predicted, unit, classes),
        'recall': share_intervals(right, labels, unit, classes),
        'f1': 2 * of_either / (1 + of_either),
    }

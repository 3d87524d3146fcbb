"""Areas under ROC curves, and what they are in resamples."""

import math

import numpy as np
from jaxtyping import Float, Float32, Float64, Int

from tlflax.train.metrics.resampling import Columns, Statistic

_BLOCK = 2**22  # values of an array at once: bounds memory
_EXACT = 500  # images: up to so many, the areas of each resample are computed exactly


def auroc(
    labels: Int[np.ndarray, ' n'], probabilities: Float[np.ndarray, 'n classes']
) -> Float64[np.ndarray, ' classes']:
    """Returns the area under each class's ROC curve, the class against all others.

    It is the chance that an example of the class gets a higher probability of it than another
    example does; a tie counts half (Mann & Whitney 1947). NaN where the class has no examples, or
    no others.
    """
    n, classes = probabilities.shape
    areas = np.full(classes, math.nan)
    by_label = np.argsort(labels, kind='stable')
    ends = np.cumsum(np.bincount(labels, minlength=classes))
    step = max(1, _BLOCK // max(n, 1))
    for start in range(0, classes, step):
        block = np.sort(probabilities[:, start : start + step].T, axis=1)
        for label, ascending in enumerate(block, start=start):
            rows = by_label[ends[label - 1] if label else 0 : ends[label]]
            positives, negatives = len(rows), n - len(rows)
            if positives and negatives:
                own = probabilities[rows, label]
                below = np.searchsorted(ascending, own, 'left')
                upto = np.searchsorted(ascending, own, 'right')
                wins = (below + upto).sum() / 2 - positives**2 / 2  # less those among themselves
                areas[label] = wins / (positives * negatives)
    return areas


def resampled_macro_auroc(
    labels: Int[np.ndarray, ' n'], probabilities: Float[np.ndarray, 'n classes']
) -> Statistic:
    """Returns what computes the mean of the defined areas in resamples.

    Up to 500 images, it counts the pairs of examples of each resample. Beyond, it is the
    first-order expansion of the mean area, which is a mean over examples (see `_influences`).
    """
    if len(labels) <= _EXACT:
        return _exact(labels, probabilities)
    area, influences = _influences(labels, probabilities)
    weights = influences.astype(np.float32)

    def first_order(times: Float32[np.ndarray, 'r n']) -> Float64[np.ndarray, 'r 1']:
        change = (times @ weights / times.sum(1)).astype(np.float64)
        return np.clip(area + change, 0, 1)[:, None]

    return first_order


def _exact(
    labels: Int[np.ndarray, ' n'], probabilities: Float[np.ndarray, 'n classes']
) -> Statistic:
    """Counts pairs: `wins[j, i]` is 1 where i beats j at i's class, 1/2 where they are equal."""
    found, label = np.unique(labels, return_inverse=True)
    scores = probabilities[:, labels]
    own = scores.diagonal()
    wins = (own > scores) + np.float32(0.5) * (own == scores)
    wins *= label[:, None] != label
    of_class = Columns.of(label, np.ones(len(label), bool))

    def statistic(times: Float32[np.ndarray, 'r n']) -> Float64[np.ndarray, 'r 1']:
        won = of_class.sums((times @ wins) * times, len(found))
        ours = of_class.sums(times, len(found))
        pairs = ours * (times.sum(1, keepdims=True) - ours)
        areas = np.divide(won, pairs, out=np.zeros(pairs.shape), where=pairs > 0)
        defined = (pairs > 0).sum(1)
        mean = np.full(len(times), math.nan)
        return np.divide(areas.sum(1), defined, out=mean, where=defined > 0)[:, None]

    return statistic


def _influences(
    labels: Int[np.ndarray, ' n'], probabilities: Float[np.ndarray, 'n classes']
) -> tuple[float, Float64[np.ndarray, ' n']]:
    """Returns the mean of the defined areas, and how it changes with the weight of each example.

    For a class with P examples, an example's placement value is the share of the others that it
    beats; another example's is the share of the class that beats it (DeLong et al. 1988). The area
    is the mean of either kind, and to first order its change is the sum of the changes of the two.
    Influences have mean 0. NaN and zeros where no area is defined.
    """
    n = len(labels)
    influences, areas = np.zeros(n), []
    for label in np.unique(labels):
        own, scores = labels == label, probabilities[:, label]
        positives = int(own.sum())
        if positives == n:
            continue
        order = np.argsort(scores[own], kind='stable')
        ascending, others = scores[own][order], scores[~own]
        below, upto = (np.searchsorted(ascending, others, side) for side in ('left', 'right'))
        beaten = (np.bincount(below, minlength=positives + 1).cumsum() - 0.0)[:-1]
        beaten += np.bincount(upto, minlength=positives + 1).cumsum()[:-1]
        placed = np.empty(positives)
        placed[order] = beaten / 2 / (n - positives)
        area = placed.mean()
        influences[own] += (placed - area) * n / positives
        influences[~own] += (1 - (below + upto) / 2 / positives - area) * n / (n - positives)
        areas.append(area)
    return (float(np.mean(areas)) if areas else math.nan), influences / max(len(areas), 1)

"""Compares runs on the same images: what each reaches and costs, and which is better."""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from tlflax.report.comparison.paired import exact_p_value, holm, mean_intervals
from tlflax.report.comparison.shared import Shared
from tlflax.report.gather.predictions import Predictions
from tlflax.train.metrics.resampling import unit_numbers
from tlflax.train.metrics.scores import cross_entropies
from tlflax.train.metrics.summary import summary
from tlflax.utils.files import JsonObject

MEASURES = ('accuracy', 'loss', 'macro_f1', 'expected_calibration_error')
"""The metrics that are compared."""

LEVEL = 0.05
"""A difference is shown where its p value is lower."""


def compare(runs: Sequence[Predictions], shared: Shared) -> JsonObject:
    """Compares runs.

    Each run is compared with the first, and the one with the highest accuracy with each of the
    others. Where there are more than two, p values are corrected for all pairs of runs, because
    the best one is found on the same images.

    Args:
        runs: The runs.
        shared: Their predictions for the same images.

    Returns:
        `num_images`; `runs`, with `MEASURES`, their `intervals`, cost and own number of images;
        `best`, the name of the run of highest accuracy (then lowest loss); `pairs`, see `_pair`.
    """
    rows = [_measure(run, shared, place) for place, run in enumerate(runs)]
    best = max(range(len(rows)), key=lambda k: (rows[k]['accuracy'], -rows[k]['loss']))
    everyone = list(itertools.combinations(range(len(runs)), 2))
    pairs = {pair: _pair(runs, shared, pair) for pair in everyone}
    corrected = holm([pair['p_value'] for pair in pairs.values()])
    for pair, p_value in zip(pairs.values(), corrected, strict=True):
        pair['corrected_p_value'] = p_value
    shown = [pair for pair in everyone if 0 in pair]
    shown += [pair for pair in everyone if best in pair and pair not in shown]
    return {
        'num_images': len(shared.labels),
        'runs': rows,
        'best': runs[best].name,
        'pairs': [{**pairs[pair], 'verdict': verdict(pairs[pair], len(pairs))} for pair in shown],
    }


def _measure(run: Predictions, shared: Shared, place: int) -> JsonObject:
    probabilities, labels = shared.probabilities[place], shared.labels
    found = summary(labels, probabilities, shared.class_names, shared.units)
    found['accuracy'] = float((probabilities.argmax(1) == labels).mean())
    found['loss'] = float(cross_entropies(labels, probabilities).mean())
    return {
        'run': run.name,
        **{name: found[name] for name in MEASURES},
        'intervals': {name: found['intervals'][name] for name in MEASURES},
        'own_images': len(run.paths),
        **run.cost,
    }


def _pair(runs: Sequence[Predictions], shared: Shared, pair: tuple[int, int]) -> JsonObject:
    """Compares the second run of a pair with the first.

    Returns:
        `first` and `second`, their names; `accuracy_difference` and `loss_difference`, second less
        first, with their paired 95 % intervals; `only_first_right` and `only_second_right`, numbers
        of images; `p_value`.
    """
    first, second = (shared.probabilities[place] for place in pair)
    labels, unit = shared.labels, unit_numbers(shared.units)
    right = first.argmax(1) == labels, second.argmax(1) == labels
    differences = np.stack(
        [
            np.subtract(right[1], right[0], dtype=np.float64),
            cross_entropies(labels, second) - cross_entropies(labels, first),
        ],
        1,
    )
    of_accuracy, of_loss = mean_intervals(differences, unit)
    accuracy, loss = differences.mean(0).tolist()
    return {
        'first': runs[pair[0]].name,
        'second': runs[pair[1]].name,
        'accuracy_difference': accuracy,
        'accuracy_interval': of_accuracy,
        'loss_difference': loss,
        'loss_interval': of_loss,
        'only_first_right': int((right[0] & ~right[1]).sum()),
        'only_second_right': int((right[1] & ~right[0]).sum()),
        'p_value': exact_p_value(*right, unit),
    }


def verdict(pair: JsonObject, pairs: int) -> str:
    """Says in a sentence which of two runs is better, if that can be shown.

    Args:
        pair: What `_pair` returns, and `corrected_p_value`.
        pairs: The number of pairs that the correction is for.
    """
    first, second, p_value = pair['first'], pair['second'], pair['corrected_p_value']
    points, (low, high) = 100 * pair['accuracy_difference'], pair['accuracy_interval']
    low, high = 100 * low, 100 * high
    chance = f'p {"< 0.0001" if p_value < 1e-4 else f"= {p_value:.2g}"}'
    chance += f' (Holm, {pairs} pairs)' if pairs > 1 else ''
    if p_value >= LEVEL:
        what = f'no difference in accuracy can be shown between {first} and {second}'
    elif points > 0:
        what = f'{second} is better than {first}'
    else:
        what = f'{first} is better than {second}'
        points, low, high = -points, -high, -low
    return f'{what}: {points:+.1f} points ({low:.1f} to {high:.1f}), {chance}'


def differing(shared: Shared) -> Int[np.ndarray, ' m']:
    """Returns the images for which not all runs predict one class.

    Those come first whose true class gets the most different probabilities.
    """
    predicted = np.stack([probabilities.argmax(1) for probabilities in shared.probabilities])
    rows = np.flatnonzero((predicted != predicted[0]).any(0))
    own = np.stack([each[rows, shared.labels[rows]] for each in shared.probabilities])
    return rows[np.argsort(own.min(0) - own.max(0), kind='stable')]

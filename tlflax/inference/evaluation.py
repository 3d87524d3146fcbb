"""Evaluations that class probabilities make, wherever they come from."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from tlflax.data.table import ImageTable
from tlflax.features.batches import Source
from tlflax.models.base.modules import Variables
from tlflax.models.linear.calibration import cross_entropy
from tlflax.train import epoch
from tlflax.train.epoch import Evaluation, Runner
from tlflax.utils.progress import progress


def evaluate_views(
    runner: Runner, trainable: Variables, views: Sequence[Source], table: ImageTable
) -> Evaluation:
    """Evaluates the mean of the probabilities over several views; see `evaluate_split`."""
    return summarize(mean_probabilities(runner, trainable, views), table)


def summarize(probabilities: Float[np.ndarray, 'n classes'], table: ImageTable) -> Evaluation:
    """Returns the evaluation that probabilities of a table's images make; see `evaluate_split`."""
    labels = np.asarray(table.labels)
    totals = {
        'loss': cross_entropy(labels, probabilities),
        'accuracy': float((probabilities.argmax(-1) == labels).mean()),
        'num_examples': len(labels),
    }
    return Evaluation({**totals, **epoch.summarize(table, probabilities)}, probabilities)


def mean_probabilities(
    runner: Runner, trainable: Variables, views: Sequence[Source]
) -> Float[np.ndarray, 'n classes']:
    """Returns the mean of each image's class probabilities over its views, float64."""
    parts: list[Float[np.ndarray, 'n classes']] = []
    with progress('views', sum(source.num_examples for source in views)) as tick:
        for source in views:
            parts.append(runner.evaluate(trainable, source, progress=tick).probabilities)
    return np.stack(parts).astype(np.float64).mean(0)

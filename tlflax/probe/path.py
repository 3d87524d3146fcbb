"""The path of a probe: a fit for each strength of regularization, and the one that is chosen."""

import dataclasses
import itertools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from tlflax.data.splits.stratify import fold_numbers
from tlflax.features.batches import Source
from tlflax.models import ensemble_head
from tlflax.models.base.modules import Variables
from tlflax.models.linear import logistic_regression
from tlflax.models.linear.logistic_regression import Solved
from tlflax.models.linear.representations import Moments
from tlflax.models.linear.strengths import choose, extended
from tlflax.probe import cross_validation
from tlflax.probe.rows import Representation, read_rows
from tlflax.train.position import Record
from tlflax.train.result import assess
from tlflax.train.setup import Run
from tlflax.utils.errors import UserError

FOLDS = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """A probe and its record."""

    variables: Variables
    record: Record


def fit_path(
    run: Run, train: Source, val: Source, representation: Representation
) -> tuple[list[Fitted], int]:
    """Fits and evaluates a probe for each strength of regularization.

    Goes on while the best is at an end. The best is the strongest whose cross-entropy is within
    0.5 % of the lowest, in stratified cross-validation on the training images that divides no group
    of them. A class of fewer groups than folds is held out in as many folds as it has groups, and
    one with a single group never.

    Returns:
        The probes from strong to weak, and the position of the best.

    Raises:
        UserError: The features are not kept on the device, or no class can be divided.
    """
    classes = len(run.splits.train.class_names)
    rows = read_rows(train, run.config.model.head, classes, representation)
    fold = _folds(run)
    moments = rows.moments(representation)
    features = rows.normalized(moments)
    squared = float(np.mean([np.dot(row, row) for row in features], dtype=np.float64)) or 1.0
    path: list[Fitted] = []
    steps = extended(logistic_regression.STRENGTHS, lambda: _best(path))
    # Each of the two takes a strength only when the one before is in the path.
    relative, own = itertools.tee(steps)
    solutions = logistic_regression.solve_path(features, rows.label, rows.num_classes, relative)
    scores = cross_validation.held_out_scores(
        rows, fold, representation, (strength * squared for strength in own)
    )
    for solved, held_out in zip(solutions, scores, strict=True):
        loss, accuracy = cross_validation.assess(held_out, rows.label)
        fitted = _evaluate(solved, moments, run, (train, val))
        fitted.record.update(cv_loss=loss, cv_accuracy=accuracy)
        path.append(fitted)
        logging.info('%s', format_row(fitted.record))
    path.sort(key=lambda fitted: -fitted.record['l2'])
    _number(path)
    return path, _best(path)


def format_table(records: Sequence[Record]) -> str:
    """Shows the regularization path for people."""
    head = '        l2  iterations  gradient  train loss   cv loss  cv accuracy'
    return '\n'.join([f'{head}  val loss  val accuracy', *map(format_row, records)])


def format_row(record: Record) -> str:
    """Shows one strength; see `format_table`."""
    return (
        f'{record["l2"]:10.3g}  {record["iterations"]:10d}  {record["gradient_norm"]:8.1e}'
        f'  {record["train_loss"]:10.4f}  {record["cv_loss"]:8.4f}  {record["cv_accuracy"]:11.4f}'
        f'  {record["val_loss"]:8.4f}  {record["val_accuracy"]:12.4f}'
    )


def _folds(run: Run) -> np.ndarray:
    fold = fold_numbers(run.splits.train, FOLDS)
    if (fold < 0).all():
        raise UserError(
            'no class has two images or groups, so no strength can be chosen by cross-validation',
            where='config.data.train',
            fix='add images',
        )
    return fold


def _best(path: Sequence[Fitted]) -> int:
    records = [fitted.record for fitted in path]
    return choose([record['l2'] for record in records], [record['cv_loss'] for record in records])


def _number(path: Sequence[Fitted]) -> None:
    """Gives each record its epoch, and the iterations up to it as its step."""
    steps = itertools.accumulate(fitted.record['iterations'] for fitted in path)
    for epoch, (fitted, step) in enumerate(zip(path, steps, strict=True), start=1):
        fitted.record.update(epoch=epoch, step=step)


def _evaluate(
    solved: Solved, moments: Moments | None, run: Run, splits: tuple[Source, Source]
) -> Fitted:
    """Evaluates a probe on the training and validation images."""
    began = time.perf_counter()
    variables = Variables({'head': _head(run.config.model.head, _layer(solved, moments))}, {})
    record = {
        'epoch': 0,
        'step': 0,
        **assess(run, variables, *splits),
        'epoch_seconds': solved.seconds + time.perf_counter() - began,
        'images_per_second': splits[0].num_examples * solved.iterations / solved.seconds,
        'l2': solved.l2,
        'iterations': solved.iterations,
        'gradient_norm': solved.gradient_norm,
    }
    return Fitted(variables, record)


def _head(name: str, layer: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns the parameters of the head that has this linear layer."""
    if name.startswith(ensemble_head.PREFIX):
        return {ensemble_head.branch_name(0): layer, 'log_weight': np.zeros(1, np.float32)}
    return {'logits': layer}


def _layer(solved: Solved, moments: Moments | None) -> dict[str, np.ndarray]:
    """Returns the linear layer for features as they are, moments within it."""
    if moments is None:
        return {'kernel': solved.kernel, 'bias': solved.bias}
    kernel = solved.kernel / np.asarray(moments.deviation)[:, None]
    return {'kernel': kernel, 'bias': solved.bias - np.asarray(moments.mean) @ kernel}

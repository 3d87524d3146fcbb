"""Linear probes: logistic regression on frozen features, the standard way to compare backbones.

The features are those of the images as they are, without augmentation; the strength of
regularization that does best on validation decides (see
`tlflax.models.linear.logistic_regression`).
"""

import dataclasses
import math
import time
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from absl import logging

from tlflax.config.schema import AugmentConfig, Config, LossConfig
from tlflax.features.batches import Source
from tlflax.features.sources import require_on_device
from tlflax.models.base.modules import Variables
from tlflax.models.linear import logistic_regression
from tlflax.train import setup, steps
from tlflax.train.early_stopping import State
from tlflax.train.metrics import VAL_METRICS
from tlflax.train.position import Position, Record
from tlflax.train.run import publish
from tlflax.train.setup import Run
from tlflax.utils.files import JsonObject
from tlflax.workdir.files import Workdir

HEADS = ('flatten_linear', 'gap_linear')


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """A probe and its record."""

    variables: Variables
    record: Record

    @property
    def order(self) -> tuple[float, float]:
        """Higher is better."""
        return self.record['val_accuracy'], -self.record['val_loss']


def run(config: Config, work: Workdir, *, standardize: bool = False) -> JsonObject:
    """Fits a linear probe on a configuration's training images and writes it as a workdir.

    The probe is `config.model.head` where that is linear, else 'flatten_linear'. In the workdir,
    each strength of regularization stands as an epoch; its record also has `l2`, `iterations` and
    `gradient_norm`, and no learning rate. The best has the highest validation accuracy, and of
    those the lowest loss.

    Args:
        config: Its optimizer, loss, sampling, augmentation and early stopping are not used.
        work: New.
        standardize: Give each feature zero mean and unit variance over the training images; this
            becomes part of the kernel and bias that are written.

    Returns:
        The contents of `result.json`.

    Raises:
        UserError: The features are not kept on the device, or the workdir is in use.
    """
    began = time.perf_counter()
    config = probe_config(config)
    with work.locked():
        work.check_free()
        return _probe(config, work, standardize, began)


def _probe(config: Config, work: Workdir, standardize: bool, began: float) -> JsonObject:
    run = setup.build(config, setup.load(config))
    train = run.sources.eval(run.splits.train, 'training')
    val = run.sources.eval(run.splits.val, 'validation')
    require_on_device(val)
    path = _fit_path(run, train, val, standardize)
    best = max(path, key=lambda fitted: fitted.order)
    return publish(
        run,
        work,
        val,
        [fitted.record for fitted in path],
        _positions(path, best, run),
        time.perf_counter() - began,
    )


def _fit_path(run: Run, train: Source, val: Source, standardize: bool) -> list[Fitted]:
    """Fits and evaluates a probe for each strength of regularization, from strong to weak."""
    features, label = _rows(train, run.config.model.head)
    mean, deviation = np.zeros_like(features[0]), np.ones_like(features[0])
    if standardize:
        mean, deviation = features.mean(0), features.std(0)
        deviation[deviation == 0] = 1
        features = (features - mean) / deviation
    path: list[Fitted] = []
    for solved in logistic_regression.solve_path(
        features, label, len(run.splits.train.class_names)
    ):
        kernel = solved.kernel / deviation[:, None]
        layer = {'kernel': kernel, 'bias': solved.bias - mean @ kernel}
        path.append(
            _assess(solved, Variables({'head': {'logits': layer}}, {}), run, (train, val), path)
        )
        logging.info('%s', format_row(path[-1].record))
    return path


def probe_config(config: Config) -> Config:
    """Returns the configuration of the linear head that a probe fits."""
    head = config.model.head if config.model.head in HEADS else HEADS[0]
    return dataclasses.replace(
        config,
        augment=AugmentConfig(horizontal_flip=False),
        loss=LossConfig(),
        train=dataclasses.replace(config.train, balanced_sampling=False, label_smoothing=0.0),
        model=dataclasses.replace(config.model, head=head, dropout=0.0),
        early_stopping=dataclasses.replace(config.early_stopping, restore_best=True),
    )


def format_table(records: Sequence[Record]) -> str:
    """Shows the regularization path for people."""
    head = '        l2  iterations  gradient  train loss  val loss  val accuracy'
    return '\n'.join([head, *map(format_row, records)])


def format_row(record: Record) -> str:
    """Shows one strength; see `format_table`."""
    return (
        f'{record["l2"]:10.3g}  {record["iterations"]:10d}  {record["gradient_norm"]:8.1e}'
        f'  {record["train_loss"]:10.4f}  {record["val_loss"]:8.4f}  {record["val_accuracy"]:12.4f}'
    )


def _rows(source: Source, head: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the inputs of a head's linear layer, f32[n, d], and the labels, in order."""
    cached = require_on_device(source)
    rows = cached.eval_rows()
    rows = rows[rows >= 0]
    features = np.asarray(cached.on_device.features)[rows].astype(np.float32)
    features = features.mean((1, 2)) if head == 'gap_linear' else features.reshape(len(rows), -1)
    return features, np.asarray(cached.on_device.label)[rows]


def _assess(
    solved: logistic_regression.Solved,
    variables: Variables,
    run: Run,
    splits: tuple[Source, Source],
    before: Sequence[Fitted],
) -> Fitted:
    """Evaluates a probe on the training and validation images."""
    began = time.perf_counter()
    train, val = (run.runner.evaluate(variables, split).metrics for split in splits)
    record = {
        'epoch': len(before) + 1,
        'step': solved.iterations + (before[-1].record['step'] if before else 0),
        'train_loss': train['loss'],
        'train_accuracy': train['accuracy'],
        **{f'val_{name}': val[name] for name in VAL_METRICS},
        'learning_rate': math.nan,
        'epoch_seconds': solved.seconds + time.perf_counter() - began,
        'images_per_second': splits[0].num_examples * solved.iterations / solved.seconds,
        'l2': solved.l2,
        'iterations': solved.iterations,
        'gradient_norm': solved.gradient_norm,
    }
    return Fitted(variables, record)


def _positions(
    path: Sequence[Fitted], best: Fitted, run: Run
) -> list[tuple[steps.TrainState, Position]]:
    """Returns the best and the last probe as states of a training."""
    stopping = State(best=best.record['val_accuracy'], best_epoch=best.record['epoch'] - 1)
    saved = []
    for fitted in dict.fromkeys([path.index(best), len(path) - 1]):
        variables, record = path[fitted].variables, path[fitted].record
        state = steps.init_state(variables, run.learner.tx)
        state = state._replace(step=jnp.int32(record['step']))
        own = dataclasses.replace(stopping, improved=path[fitted] is best)
        saved.append((state, Position(epoch=record['epoch'], stopping=own)))
    return saved

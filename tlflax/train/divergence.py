"""What is said of a training whose loss is no longer finite, or far worse than guessing."""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from tlflax.features.batches import OnDeviceSource, Order, Source
from tlflax.train import steps
from tlflax.train.position import Position, Record
from tlflax.train.setup import Run
from tlflax.utils.errors import UserError, printable
from tlflax.utils.parallel.mesh import put_batch, put_rows
from tlflax.utils.trees import flatten
from tlflax.workdir.files import Workdir

FAR = 100.0  # times the loss of guessing, from which a loss is far worse
_SHOWN = 3  # files of a batch that are named


def first_step(sums: Sequence[steps.Sums]) -> int | None:
    """Returns the number of the first step whose loss is not finite, or None."""
    if not sums:
        return None
    loss = np.concatenate([np.atleast_1d(np.asarray(part.loss)) for part in sums])
    bad = np.flatnonzero(~np.isfinite(loss))
    return int(bad[0]) if len(bad) else None


def error(
    run: Run,
    train: Source,
    state: steps.TrainState,
    work: Workdir,
    position: Position,
    bad: int,
) -> UserError:
    """Returns the error of a training whose loss is not finite.

    The gradients of the step before, whose update did it, are computed again, from the last saved
    state on: no training pays for keeping them.

    Args:
        run: The run.
        train: The training split.
        state: At `position`; donated.
        work: The run's workdir.
        position: The position before the first of the steps that were tried.
        bad: The number of the step, counted from 0 from `position`.
    """
    number = position.step_in_epoch + bad
    step = position.epoch * run.steps_per_epoch + number + 1
    norms = _gradient_norms(run, train, state, position, max(bad - 1, 0))
    told = ', '.join(f'{norm:.3g} for {label!r}' for label, norm in sorted(norms.items()))
    when = 'before it' if bad else 'of it'
    return UserError(
        f'the training loss is no longer finite in step {step}, epoch {position.epoch + 1}, with '
        f'the batch {_files(run, position.epoch, number)}; the gradient norm {when} was {told}',
        where=str(work.path),
        fix='lower config.optim.learning_rate or set config.optim.clip_norm, and use a new '
        '--workdir (checkpoints up to the epoch before are kept)',
    )


def describe_excess(record: Record, num_classes: int) -> str | None:
    """Returns a warning if an epoch's loss is far worse than guessing, else None."""
    guessing = math.log(max(num_classes, 2))
    for name in ('val_loss', 'train_loss'):
        if record[name] > FAR * guessing:
            times = record[name] / guessing
            return (
                f'{name} is {times:.0f} times the loss of guessing ({guessing:.2f}): '
                'config.optim.learning_rate is probably too high'
            )
    return None


def _files(run: Run, epoch: int, number: int) -> str:
    table, train = run.splits.train, run.config.train
    order = Order(train.batch_size, train.seed, train.balanced_sampling)
    chosen = order.train(epoch, table.labels)[number]
    paths = [printable(str(table.paths[row])) for row in chosen if row >= 0]
    rest = f' and {len(paths) - _SHOWN} more' if len(paths) > _SHOWN else ''
    return ', '.join(paths[:_SHOWN]) + rest


def _gradient_norms(
    run: Run, train: Source, state: steps.TrainState, position: Position, number: int
) -> Mapping[str, float]:
    """Returns the norm of each label's gradient in the step `number` after the saved state."""
    epoch, at = position.epoch, position.step_in_epoch
    state, _, _ = run.runner.train(state, train, epoch, at, limit=number)
    if isinstance(train, OnDeviceSource):
        rows = put_rows(train.train_rows(epoch)[at + number :][:1], run.runner.mesh)
        batch = steps.gather(train.on_device, rows[0])
    else:
        batch = put_batch(next(iter(train.train_batches(epoch, at + number))), run.runner.mesh)
    runner = run.runner
    gradients, _ = steps.gradient_step(
        state, runner.frozen, batch, runner.seed, runner.loss, classifier=runner.classifier
    )
    labels = flatten(run.learner.labels)
    squares: dict[str, float] = {}
    for path, leaf in flatten(jax.device_get(gradients)).items():
        label = labels[path]
        squares[label] = squares.get(label, 0.0) + float(np.sum(np.square(leaf, dtype=np.float64)))
    return {label: math.sqrt(total) for label, total in squares.items()}

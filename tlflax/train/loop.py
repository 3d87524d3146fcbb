"""The one place where time passes: epochs, early stopping, checkpoints, interruptions."""

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import numpy as np
from absl import logging

from tlflax.features.batches import Source
from tlflax.train import steps
from tlflax.train.early_stopping import EarlyStopping, State
from tlflax.train.epoch import Runner
from tlflax.utils.errors import UserError
from tlflax.utils.progress import progress
from tlflax.workdir.checkpoints import Checkpoints
from tlflax.workdir.files import Workdir

VAL_METRICS = ('loss', 'accuracy', 'balanced_accuracy', 'macro_f1', 'worst_recall')
"""What an epoch's record has of the validation split, each as `val_<name>`."""

METRICS = ('train_loss', 'train_accuracy', *(f'val_{name}' for name in VAL_METRICS),
           'learning_rate')  # fmt: skip
"""The metrics of an epoch's record that early stopping may monitor."""


class Interrupted(Exception):
    """Training was asked to stop and has saved its state."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a run stands.

    Attributes:
        epoch: Epochs completed.
        step_in_epoch: Steps done of the next one.
        loss: Loss summed over the examples of those steps.
        correct: Right answers among them.
        count: Their number.
        seconds: Time spent training so far, in seconds.
        stopping: Early stopping's memory.
        improvements: How often a new best was found.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    loss: float = 0.0
    correct: float = 0.0
    count: float = 0.0
    seconds: float = 0.0
    stopping: State = State()
    improvements: int = 0

    def to_json(self) -> dict[str, Any]:
        """Returns plain values for a checkpoint's metadata."""
        return {**dataclasses.asdict(self), 'stopping': self.stopping.to_json()}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> 'Position':
        """Returns the position whose `to_json` is `saved`."""
        return cls(**{**saved, 'stopping': State.from_json(saved['stopping'])})


@dataclasses.dataclass(frozen=True)
class Fit:
    """What a training needs besides its state.

    Attributes:
        runner: The steps.
        train: The training split.
        val: The validation split.
        epochs: At most so many.
        stopping: The early-stopping rule; None: never stop early.
        learning_rate: Step to learning rate, for the record.
        checkpoints: Where the state is saved.
        workdir: Where records are written.
        meta: What every checkpoint's metadata holds besides the position.
        clock: Seconds spent on the run so far, earlier processes included.
        copy_frozen: Save the frozen parameters too.
    """

    runner: Runner
    train: Source
    val: Source
    epochs: int
    stopping: EarlyStopping | None
    learning_rate: Callable[[int], float]
    checkpoints: Checkpoints
    workdir: Workdir
    meta: dict[str, Any]
    clock: Callable[[], float]
    copy_frozen: bool


def fit(fit: Fit, state: steps.TrainState, position: Position) -> tuple[steps.TrainState, Position]:
    """Trains from `position` until early stopping, the last epoch or an interruption.

    Args:
        fit: The run.
        state: Donated; its arrays are replicated over the mesh.
        position: Where the state stands.

    Returns:
        The last epoch's state and position.

    Raises:
        Interrupted: SIGINT or SIGTERM came; the state is saved.
        UserError: The loss is no longer finite; the last checkpoints are kept.
    """
    with _signals() as stop_requested:
        while position.epoch < fit.epochs and not position.stopping.stopped:
            state, position, done = _train_epoch(fit, state, position, stop_requested)
            if not done:
                save(fit, state, position, record=None)
                fit.checkpoints.wait()
                raise Interrupted(int(state.step))
            position = _finish_epoch(fit, state, position)
        fit.checkpoints.wait()
    return state, position


def _train_epoch(
    fit: Fit, state: steps.TrainState, position: Position, stop: Callable[[], bool]
) -> tuple[steps.TrainState, Position, bool]:
    """Trains for the rest of the epoch; says whether it was completed."""
    began = time.perf_counter()
    start = position.step_in_epoch
    name = f'epoch {position.epoch + 1}/{fit.epochs}'
    with progress(name, fit.train.num_examples - int(position.count)) as tick:
        state, sums, done = fit.runner.train(
            state, fit.train, position.epoch, start, stop=stop, progress=tick
        )
    new = steps.totals(sums)
    position = dataclasses.replace(
        position,
        step_in_epoch=start + done,
        loss=position.loss + new.loss,
        correct=position.correct + new.correct,
        count=position.count + new.examples,
        seconds=position.seconds + time.perf_counter() - began,
    )
    if not np.isfinite(position.loss):
        raise UserError(
            f'the training loss became {position.loss} in epoch {position.epoch + 1}',
            where=str(fit.workdir.path),
            fix='lower config.optim.learning_rate and use a new --workdir '
            '(checkpoints up to the epoch before are kept)',
        )
    return state, position, round(position.count) >= fit.train.num_examples


def _finish_epoch(fit: Fit, state: steps.TrainState, position: Position) -> Position:
    """Validates, records, decides, saves; returns the position at the next epoch's start."""
    began = time.perf_counter()
    with progress('validation', fit.val.num_examples) as tick:
        val = fit.runner.evaluate(state.params, fit.val, progress=tick).metrics
    step = int(state.step)
    seconds = time.perf_counter() - began
    record = make_record(position, step, val, fit.learning_rate(step), seconds)
    done = next_epoch(position, record, fit.stopping)
    fit.workdir.append(record)  # first: a resumed run drops records beyond its checkpoint
    save(fit, state, done, record)
    _log(record, fit.epochs, done.stopping.improved)
    return done


def make_record(
    position: Position,
    step: int,
    val: dict[str, float],
    learning_rate: float,
    val_seconds: float,
) -> dict[str, Any]:
    """Returns an epoch's line of metrics.jsonl.

    Args:
        position: At the end of the epoch's training.
        step: Optimizer steps done.
        val: `VAL_METRICS` of the validation split.
        learning_rate: At `step`.
        val_seconds: Spent on validation.
    """
    return {
        'epoch': position.epoch + 1,
        'step': step,
        'train_loss': position.loss / position.count,
        'train_accuracy': position.correct / position.count,
        **{f'val_{name}': val[name] for name in VAL_METRICS},
        'learning_rate': learning_rate,
        'epoch_seconds': position.seconds + val_seconds,
        'images_per_second': position.count / position.seconds,
    }


def next_epoch(position: Position, record: dict[str, Any], rule: EarlyStopping | None) -> Position:
    """Returns the position at the start of the epoch after the one recorded."""
    stopping = position.stopping
    if rule is not None:
        stopping = rule.update(stopping, record[rule.monitor], position.epoch)
    else:
        stopping = dataclasses.replace(stopping, best_epoch=position.epoch, improved=True)
    improvements = position.improvements + stopping.improved
    return Position(epoch=position.epoch + 1, stopping=stopping, improvements=improvements)


def save(
    fit: Fit, state: steps.TrainState, position: Position, record: dict[str, Any] | None
) -> None:
    """Starts saving a checkpoint; `record` is None in the middle of an epoch."""
    improved = record is not None and position.stopping.improved
    frozen = dict(fit.runner.frozen)
    if not fit.copy_frozen:  # a frozen backbone has a name and a digest, a part of the head has not
        frozen.pop('backbone', None)
    fit.checkpoints.save(
        int(state.step),
        params=state.params,
        opt_state=state.opt_state,
        meta={
            **fit.meta,
            'position': position.to_json(),
            'record': record,
            'wall_seconds': fit.clock(),
        },
        rank=position.improvements if improved else -1,
        frozen=frozen or None,
    )


def _log(record: dict[str, Any], epochs: int, improved: bool) -> None:
    logging.info(
        'epoch %d/%d  train loss %.4f accuracy %.4f  val loss %.4f accuracy %.4f balanced %.4f%s  '
        '%.0f images/s  %.1f s',
        record['epoch'],
        epochs,
        record['train_loss'],
        record['train_accuracy'],
        record['val_loss'],
        record['val_accuracy'],
        record['val_balanced_accuracy'],
        ' (best)' if improved else '',
        record['images_per_second'],
        record['epoch_seconds'],
    )


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """Turns the first SIGINT or SIGTERM into a request to stop; a second one acts at once."""
    requested = False

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True
        logging.info('%s: stopping after this step', signal.Signals(number).name)

    try:
        before = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # signals are for the main thread alone
        before = {}
    try:
        yield lambda: requested
    finally:
        for number, old in before.items():
            signal.signal(number, old)

"""The loop over epochs: training, validation, early stopping, checkpoints, interruptions."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable

from absl import logging

from tlflax.features.batches import Source
from tlflax.train import divergence, steps
from tlflax.train.early_stopping import EarlyStopping
from tlflax.train.position import Position, Record, make_record, next_epoch
from tlflax.train.setup import Run
from tlflax.utils import interrupts
from tlflax.utils.parallel import processes
from tlflax.utils.parallel.mesh import Agreement
from tlflax.utils.progress import Tick, progress
from tlflax.workdir.checkpoints import Checkpoints
from tlflax.workdir.files import Workdir
from tlflax.workdir.profiling import Profile


class Interrupted(Exception):
    """Training was asked to stop and has saved its state.

    Args:
        step: The last step, which is saved; 0 if none was done.
    """

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


@dataclasses.dataclass(frozen=True)
class Fit:
    """A run under way, and where it is recorded.

    Attributes:
        run: What is trained.
        val: The validation split.
        checkpoints: Where states are saved.
        workdir: Where epochs are recorded.
        clock: Returns the seconds spent on the run so far, earlier processes included.
        again: Returns the last state that was saved, or the first one; None where nothing is
            trained.
        profile: The steps that are traced; None: none.
    """

    run: Run
    val: Source
    checkpoints: Checkpoints
    workdir: Workdir
    clock: Callable[[], float]
    again: Callable[[], steps.TrainState] | None = None
    profile: Profile | None = None

    def save(self, state: steps.TrainState, position: Position, record: Record | None) -> None:
        """Starts saving a checkpoint.

        Args:
            state: The state.
            position: The position after it.
            record: The record of the epoch that has ended; None in the middle of an epoch.
        """
        state = self.run.runner.fetch(state)
        improved = record is not None and position.stopping.improved
        self.checkpoints.save(
            int(state.step),
            trained=state.variables,
            opt_state=state.opt_state,
            ema=state.ema,
            meta={
                **self.run.meta,
                'position': position.to_json(),
                'record': record,
                'wall_seconds': self.clock(),
            },
            rank=position.epoch if improved else -1,
            frozen=self.run.saved_frozen,
        )


def train_epochs(
    fit: Fit,
    train: Source,
    rule: EarlyStopping | None,
    state: steps.TrainState,
    position: Position,
) -> tuple[steps.TrainState, Position]:
    """Trains from `position` until the phase ends, by early stopping or epochs, or is interrupted.

    Args:
        fit: The run.
        train: The training split.
        rule: When to stop early; None: never.
        state: Donated; on the mesh as `Runner.place` puts it.
        position: The position of `state`.

    Returns:
        The last epoch's state and position.

    Raises:
        Interrupted: SIGINT or SIGTERM was received; the state is saved.
        UserError: The loss is no longer finite; the last checkpoints are kept.
    """
    due, asked = _Due(60 * fit.run.whole.checkpoint.minutes), False
    agreed = Agreement(fit.run.runner.mesh)
    with interrupts.deferred(_announce) as stop_requested:

        def stop() -> bool:
            nonlocal asked
            asked, save = agreed(stop_requested(), due())
            return asked or save

        while not position.ended(fit.run.config.train.epochs):
            before = position
            note = ', '.join(_best(rule, position) + _patience(rule, position))
            state, position, complete = _train_epoch(fit, train, state, position, stop, note)
            if complete:
                position = _finish_epoch(fit, rule, state, position)
            elif position.step_in_epoch > before.step_in_epoch:  # else this state is saved already
                fit.save(state, position, record=None)
            due.restart()
            if not complete and asked:
                fit.checkpoints.wait()
                raise Interrupted(int(state.step))
        fit.checkpoints.wait()
        if any(
            processes.gather(stop_requested())
        ):  # since the last step: only the final evaluation is missing
            raise Interrupted(int(state.step))
    if fit.profile is not None:
        fit.profile.check_reached(position.epoch * fit.run.steps_per_epoch)
    return state, position


class _Due:
    """Tells between steps whether a time has passed, and at least one step.

    Args:
        seconds: The time; 0: it never has.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._began, self._first = 0.0, True
        self.restart()

    def __call__(self) -> bool:
        first, self._first = self._first, False
        passed = time.monotonic() - self._began >= self._seconds
        return bool(self._seconds) and passed and not first

    def restart(self) -> None:
        """Lets the time begin, before a step."""
        self._began, self._first = time.monotonic(), True


def _announce(name: str) -> None:
    logging.info('%s: stopping after this step', name)


def _train_epoch(
    fit: Fit,
    train: Source,
    state: steps.TrainState,
    position: Position,
    stop: Callable[[], bool],
    note: str,
) -> tuple[steps.TrainState, Position, bool]:
    """Trains for the rest of the epoch, and tells whether it was completed."""
    began = time.perf_counter()
    start = position.step_in_epoch
    name = _number(fit.run, position)
    with progress(name, train.num_examples - int(position.count), note) as tick:
        state, sums, done = _take_steps(fit, train, state, position, stop, tick)
    if (bad := divergence.first_step(sums)) is not None:
        fit.checkpoints.wait()
        assert fit.again is not None
        raise divergence.error(fit.run, train, fit.again(), fit.workdir, position, bad)
    new = steps.totals(sums)
    position = dataclasses.replace(
        position,
        step_in_epoch=start + done,
        loss=position.loss + new.loss,
        correct=position.correct + new.correct,
        count=position.count + new.examples,
        seconds=position.seconds + time.perf_counter() - began,
    )
    return state, position, round(position.count) >= train.num_examples


def _take_steps(
    fit: Fit,
    train: Source,
    state: steps.TrainState,
    position: Position,
    stop: Callable[[], bool],
    tick: Tick,
) -> tuple[steps.TrainState, list[steps.Sums], int]:
    """Takes the steps of the rest of the epoch; see `Runner.train`."""
    start, per_epoch = position.step_in_epoch, fit.run.steps_per_epoch
    train_steps = functools.partial(fit.run.runner.train, stop=stop, progress=tick)
    if fit.profile is None:
        return train_steps(state, train, position.epoch, start)
    sums, done, first = [], 0, position.epoch * per_epoch
    for length, traced in fit.profile.parts(first + start, first + per_epoch):
        with fit.profile.traced() if traced else contextlib.nullcontext():
            state, more, count = train_steps(
                state, train, position.epoch, start + done, limit=length
            )
        sums += more
        done += count
        if count < length:
            break
    return state, sums, done


def _finish_epoch(
    fit: Fit, rule: EarlyStopping | None, state: steps.TrainState, position: Position
) -> Position:
    """Validates, records, decides, saves; returns the position at the start of the next epoch."""
    began = time.perf_counter()
    with progress('validation', fit.val.num_examples) as tick:
        val = fit.run.runner.evaluate(state.evaluated, fit.val, progress=tick).metrics
    step = int(state.step)
    seconds = time.perf_counter() - began
    own = step - position.began * fit.run.steps_per_epoch
    rate = fit.run.learner.learning_rate(own, state.opt_state)
    record = make_record(position, step, val, rate, seconds)
    if fit.run.num_phases > 1:
        record['phase'] = position.phase + 1
    after = next_epoch(position, record, rule)
    fit.workdir.append(record)  # first: a resumed run drops records after its checkpoint
    fit.save(state, after, record)
    _log(record, _number(fit.run, position), after, _outlook(fit.run, rule, after, record))
    if excess := divergence.describe_excess(record, len(fit.run.splits.train.class_names)):
        logging.warning('WARNING: %s', excess)
    return after


def _number(run: Run, position: Position) -> str:
    """Returns the number of the next epoch, and of the last that may follow in its phase."""
    number = f'epoch {position.epoch + 1}/{position.began + run.config.train.epochs}'
    return number if run.num_phases == 1 else f'phase {position.phase + 1}, {number}'


def _outlook(run: Run, rule: EarlyStopping | None, after: Position, record: Record) -> str:
    """Returns the best epoch of the phase so far, how patient its rule still is, and the time left.

    Args:
        run: The phase.
        rule: When it stops early; None: never.
        after: The position after the epoch.
        record: The epoch.
    """
    epochs, told = run.config.train.epochs, _best(rule, after)
    if not after.ended(epochs):
        seconds = (after.began + epochs - after.epoch) * record['epoch_seconds']
        told += [*_patience(rule, after), f'at most {seconds:.0f} s left']
    return ''.join(f', {one}' for one in told)


def _best(rule: EarlyStopping | None, position: Position) -> list[str]:
    """Returns what is said of the best epoch of the phase before a position."""
    stopping = position.stopping
    if rule is None or stopping.best is None or stopping.best_epoch is None:
        return []
    best = position.began + stopping.best_epoch + 1
    return [f'best {rule.monitor} {stopping.best:.4f} in epoch {best}']


def _patience(rule: EarlyStopping | None, position: Position) -> list[str]:
    """Returns what is said of the patience that is left."""
    if rule is None:
        return []
    return [f'patience {max(rule.patience - position.stopping.wait, 0)} of {rule.patience}']


def _log(record: Record, name: str, after: Position, outlook: str) -> None:
    logging.info(
        '%s  train loss %.4f accuracy %.4f  val loss %.4f accuracy %.4f balanced %.4f%s  '
        '%.0f images/s  %.1f s%s',
        name,
        record['train_loss'],
        record['train_accuracy'],
        record['val_loss'],
        record['val_accuracy'],
        record['val_balanced_accuracy'],
        ' (best)' if after.stopping.improved else '',
        record['images_per_second'],
        record['epoch_seconds'],
        outlook,
    )

"""Early stopping as a pure state machine, with the semantics of Keras 3.

Follows `keras.callbacks.EarlyStopping` of Keras 3.15 with `restore_best_weights`; the tests compare
the two. Note:

* The first monitored value always becomes the best, even a NaN, on which nothing improves.
  A later NaN is an epoch without improvement.
* Values are compared in float32, so float64 rounding never decides about `min_delta`.
* With a `baseline`, an epoch may be a new best and still count against `patience`; only one that
  also improves on the baseline resets the count.

Two differences: a metric that does not exist is an error, where Keras warns in every epoch and
never stops; and `patience_steps` and `min_steps`, which Keras does not have, count optimizer steps,
so that one rule serves epochs of 8 steps and of 8,000.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Literal, Self

import numpy as np

from tlflax.config.schema import EarlyStoppingConfig
from tlflax.train.metrics.counts import MONITORED
from tlflax.utils.errors import UserError, did_you_mean
from tlflax.utils.files import JsonObject

Mode = Literal['min', 'max']

_HIGHER_IS_BETTER = ('accuracy', 'auc', 'auroc', 'f1', 'precision', 'recall')
_LOWER_IS_BETTER = ('error', 'loss')
_KERAS_NAMES = {
    'acc': 'train_accuracy',
    'accuracy': 'train_accuracy',
    'loss': 'train_loss',
    'train_acc': 'train_accuracy',
    'val_acc': 'val_accuracy',
}


@dataclasses.dataclass(frozen=True)
class State:
    """The state of early stopping between epochs; part of a checkpoint.

    Attributes:
        best: The best monitored value; None before the first.
        best_epoch: Its epoch, the one to restore.
        wait: Epochs without improvement so far.
        wait_from: The step after which those epochs began.
        stopped_epoch: The epoch after which training ends; None while it continues.
        improved: Whether the last epoch is the new best.
    """

    best: float | None = None
    best_epoch: int | None = None
    wait: int = 0
    wait_from: int = 0
    stopped_epoch: int | None = None
    improved: bool = False

    @property
    def stopped(self) -> bool:
        return self.stopped_epoch is not None

    def to_json(self) -> JsonObject:
        """Returns a dict for JSON; a `best` that is not finite becomes a string."""
        return dataclasses.asdict(self) | {'best': spelled(self.best)}

    @classmethod
    def from_json(cls, saved: JsonObject) -> Self:
        """Returns the state that `to_json` turned into `saved`."""
        return cls(**saved | {'best': None if saved['best'] is None else float(saved['best'])})


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """Ends training once `monitor` has stopped improving.

    Attributes:
        monitor: Name of the metric in an epoch's record.
        min_delta: An improvement must be strictly larger than this.
        patience: Epochs without improvement after which training ends.
        mode: Whether smaller or larger values are better.
        baseline: A value that must be improved on to reset the patience; None for no baseline.
        start_from_epoch: Epochs before this one, counted from 0, are not monitored.
        patience_steps: Training goes on until so many steps brought no improvement either.
        min_steps: Training goes on until so many steps are done.
    """

    monitor: str
    min_delta: float
    patience: int
    mode: Mode
    baseline: float | None
    start_from_epoch: int
    patience_steps: int = 0
    min_steps: int = 0

    def init(self) -> State:
        """Returns the state before the first epoch."""
        return State()

    def update(self, state: State, value: float, epoch: int, step: int) -> State:
        """Returns the state after an epoch.

        Args:
            state: The state before it.
            value: The monitored metric; NaN and infinities are allowed.
            epoch: Its number, counted from 0.
            step: Optimizer steps at its end.
        """
        if epoch < self.start_from_epoch:
            return dataclasses.replace(state, wait_from=step, improved=False)
        wait = state.wait + 1
        if state.best is None or self.improves(value, state.best):
            beats_baseline = self.baseline is None or self.improves(value, self.baseline)
            return dataclasses.replace(
                state,
                best=value,
                best_epoch=epoch,
                wait=0 if beats_baseline else wait,
                wait_from=step if beats_baseline else state.wait_from,
                improved=True,
            )
        enough = step - state.wait_from >= self.patience_steps and step >= self.min_steps
        stopped_epoch = epoch if enough and wait >= self.patience else state.stopped_epoch
        return dataclasses.replace(state, wait=wait, stopped_epoch=stopped_epoch, improved=False)

    def improves(self, value: float, reference: float) -> bool:
        """Returns whether a value is better than another by more than `min_delta`."""
        sign = 1 if self.mode == 'max' else -1
        with np.errstate(over='ignore'):  # beyond float32 is infinite
            return bool(
                sign * np.float32(value - sign * abs(self.min_delta)) > sign * np.float32(reference)
            )


def spelled(value: float | None) -> float | str | None:
    """Returns a value as JSON has it: one that is not finite as text."""
    return value if value is None or math.isfinite(value) else str(value)


def resolve_monitor(name: str, available: Iterable[str]) -> str:
    """Returns the name under which the records hold a metric.

    Args:
        name: What the user asked for; Keras's spellings (`val_acc`, `acc`, `accuracy`, `loss`)
            stand for ours.
        available: The metrics of an epoch's record.

    Raises:
        UserError: The metric does not exist.
    """
    available = list(available)
    resolved = name if name in available else _KERAS_NAMES.get(name, name)
    if resolved not in available:
        hint = did_you_mean(name, available)
        if not hint.startswith('choose'):
            hint = f'{hint} Available: {", ".join(available)}'
        raise UserError(
            f'no epoch records a metric {name!r}', where='config.early_stopping.monitor', fix=hint
        )
    return resolved


def resolve_mode(monitor: str, mode: str) -> Mode:
    """Returns whether smaller or larger values of `monitor` are better.

    Args:
        monitor: A metric's name, as `resolve_monitor` returns it.
        mode: 'min', 'max', or 'auto' to derive it from the last word of the name.

    Raises:
        UserError: The mode is 'auto' and the metric is not a known one.
    """
    last_word = monitor.rpartition('_')[2]
    if mode == 'min' or (mode == 'auto' and last_word in _LOWER_IS_BETTER):
        return 'min'
    if mode == 'max' or (mode == 'auto' and last_word in _HIGHER_IS_BETTER):
        return 'max'
    raise UserError(
        f"'auto' cannot tell whether smaller or larger values of {monitor!r} are better",
        where='config.early_stopping.mode',
        fix="set it to 'min' or 'max'",
    )


def stopping_rule(config: EarlyStoppingConfig) -> EarlyStopping | None:
    """Returns the configured rule; None where training never stops early.

    Raises:
        UserError: No epoch records the metric, or 'auto' cannot tell its direction.
    """
    if not config.monitor:
        return None
    monitor = resolve_monitor(config.monitor, MONITORED)
    return EarlyStopping(
        monitor=monitor,
        min_delta=config.min_delta,
        patience=config.patience,
        mode=resolve_mode(monitor, config.mode),
        baseline=None if math.isnan(config.baseline) else config.baseline,
        start_from_epoch=config.start_from_epoch,
        patience_steps=config.patience_steps,
        min_steps=config.min_steps,
    )

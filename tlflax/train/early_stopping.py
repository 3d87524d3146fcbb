"""Early stopping as a pure state machine, with Keras 3's meaning of every setting.

Follows `keras.callbacks.EarlyStopping` of Keras 3.15 with `restore_best_weights` to the letter, and
the tests drive the two side by side. Worth knowing:

* The first monitored value always becomes the best, even a NaN; then nothing improves on it.
  A later NaN is an epoch without improvement.
* Values are compared in float32, so float64 rounding never decides about `min_delta`.
* With a `baseline`, an epoch may be a new best and still count against `patience`; only one that
  also improves on the baseline starts the count anew.

Deliberately different: a metric that does not exist is an error, where Keras warns in every epoch
and never stops.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, Literal, Self

import numpy as np

from tlflax.utils.errors import UserError, did_you_mean

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
    """What early stopping remembers between epochs; part of a checkpoint.

    Attributes:
        best: The best monitored value; None before the first.
        best_epoch: Its epoch, the one to restore.
        wait: Epochs without improvement so far.
        stopped_epoch: The epoch after which training is to end; None: it goes on.
        improved: Whether the last epoch is the new best.
    """

    best: float | None = None
    best_epoch: int | None = None
    wait: int = 0
    stopped_epoch: int | None = None
    improved: bool = False

    @property
    def stopped(self) -> bool:
        return self.stopped_epoch is not None

    def to_json(self) -> dict[str, Any]:
        """Returns a dict that strict JSON can hold: a `best` that is not finite is spelled out."""
        spelled = self.best if self.best is None or math.isfinite(self.best) else str(self.best)
        return dataclasses.asdict(self) | {'best': spelled}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Self:
        """Returns the state whose `to_json` is `saved`."""
        return cls(**saved | {'best': None if saved['best'] is None else float(saved['best'])})


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """The rule: end training once `monitor` has stopped improving.

    Attributes:
        monitor: Name of the metric in an epoch's record.
        min_delta: An improvement is strictly larger than this.
        patience: Epochs without improvement after which training ends.
        mode: Whether smaller or larger values are better.
        baseline: A value to improve on before the patience starts anew; None: none.
        start_from_epoch: Epochs before this one, counted from 0, are not looked at.
    """

    monitor: str
    min_delta: float
    patience: int
    mode: Mode
    baseline: float | None
    start_from_epoch: int

    def init(self) -> State:
        """Returns the state before the first epoch."""
        return State()

    def update(self, state: State, value: float, epoch: int) -> State:
        """Returns the state after an epoch.

        Args:
            state: The state before it.
            value: The monitored metric; NaN and infinities are allowed.
            epoch: Its number, counted from 0.
        """
        if epoch < self.start_from_epoch:
            return dataclasses.replace(state, improved=False)
        wait = state.wait + 1
        if state.best is None or self._improves(value, state.best):
            beats_baseline = self.baseline is None or self._improves(value, self.baseline)
            return dataclasses.replace(
                state,
                best=value,
                best_epoch=epoch,
                wait=0 if beats_baseline else wait,
                improved=True,
            )
        stopped_epoch = epoch if wait >= self.patience else state.stopped_epoch
        return dataclasses.replace(state, wait=wait, stopped_epoch=stopped_epoch, improved=False)

    def _improves(self, value: float, reference: float) -> bool:
        sign = 1 if self.mode == 'max' else -1
        with np.errstate(over='ignore'):  # beyond float32 is infinite
            return bool(
                sign * np.float32(value - sign * abs(self.min_delta)) > sign * np.float32(reference)
            )


def resolve_monitor(name: str, available: Iterable[str]) -> str:
    """Returns the name under which the records hold a metric.

    Args:
        name: What the user asked for; Keras's spellings (`val_acc`, `acc`, `accuracy`, `loss`)
            stand for ours.
        available: The metrics of an epoch's record.

    Raises:
        UserError: There is no such metric.
    """
    available = list(available)
    resolved = name if name in available else _KERAS_NAMES.get(name, name)
    if resolved not in available:
        hint = did_you_mean(name, available)
        if not hint.startswith('choose'):
            hint = f'{hint} There are {", ".join(available)}'
        raise UserError(
            f'no epoch records a metric {name!r}', where='config.early_stopping.monitor', fix=hint
        )
    return resolved


def resolve_mode(monitor: str, mode: str) -> Mode:
    """Returns whether smaller or larger values of `monitor` are better.

    Args:
        monitor: A metric's name, as `resolve_monitor` returns it.
        mode: 'min', 'max', or 'auto' to tell from the name's last word.

    Raises:
        UserError: The mode is 'auto' and the name is not that of a well-known metric.
    """
    last_word = monitor.rpartition('_')[2]
    if mode == 'min' or (mode == 'auto' and last_word in _LOWER_IS_BETTER):
        return 'min'
    if mode == 'max' or (mode == 'auto' and last_word in _HIGHER_IS_BETTER):
        return 'max'
    raise UserError(
        f'auto cannot tell whether {monitor!r} is better small or large',
        where='config.early_stopping.mode',
        fix="set it to 'min' or 'max'",
    )

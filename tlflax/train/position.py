"""How far a training has come: its position, and the record of each completed epoch."""

import dataclasses

from tlflax.train.early_stopping import EarlyStopping, State, spelled
from tlflax.train.metrics.counts import VAL_METRICS
from tlflax.utils.files import JsonObject

Record = JsonObject
"""A line of metrics.jsonl; see `make_record`."""


@dataclasses.dataclass(frozen=True)
class Position:
    """How far a training has come.

    Attributes:
        epoch: Completed epochs.
        step_in_epoch: Completed steps of the next epoch.
        loss: Loss summed over the examples of those steps.
        correct: Number of correct predictions among them.
        count: Number of those examples.
        seconds: Seconds spent on those steps.
        stopping: The state of early stopping, which counts epochs and steps of the phase.
        phase: The number of the phase, from 0.
        began: Completed epochs before the phase.
        former_best: The best monitored value of the phases before; None if there is none.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    loss: float = 0.0
    correct: float = 0.0
    count: float = 0.0
    seconds: float = 0.0
    stopping: State = State()
    phase: int = 0
    began: int = 0
    former_best: float | None = None

    def ended(self, epochs: int) -> bool:
        """Returns whether the phase, of at most so many epochs, is over."""
        return self.stopping.stopped or self.epoch - self.began >= epochs

    def next_phase(self, rule: EarlyStopping | None) -> 'Position':
        """Returns the position at the start of the phase after this one, which has ended."""
        best = self.stopping.best
        if best is None or (
            self.former_best is not None
            and rule is not None
            and not rule.improves(best, self.former_best)
        ):
            best = self.former_best
        return Position(epoch=self.epoch, phase=self.phase + 1, began=self.epoch, former_best=best)

    def to_json(self) -> JsonObject:
        """Returns plain values for a checkpoint's metadata."""
        saved = {**dataclasses.asdict(self), 'stopping': self.stopping.to_json()}
        return {**saved, 'former_best': spelled(self.former_best)}

    @classmethod
    def from_json(cls, saved: JsonObject) -> 'Position':
        """Returns the position that `to_json` turned into `saved`."""
        names = {field.name for field in dataclasses.fields(cls)}
        known = {name: value for name, value in saved.items() if name in names}
        best = saved.get('former_best')
        known['former_best'] = None if best is None else float(best)
        return cls(**{**known, 'stopping': State.from_json(saved['stopping'])})


def make_record(
    position: Position,
    step: int,
    val: dict[str, float],
    learning_rate: float,
    val_seconds: float,
) -> Record:
    """Returns an epoch's line of metrics.jsonl.

    Args:
        position: At the end of the epoch's training.
        step: Completed optimizer steps.
        val: `VAL_METRICS` of the validation split.
        learning_rate: At `step`.
        val_seconds: Seconds spent on validation.
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


def next_epoch(position: Position, record: Record, rule: EarlyStopping | None) -> Position:
    """Returns the position at the start of the epoch after the one recorded."""
    stopping, epoch = position.stopping, position.epoch - position.began
    if rule is None:
        stopping = dataclasses.replace(stopping, best_epoch=epoch, improved=True)
    else:
        value = record[rule.monitor]
        steps = record['step'] * (epoch + 1) // (position.epoch + 1)  # all epochs are of one length
        stopping = rule.update(stopping, value, epoch, steps)
        former = position.former_best
        if former is not None and not rule.improves(value, former):
            stopping = dataclasses.replace(stopping, improved=False)
    return dataclasses.replace(
        Position(stopping=stopping),
        epoch=position.epoch + 1,
        phase=position.phase,
        began=position.began,
        former_best=position.former_best,
    )

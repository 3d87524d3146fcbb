"""How far a training has come: its position, and the record of each completed epoch."""

import dataclasses

from tlflax.train.early_stopping import EarlyStopping, State
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
        stopping: The state of early stopping.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    loss: float = 0.0
    correct: float = 0.0
    count: float = 0.0
    seconds: float = 0.0
    stopping: State = State()

    def to_json(self) -> JsonObject:
        """Returns plain values for a checkpoint's metadata."""
        return {**dataclasses.asdict(self), 'stopping': self.stopping.to_json()}

    @classmethod
    def from_json(cls, saved: JsonObject) -> 'Position':
        """Returns the position that `to_json` turned into `saved`."""
        names = {field.name for field in dataclasses.fields(cls)}
        known = {name: value for name, value in saved.items() if name in names}
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
    stopping = position.stopping
    if rule is not None:
        stopping = rule.update(stopping, record[rule.monitor], position.epoch, record['step'])
    else:
        stopping = dataclasses.replace(stopping, best_epoch=position.epoch, improved=True)
    return Position(epoch=position.epoch + 1, stopping=stopping)

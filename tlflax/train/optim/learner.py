"""Labeled parameters and their optimizer, as the configuration describes them."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import optax

from tlflax.config.schema import OptimConfig
from tlflax.models.base.modules import Variables
from tlflax.models.classifier import Params, split_state
from tlflax.train.optim.build import build_optimizer
from tlflax.train.optim.schedules import Number, build_schedules
from tlflax.utils.errors import UserError, did_you_mean
from tlflax.utils.labels import FROZEN, format_table, label_tree, partition
from tlflax.utils.trees import flatten


class Rates(NamedTuple):
    """The numbers of an optimizer that may be traced, so that one program serves many of them.

    Attributes:
        learning_rates: The peak learning rate of each trainable label.
        weight_decay: Decoupled weight decay, multiplied with the learning rate.
    """

    learning_rates: dict[str, Number]
    weight_decay: Number


@dataclasses.dataclass(frozen=True)
class Learner:
    """Labeled parameters and their optimizer.

    Attributes:
        trainable: Parameters that are trained, and state that changes with them.
        frozen: The other parameters and state.
        labels: The label of each trainable parameter.
        tx: The optimizer of `trainable`.
        learning_rate: Maps a step to the learning rate of the first label, for the record.
        table: Pattern, label, tensors, parameters and optimizer bytes, as text.
    """

    trainable: Variables
    frozen: Variables
    labels: Params
    tx: optax.GradientTransformation
    learning_rate: Callable[[int], float]
    table: str


def build_learner(
    config: OptimConfig, variables: Variables, *, steps_per_epoch: int, epochs: int
) -> Learner:
    """Labels parameters by `config.labels` and builds their optimizer.

    Raises:
        UserError: A pattern matches nothing, a parameter has no label, all are frozen, or the
            configuration contradicts itself.
    """
    params = variables.params
    labels = label_tree(params, config.labels)
    trainable, frozen = partition_variables(variables, labels)
    trainable_labels, _ = partition(labels, labels)
    rates = configured_rates(config, trainable_labels)
    schedules = build_schedules(
        config, rates.learning_rates, steps_per_epoch=steps_per_epoch, epochs=epochs
    )
    tx = build_optimizer(config, trainable_labels, schedules, rates.weight_decay)
    state = jax.eval_shape(tx.init, trainable.params)
    table = format_table(params, config.labels, state_bytes(state))
    first = next(iter(schedules.values()))
    return Learner(trainable, frozen, trainable_labels, tx, lambda step: float(first(step)), table)


def partition_variables(variables: Variables, labels: Params) -> tuple[Variables, Variables]:
    """Splits the variables of a model into (trainable, frozen) by the labels of its parameters."""
    trainable, frozen = partition(variables.params, labels)
    live, fixed = split_state(variables.state, trainable, frozen)
    return Variables(trainable, live), Variables(frozen, fixed)


def configured_rates(config: OptimConfig, labels: Params) -> Rates:
    """Returns the peak learning rate of each trainable label, and the weight decay.

    Raises:
        UserError: A rate is set for a label that no parameter has, or a weight decay for 'adam'.
    """
    if config.name == 'adam' and config.weight_decay:
        raise UserError(
            "'adam' has no weight decay", where='config.optim.weight_decay', fix="use 'adamw'"
        )
    peaks = label_rates(labels, default=config.learning_rate, overrides=config.learning_rates)
    return Rates(peaks, config.weight_decay)


def label_rates(
    labels: Params, *, default: Number, overrides: Sequence[tuple[str, Number]]
) -> dict[str, Number]:
    """Returns each trainable label's peak learning rate.

    Raises:
        UserError: `overrides` names a label that no parameter has.
    """
    names = set(flatten(labels).values()) - {FROZEN}
    for label, _ in overrides:
        if label not in names:
            raise UserError(
                f'no trainable parameter is labeled {label!r}',
                where='config.optim.learning_rates',
                fix=did_you_mean(label, sorted(names)),
            )
    return dict.fromkeys(sorted(names), default) | dict(overrides)


def state_bytes(state: optax.OptState) -> dict[str, int]:
    """Returns the bytes of optimizer state behind each label; shapes are enough."""
    return {
        label: sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(inner))
        for label, inner in state.inner_states.items()
    }

"""The optimizer: one `optax.multi_transform` over labeled parameters.

Parameters labeled 'frozen' never change. Moments, weight decay and the clipping norm belong to the
branches of the other labels and never see a frozen parameter.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import optax
from jax import Array

from tlflax.config.schema import OptimConfig
from tlflax.models.base.modules import Variables
from tlflax.models.classifier import Params, split_state
from tlflax.utils.errors import UserError, did_you_mean
from tlflax.utils.labels import FROZEN, format_table, label_tree, partition
from tlflax.utils.trees import flatten

Number = float | Array


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
    schedules = build_schedules(config, rates, steps_per_epoch=steps_per_epoch, epochs=epochs)
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


def build_schedules(
    config: OptimConfig, rates: Rates, *, steps_per_epoch: int, epochs: int
) -> dict[str, optax.Schedule]:
    """Returns the learning-rate schedule of each label; the rates may be traced."""
    return {
        label: schedule(
            peak,
            kind=config.schedule,
            warmup_steps=round(config.warmup_epochs * steps_per_epoch),
            total_steps=epochs * steps_per_epoch,
        )
        for label, peak in rates.learning_rates.items()
    }


def build_optimizer(
    config: OptimConfig,
    labels: Params,
    learning_rates: Mapping[str, optax.ScalarOrSchedule],
    weight_decay: Number,
) -> optax.GradientTransformation:
    """Returns the configured optimizer of labeled parameters; see `build`."""
    return build(
        labels,
        name=config.name,
        learning_rates=learning_rates,
        weight_decay=weight_decay,
        momentum=config.momentum,
        clip_norm=config.clip_norm,
    )


def schedule(peak: Number, *, kind: str, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Returns a learning-rate schedule over optimizer steps.

    Args:
        peak: The learning rate after warm-up; may be traced.
        kind: 'constant', or 'cosine' for a decay to zero at `total_steps` (Loshchilov & Hutter
            2017, arXiv:1608.03983).
        warmup_steps: Steps of linear rise from zero.
        total_steps: Length of the whole training.
    """
    if kind == 'cosine':
        steps = max(total_steps, warmup_steps + 1)
        first = 0.0 if warmup_steps else 1.0
        unit = optax.warmup_cosine_decay_schedule(first, 1.0, warmup_steps, steps)
        return lambda step: peak * unit(step)
    if warmup_steps:
        return optax.linear_schedule(0.0, peak, warmup_steps)
    return optax.constant_schedule(peak)


def build(
    labels: Params,
    *,
    name: str,
    learning_rates: Mapping[str, optax.ScalarOrSchedule],
    weight_decay: Number = 0.0,
    momentum: float = 0.9,
    clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """Returns the optimizer of a tree of labeled parameters.

    Args:
        labels: The parameters' tree with a label at each leaf.
        name: 'adam', 'adamw' or 'sgd'.
        learning_rates: One learning rate or schedule for each label but 'frozen'.
        weight_decay: Decoupled decay, multiplied with the learning rate (Loshchilov & Hutter 2019,
            arXiv:1711.05101); 'adam' has none. May be traced, as may the learning rates.
        momentum: Of 'sgd'.
        clip_norm: Largest global gradient norm of each label's parameters; 0 for no clipping.
    """
    transforms = {FROZEN: optax.set_to_zero()}
    for label in sorted(set(flatten(labels).values()) - {FROZEN}):
        steps = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
        rate = learning_rates[label]
        if name == 'sgd':
            steps += [optax.add_decayed_weights(weight_decay)]
            steps += [optax.sgd(rate, momentum=momentum)]
        elif name == 'adamw':
            steps += [optax.adamw(rate, weight_decay=weight_decay)]
        else:
            steps += [optax.adam(rate)]
        transforms[label] = optax.chain(*steps)
    return optax.multi_transform(transforms, labels)


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

"""Labeled parameters and their optimizer, as the configuration describes them."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
import optax

from tlflax.config.schema import OptimConfig
from tlflax.models.base.modules import Variables
from tlflax.models.classifier import Params, split_state
from tlflax.train.optim import decay, names
from tlflax.train.optim.build import build_optimizer
from tlflax.train.optim.ema import Average
from tlflax.train.optim.schedules import PLATEAU, Number, build_schedules
from tlflax.utils.errors import UserError, did_you_mean
from tlflax.utils.labels import FROZEN, format_table, label_tree, partition
from tlflax.utils.trees import Abstract, flatten, merge, unflatten

_SINCE = ' since phase '  # between a label and the phase in which a group of it began


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
        make: Maps rates, which may be traced, to the optimizer with them.
        average: The moving average of the trained parameters; None: there is none.
        learning_rate: Maps completed steps, and the optimizer's state after them, to the learning
            rate of the first label, for the record. Only schedule='plateau' needs the state.
        table: Pattern, label, tensors, parameters and optimizer bytes, as text.
    """

    trainable: Variables
    frozen: Variables
    labels: Params
    tx: optax.GradientTransformationExtraArgs
    make: Callable[[Rates], optax.GradientTransformationExtraArgs]
    average: Average | None
    learning_rate: Callable[..., float]
    table: str


def check_all_frozen(config: OptimConfig) -> None:
    """Checks that nothing is asked for trained layers of a backbone that has none.

    Raises:
        UserError: Something is.
    """
    asked = [
        *(['l2_sp'] if config.l2_sp else []),
        *(['layer_decay'] if config.layer_decay != 1 else []),
    ]
    if asked:
        raise UserError(
            'it is for layers of the backbone that are trained, and all are frozen',
            where=f'config.optim.{asked[0]}',
            fix="give layers of the backbone a label other than 'frozen' in optim.labels, or "
            'leave it at its default',
        )


def build_learner(
    config: OptimConfig,
    variables: Variables,
    *,
    steps_per_epoch: int,
    epochs: int,
    layers: Sequence[str] = (),
    since: Mapping[str, int] | None = None,
    first_epoch: int = 0,
) -> Learner:
    """Labels parameters by `config.labels` and builds their optimizer.

    Args:
        config: The optimizer's configuration, of one phase of a training.
        variables: All variables of the model, or their shapes.
        steps_per_epoch: Batches of an epoch.
        epochs: Length of the phase, for the schedules.
        layers: The layers of the backbone in order, for `config.layer_decay`.
        since: Path of each trained parameter to the phase since which it has been trained; None:
            all since the same. Those of one label that began at different times form groups with
            optimizer states of their own.
        first_epoch: The number of the first epoch of the phase, from 0.

    Raises:
        UserError: A pattern matches nothing, a parameter has no label, all are frozen, or the
            configuration contradicts itself.
    """
    params = variables.params
    labels = label_tree(params, config.labels)
    trainable, frozen = partition_variables(variables, labels, statistics=config.statistics)
    trainable_labels = _grouped(partition(labels, labels)[0], since or {})
    rates = configured_rates(config, trainable_labels)
    decay.check(config.decayed, params)
    _check_length(config, steps_per_epoch * epochs)
    factors = decay.layer_factors(params, layers, config.layer_decay)
    length = {'steps_per_epoch': steps_per_epoch, 'epochs': epochs}

    def make(rates: Rates) -> optax.GradientTransformationExtraArgs:
        return build_optimizer(
            config,
            trainable_labels,
            build_schedules(config, rates.learning_rates, **length),
            rates.weight_decay,
            factors=factors,
            steps_per_epoch=steps_per_epoch,
        )

    schedules = build_schedules(config, rates.learning_rates, **length)
    tx = make(rates)
    memory = _memory(config, tx, trainable_labels, trainable)
    return Learner(
        trainable=trainable,
        frozen=frozen,
        labels=trainable_labels,
        tx=tx,
        make=make,
        average=_average(config, first_epoch * steps_per_epoch),
        learning_rate=_recorded(config, next(iter(schedules.values()))),
        table=format_table(params, config.labels, memory),
    )


def _check_length(config: OptimConfig, steps: int) -> None:
    if config.accumulate_steps > steps:
        raise UserError(
            f'the {steps} batches of the whole training never make one update',
            where='config.optim.accumulate_steps',
            fix=f'give at most {steps}',
        )


def _average(config: OptimConfig, since: int) -> Average | None:
    if not config.ema_decay:
        return None
    return Average(config.ema_decay, config.accumulate_steps, since)


def _recorded(config: OptimConfig, schedule: optax.Schedule) -> Callable[..., float]:
    """Returns `Learner.learning_rate`."""

    def learning_rate(step: int, opt_state: optax.OptState = None) -> float:
        rate = float(schedule(step // config.accumulate_steps))
        if config.schedule == PLATEAU and opt_state is not None:
            rate *= float(np.asarray(opt_state[-1].scale))
        return rate

    return learning_rate


def partition_variables(
    variables: Variables, labels: Params, *, statistics: str = 'frozen'
) -> tuple[Variables, Variables]:
    """Splits the variables of a model into (trainable, frozen) by the labels of its parameters.

    Args:
        variables: Those of backbone and head.
        labels: The label of each parameter.
        statistics: Whether the state of the backbone's trained layers is 'frozen' or 'updated'.
    """
    trainable, frozen = partition(variables.params, labels)
    live, fixed = split_state(variables.state, trainable, frozen)
    if statistics == 'frozen' and 'backbone' in live:
        fixed = merge(fixed, {'backbone': live.pop('backbone')})
    return Variables(trainable, live), Variables(frozen, fixed)


def configured_rates(config: OptimConfig, labels: Params) -> Rates:
    """Returns the peak learning rate of each trainable label, and the weight decay.

    Raises:
        UserError: A rate is set for a label that no parameter has, or a weight decay for an
            optimizer that has none.
    """
    if config.weight_decay and not names.KINDS[config.name].mask:
        raise UserError(
            f'{config.name!r} has no weight decay',
            where='config.optim.weight_decay',
            fix=f'use {names.decaying(config.name)!r}',
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
    groups = set(flatten(labels).values()) - {FROZEN}
    names = set(map(_label, groups))
    for label, _ in overrides:
        if label not in names:
            raise UserError(
                f'no trainable parameter is labeled {label!r}',
                where='config.optim.learning_rates',
                fix=did_you_mean(label, sorted(names)),
            )
    peaks = dict.fromkeys(names, default) | dict(overrides)
    return {group: peaks[_label(group)] for group in sorted(groups)}


def _grouped(labels: Params, since: Mapping[str, int]) -> Params:
    """Returns labels whose parameters began together; see `build_learner`."""
    flat = flatten(labels)
    began: dict[str, set[int]] = {}
    for path, label in flat.items():
        began.setdefault(label, set()).add(since.get(path, 0))
    return unflatten(
        {
            path: f'{label}{_SINCE}{since[path] + 1}' if len(began[label]) > 1 else label
            for path, label in flat.items()
        }
    )


def _label(group: str) -> str:
    return group.partition(_SINCE)[0]


def state_bytes(state: optax.OptState) -> dict[str, int]:
    """Returns the bytes of optimizer state behind each label; shapes are enough."""
    found = jax.tree.leaves(state, is_leaf=lambda node: hasattr(node, 'inner_states'))
    inner_states = next(node.inner_states for node in found if hasattr(node, 'inner_states'))
    return {
        label: sum(
            _size(leaf)
            for group, inner in inner_states.items()
            if _label(group) == label
            for leaf in jax.tree.leaves(inner)
        )
        for label in map(_label, inner_states)
    }


def _memory(
    config: OptimConfig, tx: optax.GradientTransformation, labels: Params, trainable: Variables
) -> dict[str, int]:
    """Returns `state_bytes`, with the bytes of mean gradients and of the moving average."""
    found = state_bytes(jax.eval_shape(tx.init, trainable.params))
    copies = (config.accumulate_steps > 1) + bool(config.ema_decay)
    params = flatten(trainable.params)
    for path, label in flatten(labels).items():
        found[_label(label)] += copies * _size(params[path])
    return found


def _size(leaf: Abstract) -> int:
    return math.prod(leaf.shape) * leaf.dtype.itemsize

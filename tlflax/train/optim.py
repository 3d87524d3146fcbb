"""Labels to optimizers: one `optax.multi_transform` over the parameters.

Frozen parameters are labeled 'frozen'; everything that could touch the others (moments, weight
decay, the clipping norm) lives inside their own branch and so never sees a frozen one.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax
from jax import Array

from tlflax.utils.errors import UserError, did_you_mean
from tlflax.utils.labels import FROZEN
from tlflax.utils.trees import flatten


def schedule(
    peak: float | Array, *, kind: str, warmup_steps: int, total_steps: int
) -> optax.ScalarOrSchedule:
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
    labels: Any,
    *,
    name: str,
    learning_rates: Mapping[str, optax.ScalarOrSchedule],
    weight_decay: float | Array = 0.0,
    momentum: float = 0.9,
    clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """Returns the optimizer of a tree of labeled parameters.

    Args:
        labels: The parameters' tree with a label at each leaf.
        name: 'adam', 'adamw' or 'sgd'.
        learning_rates: One learning rate or schedule for each label but 'frozen'.
        weight_decay: Decoupled decay, multiplied with the learning rate (Loshchilov & Hutter 2019,
            arXiv:1711.05101); not for 'adam'. May be traced, as may the learning rates.
        momentum: For 'sgd'.
        clip_norm: Largest global gradient norm of each label's parameters; 0 for no clipping.

    Raises:
        UserError: Weight decay is asked of 'adam'.
    """
    if name == 'adam' and weight_decay:
        raise UserError(
            "'adam' has no weight decay", where='config.optim.weight_decay', fix="use 'adamw'"
        )
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
    labels: Any, *, default: float | Array, overrides: Sequence[tuple[str, float | Array]]
) -> dict[str, float | Array]:
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

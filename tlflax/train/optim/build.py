"""One `optax.multi_transform` over labeled parameters.

Parameters labeled 'frozen' never change. Moments, weight decay and the clipping norm belong to the
branches of the other labels and never see a frozen parameter.
"""

from collections.abc import Mapping

import optax

from tlflax.config.schema import OptimConfig
from tlflax.models.classifier import Params
from tlflax.train.optim.schedules import Number
from tlflax.utils.labels import FROZEN
from tlflax.utils.trees import flatten


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

"""The optax chain: one `optax.multi_transform` over labeled parameters, and what goes around it.

Parameters labeled 'frozen' never change. Moments, weight decay and the clipping norm belong to the
branches of the other labels and never see a frozen parameter.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax
import optax.contrib

from tlflax.config.schema import OptimConfig
from tlflax.models.classifier import Params
from tlflax.train.optim import decay, names
from tlflax.train.optim.schedules import PLATEAU, Number
from tlflax.utils.labels import FROZEN
from tlflax.utils.trees import flatten


def build_optimizer(
    config: OptimConfig,
    labels: Params,
    learning_rates: Mapping[str, optax.ScalarOrSchedule],
    weight_decay: Number,
    *,
    factors: Mapping[str, float],
    steps_per_epoch: int,
) -> optax.GradientTransformationExtraArgs:
    """Returns the configured optimizer of labeled parameters.

    Its update takes `value`, the training loss of the batch, and `grad_fn`, which maps parameters
    and a number that does not matter to the gradients of the batch.

    Args:
        config: The section `optim`.
        labels: The parameters' tree with a label at each leaf.
        learning_rates: See `build`.
        weight_decay: See `build`.
        factors: See `build`.
        steps_per_epoch: Batches in an epoch.
    """
    tx = optax.with_extra_args_support(
        build(
            labels,
            name=config.name,
            learning_rates=learning_rates,
            weight_decay=weight_decay,
            decayed=config.decayed,
            momentum=config.momentum,
            clip_norm=config.clip_norm,
            factors=factors,
        )
    )
    if config.accumulate_steps > 1:
        multi = optax.MultiSteps(tx, config.accumulate_steps)
        tx = optax.GradientTransformationExtraArgs(multi.init, multi.update)
    if config.sam_rho:
        tx = sharpness_aware(tx, config.sam_rho)
    if config.schedule == PLATEAU:
        reduced = optax.contrib.reduce_on_plateau(
            config.plateau_factor, config.plateau_patience, accumulation_size=steps_per_epoch
        )
        tx = optax.with_extra_args_support(optax.chain(tx, reduced))
    return tx


def build(
    labels: Params,
    *,
    name: str,
    learning_rates: Mapping[str, optax.ScalarOrSchedule],
    weight_decay: Number = 0.0,
    decayed: Sequence[str] = (),
    momentum: float = 0.9,
    clip_norm: float = 0.0,
    factors: Mapping[str, float] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer of a tree of labeled parameters.

    Args:
        labels: The parameters' tree with a label at each leaf.
        name: A key of `tlflax.train.optim.names.KINDS`.
        learning_rates: One learning rate or schedule for each label but 'frozen'.
        weight_decay: Decoupled decay, multiplied with the learning rate (Loshchilov & Hutter 2019,
            arXiv:1711.05101). May be traced, as may the learning rates.
        decayed: Which parameters are decayed; see `tlflax.train.optim.decay.mask`.
        momentum: Of the optimizers that have one.
        clip_norm: Largest global gradient norm of each label's parameters; 0 for no clipping.
        factors: Factors of the learning rates of layers of the backbone; those that are not named
            have 1.
    """
    transforms = {FROZEN: optax.set_to_zero()}
    mask = decay.mask(decayed)
    slowed = any(factor != 1 for factor in (factors or {}).values())
    for label in sorted(set(flatten(labels).values()) - {FROZEN}):
        steps = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
        steps += names.make(
            name, learning_rates[label], weight_decay=weight_decay, mask=mask, momentum=momentum
        )
        steps += [decay.scale_layers(factors or {})] if slowed else []
        transforms[label] = optax.chain(*steps)
    return optax.multi_transform(transforms, labels)


def sharpness_aware(
    tx: optax.GradientTransformation, rho: float
) -> optax.GradientTransformationExtraArgs:
    """Returns an optimizer that uses the gradient at the worst point near the parameters.

    Sharpness-aware minimization (Foret et al. 2021, arXiv:2010.01412): the gradient g is replaced
    by the one at w + rho * g / |g|, of the same batch.

    Args:
        tx: The optimizer that it is given to.
        rho: The distance, in the norm of all trained parameters together.
    """
    # Not optax.contrib.normalize: the gradient of a loss of exactly zero is no number there.
    unit = optax.stateless(lambda grads, _: _scaled(grads, 1 / (optax.tree.norm(grads) + 1e-12)))
    sam = optax.contrib.sam(tx, optax.chain(unit, optax.sgd(rho)), opaque_mode=True)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        grad_fn: Any,
        **_: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        return sam.update(updates, state, params, grad_fn=grad_fn)

    return optax.GradientTransformationExtraArgs(sam.init, update)


def _scaled(tree: optax.Updates, factor: Number) -> optax.Updates:
    return jax.tree.map(lambda leaf: leaf * factor, tree)

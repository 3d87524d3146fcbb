"""Losses: cross-entropy for evaluation; for training also focal loss, class weights, logit shifts.

A batch's training loss is the sum of its examples' weighted losses divided by the number of
examples, as in Keras, not by the sum of their weights, as in PyTorch: an example counts the same in
every batch.
"""

import collections
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Float64, Int

from tlflax.config.schema import LossConfig
from tlflax.utils.errors import UserError, did_you_mean, quoted
from tlflax.utils.parallel.placement import ClassShards
from tlflax.utils.trees import Tree

Number = Any  # a float, a NumPy number or array, or traced
Scalar = float | np.floating | Array
_KEY = 'config.loss.weights_by_class'
_SHOWN = 10  # class weights in a description


class Loss(NamedTuple):
    """The numbers of a training loss. They may be traced; parts that are None are not used.

    Attributes:
        smoothing: Label smoothing.
        gamma: The focusing exponent of the focal loss; None for cross-entropy.
        class_weight: The weight of each class's examples.
        shift: The number added to each class's logit.
        l2_sp: The strength of L2-SP.
        start: The pretrained parameters of the backbone that are trained, for L2-SP.
    """

    smoothing: Float[Number, ''] = 0.0
    gamma: Float[Number, ''] | None = None
    class_weight: Float[Number, ' classes'] | None = None
    shift: Float[Number, ' classes'] | None = None
    l2_sp: Float[Number, ''] | None = None
    start: Tree | None = None


def cross_entropy(
    logits: Float[Array, 'b classes'],
    label: Int[Array, ' b'],
    smoothing: Scalar = 0.0,
    shards: ClassShards | None = None,
) -> Float[Array, ' b']:
    """Softmax cross-entropy, in nats, of each example.

    Label smoothing mixes the one-hot target with the uniform distribution (Szegedy et al. 2016,
    arXiv:1512.00567).

    Args:
        logits: Of the model.
        label: The true classes.
        smoothing: The weight of the uniform distribution.
        shards: How the logits are split over devices by class; None: they are not.
    """
    return _expected(-jax.nn.log_softmax(logits), label, smoothing, shards)


def training_losses(
    loss: Loss,
    logits: Float[Array, 'b classes'],
    batch: dict[str, Array],
    shards: ClassShards | None = None,
) -> Float[Array, ' b']:
    """Returns each example's weighted training loss.

    Args:
        loss: The loss. Its class weights multiply, as in Keras, all that an example of the class
            contributes, smoothing included.
        logits: Of the model.
        batch: Holds 'label'. With 'mix' f[b] and 'mix_label' i[b], the target is the mixture
            mix * label + (1 - mix) * mix_label, each part with its own class's weight. 'weight'
            f[b] multiplies the example's loss.
        shards: See `cross_entropy`.
    """
    if loss.shift is not None:
        logits = logits + (loss.shift if shards is None else shards.padded(loss.shift))
    gamma = loss.gamma
    costs = -jax.nn.log_softmax(logits) if gamma is None else _focal_costs(logits, gamma)

    def of(label: Int[Array, ' b']) -> Float[Array, ' b']:
        losses = _expected(costs, label, loss.smoothing, shards)
        return losses if loss.class_weight is None else loss.class_weight[label] * losses

    losses = of(batch['label'])
    if 'mix' in batch:
        losses = batch['mix'] * losses + (1 - batch['mix']) * of(batch['mix_label'])
    return batch['weight'] * losses if 'weight' in batch else losses


def penalty(loss: Loss, params: Tree) -> Scalar:
    """Returns the part of the loss that is of the parameters; no metric has it.

    L2-SP (Li et al. 2018, arXiv:1802.01483): half the squared distance of the backbone's trained
    parameters from the pretrained ones, times its strength.

    Args:
        loss: The loss.
        params: The parameters that are trained.
    """
    if loss.l2_sp is None:
        return 0.0
    moved = optax.tree.sub(params['backbone'], loss.start)
    return 0.5 * loss.l2_sp * optax.tree.norm(moved, squared=True)


def balanced_weights(counts: Int[np.ndarray, ' classes']) -> Float64[np.ndarray, ' classes']:
    """Returns n / (classes * count), as scikit-learn's 'balanced': 1 on average over the examples.

    Classes without examples are not counted, and weigh 1.
    """
    present = counts > 0
    return np.where(present, counts.sum() / (present.sum() * np.maximum(counts, 1)), 1.0)


def effective_weights(
    counts: Int[np.ndarray, ' classes'], beta: float
) -> Float64[np.ndarray, ' classes']:
    """Returns (1 - beta) / (1 - beta^count), scaled to 1 on average over the classes.

    The effective number of samples (Cui et al. 2019, arXiv:1901.05555); 0 gives equal weights, and
    towards 1 they go with the inverse count. Classes without examples weigh 1.
    """
    present = counts > 0
    # 1 - beta^count, exact also where beta is close to one
    number = -np.expm1(counts[present] * math.log(beta)) if beta else np.ones(present.sum())
    weights = np.ones(len(counts))
    weights[present] = present.sum() / number / (1 / number).sum()
    return weights


def named_weights(
    pairs: Sequence[tuple[str, float]], classes: Sequence[str]
) -> Float64[np.ndarray, ' classes']:
    """Returns the weights given by class name; the other classes weigh 1.

    Raises:
        UserError: A class is unknown or named twice, or a weight is negative or not finite.
    """
    given = dict(pairs)
    for name, times in collections.Counter(name for name, _ in pairs).items():
        if name not in classes:
            raise UserError(
                f'there is no class {quoted(name, classes)}',
                where=_KEY,
                fix=did_you_mean(name, classes),
            )
        if times > 1:
            raise UserError(
                f'class {name!r} is named {times} times', where=_KEY, fix='name it once'
            )
        if not 0 <= given[name] < math.inf:
            raise UserError(
                f'the weight {given[name]} of class {name!r} is not valid',
                where=_KEY,
                fix='give a finite number that is at least 0',
            )
    return np.array([given.get(name, 1.0) for name in classes])


def build(
    config: LossConfig,
    *,
    smoothing: float,
    counts: Int[np.ndarray, ' classes'],
    classes: Sequence[str],
) -> Loss:
    """Returns the training loss that a configuration asks for.

    Logit adjustment adds tau * log(prior) to the logits, where the prior is the class's part of the
    training images (Menon et al. 2021, arXiv:2007.07314, eq. 10). A class without images counts as
    if it had one.

    Args:
        config: The section `loss`.
        smoothing: Label smoothing.
        counts: Training images of each class.
        classes: Their names.

    Raises:
        UserError: Weights are given by class and not asked for, or the reverse; see
            `named_weights`.
    """
    explicit = config.class_weights == 'explicit'
    if explicit != bool(config.weights_by_class):
        raise UserError(
            'explicit class weights are not given' if explicit else 'these weights are not used',
            where=_KEY if explicit else f'{_KEY} and config.loss.class_weights',
            fix="give (class, weight) pairs, such as (('yellow', 5.0),)"
            if explicit
            else "set config.loss.class_weights='explicit'",
        )
    weight = {
        'none': lambda: None,
        'balanced': lambda: balanced_weights(counts),
        'effective': lambda: effective_weights(counts, config.effective_beta),
        'explicit': lambda: named_weights(config.weights_by_class, classes),
    }[config.class_weights]()
    if weight is not None and not (weight * counts).any():
        raise UserError(
            'the weight of every class that has training images is 0, so nothing would be learned',
            where=_KEY,
            fix='give one of them a weight above 0',
        )
    shift = None
    if config.logit_adjustment:
        shift = config.logit_adjustment * np.log(np.maximum(counts, 1) / counts.sum())
    return Loss(
        smoothing=np.float32(smoothing),
        gamma=np.float32(config.gamma) if config.name == 'focal' else None,
        class_weight=None if weight is None else weight.astype(np.float32),
        shift=None if shift is None else shift.astype(np.float32),
    )


def structure(config: LossConfig) -> LossConfig:
    """Returns the configuration without the numbers: equal where one program serves both."""
    return LossConfig(
        name=config.name,
        class_weights='none' if config.class_weights == 'none' else 'balanced',
        logit_adjustment=float(config.logit_adjustment > 0),
    )


def describe_overlap(config: LossConfig, *, balanced_sampling: bool) -> str | None:
    """Returns a warning if the same imbalance is corrected more than once, else None."""
    means = [
        *(['loss.class_weights'] if config.class_weights in ('balanced', 'effective') else []),
        *(['loss.logit_adjustment'] if config.logit_adjustment else []),
        *(['train.balanced_sampling'] if balanced_sampling else []),
    ]
    if len(means) < 2:
        return None
    return f'{" and ".join(means)} each correct the same imbalance: rare classes count twice'


def describe_weights(loss: Loss, classes: Sequence[str]) -> str:
    """Returns the class weights in words, the largest first; '' if there are none."""
    if loss.class_weight is None:
        return ''
    pairs = sorted(zip(loss.class_weight.tolist(), classes, strict=True), reverse=True)
    shown = ', '.join(f'{name!r} {weight:.4g}' for weight, name in pairs[:_SHOWN])
    rest = f' and {len(pairs) - _SHOWN} smaller' if len(pairs) > _SHOWN else ''
    return f'class weights: {shown}{rest}'


def _expected(
    costs: Float[Array, 'b classes'],
    label: Int[Array, ' b'],
    smoothing: Scalar,
    shards: ClassShards | None,
) -> Float[Array, ' b']:
    """Returns the mean cost of each row under the smoothed target."""
    if shards is not None:
        right, mean = shards.of_label(costs, label), shards.mean(costs)
        return (1 - smoothing) * right + smoothing * mean
    right = jnp.take_along_axis(costs, label[:, None], axis=-1)[:, 0]
    return (1 - smoothing) * right + smoothing * costs.mean(-1)


def _focal_costs(logits: Float[Array, 'b classes'], gamma: Scalar) -> Float[Array, 'b classes']:
    log_p = jax.nn.log_softmax(logits)
    # A power below one has an infinite slope at zero, where the cost is zero.
    wrong = jnp.maximum(-jnp.expm1(log_p), 1e-30)
    return wrong**gamma * -log_p

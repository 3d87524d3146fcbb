"""What happens to one batch: losses, metric sums, `train_step` and `eval_step`, all pure."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Shaped

from tlflax.models.classifier import Classifier, Params
from tlflax.trees import merge

Batch = dict[str, Array]


class TrainState(NamedTuple):
    """What a step changes.

    Attributes:
        step: i32 scalar, optimiser steps done.
        params: The trainable parameters alone.
        opt_state: Their optimiser state.
    """

    step: Int[Array, '']
    params: Params
    opt_state: optax.OptState


class Sums(NamedTuple):
    """Mergeable metrics: sums over examples, to be divided by `examples` once, at the end.

    Attributes:
        loss: f32 sum of the examples' losses.
        correct: f32 number of right predictions.
        examples: f32 number of examples.
    """

    loss: Float[Array, '']
    correct: Float[Array, '']
    examples: Float[Array, '']


def init_state(params: Params, tx: optax.GradientTransformation) -> TrainState:
    """Returns the state before the first step, for the trainable parameters `params`."""
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))


def cross_entropy(
    logits: Float[Array, 'b classes'], label: Int[Array, ' b'], smoothing: float | Array = 0.0
) -> Float[Array, ' b']:
    """Softmax cross-entropy, in nats, of each example.

    Label smoothing mixes the one-hot target with the uniform distribution (Szegedy et al. 2016,
    arXiv:1512.00567).
    """
    log_p = jax.nn.log_softmax(logits)
    right = jnp.take_along_axis(log_p, label[:, None], axis=-1)[:, 0]
    return -(1 - smoothing) * right - smoothing * log_p.mean(-1)


def metric_sums(
    logits: Float[Array, 'b classes'], losses: Float[Array, ' b'], batch: Batch
) -> Sums:
    """Sums loss and right answers over a batch's real examples."""
    mask: Bool[Array, ' b'] = batch['mask']
    correct = (logits.argmax(-1) == batch['label']) & mask
    return Sums(
        jnp.where(mask, losses, 0).sum(),
        correct.sum(dtype=jnp.float32),
        mask.sum(dtype=jnp.float32),
    )


def update(
    state: TrainState,
    frozen: Params,
    batch: Batch,
    seed: Int[Array, ''] | int,
    smoothing: Float[Array, ''] | float,
    *,
    classifier: Classifier,
    tx: optax.GradientTransformation,
) -> tuple[TrainState, Sums]:
    """One optimiser step on the trainable parameters.

    Only they are differentiated. A backbone without any trainable parameter runs before, outside
    the differentiated function; the part of a backbone below its first trainable layer depends on
    nothing that is differentiated, so no gradient is computed for it either.

    Args:
        state: The state before the step.
        frozen: The parameters that never change; empty branches are left out.
        batch: Images or features with 'label' and 'mask'.
        seed: Of dropout; the key depends on it and on the step number alone.
        smoothing: Label smoothing.
        classifier: The static half of the model.
        tx: The optimiser of `state.params`.

    Returns:
        The new state, and the sums of loss and right answers before the update.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    if 'backbone' not in state.params and 'features' not in batch:
        features = classifier.features(frozen['backbone'], batch['image'])
        batch = {**batch, 'features': features}

    def loss_fn(params: Params) -> tuple[Array, Sums]:
        logits = classifier(merge(params, frozen), batch, key)
        losses = cross_entropy(logits, batch['label'], smoothing)
        sums = metric_sums(logits, losses, batch)
        return sums.loss / jnp.maximum(sums.examples, 1), sums

    grads, sums = jax.grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state), sums


train_step = functools.partial(
    jax.jit, static_argnames=('classifier', 'tx'), donate_argnames=('state',)
)(update)
"""`update`, compiled once for each model and optimiser; the old state's memory is reused."""


@functools.partial(jax.jit, static_argnames=('classifier',))
def eval_step(params: Params, batch: Batch, *, classifier: Classifier) -> tuple[Sums, Array]:
    """Returns the metric sums of a batch and its class probabilities, f32[b, classes]."""
    logits = classifier(params, batch)
    losses = cross_entropy(logits, batch['label'])
    return metric_sums(logits, losses, batch), jax.nn.softmax(logits)


@functools.partial(jax.jit, static_argnames=('classifier',))
def backbone_step(
    backbone: Params, image: Shaped[Array, 'b h w 3'], *, classifier: Classifier
) -> Float[Array, 'b ...']:
    """Returns a batch's features, for the cache."""
    return classifier.features(backbone, image)


class Resident(NamedTuple):
    """Features that stay on the device for the whole run.

    Attributes:
        features: One row for each (image, view).
        label: The class of each row.
    """

    features: Float[Array, 'rows ...']
    label: Int[Array, ' rows']


def _gather(resident: Resident, rows: Int[Array, ' b']) -> Batch:
    """Returns the batch of these rows; a negative row is padding."""
    return {
        'features': resident.features[rows],
        'label': resident.label[rows],
        'mask': rows >= 0,
    }


def update_many(
    state: TrainState,
    frozen: Params,
    resident: Resident,
    rows: Int[Array, 'steps b'],
    seed: Int[Array, ''] | int,
    smoothing: Float[Array, ''] | float,
    *,
    classifier: Classifier,
    tx: optax.GradientTransformation,
) -> tuple[TrainState, Sums]:
    """Many `update`s as one program; the sums have a leading axis of steps."""

    def body(state: TrainState, rows: Array) -> tuple[TrainState, Sums]:
        batch = _gather(resident, rows)
        return update(state, frozen, batch, seed, smoothing, classifier=classifier, tx=tx)

    return jax.lax.scan(body, state, rows)


train_scan = functools.partial(
    jax.jit, static_argnames=('classifier', 'tx'), donate_argnames=('state',)
)(update_many)
"""`update_many`, compiled once for each model and optimiser."""


@functools.partial(jax.jit, static_argnames=('classifier',))
def eval_scan(
    params: Params,
    resident: Resident,
    rows: Int[Array, 'steps b'],
    *,
    classifier: Classifier,
) -> tuple[Sums, Float[Array, 'steps b classes']]:
    """Many `eval_step`s as one program."""

    def body(carry: None, rows: Array) -> tuple[None, tuple[Sums, Array]]:
        return None, eval_step(params, _gather(resident, rows), classifier=classifier)

    return jax.lax.scan(body, None, rows)[1]


class Totals(NamedTuple):
    """`Sums` on the host, in float64."""

    loss: float
    correct: float
    examples: float


def totals(sums: list[Sums]) -> Totals:
    """Adds up sums, each a scalar or with a leading axis, in float64."""
    host = jax.device_get(sums)
    return Totals(*(sum(float(np.sum(s[i], dtype=np.float64)) for s in host) for i in range(3)))


def means(sums: list[Sums]) -> dict[str, float]:
    """Divides once: `loss` in nats, `accuracy` and `num_examples` over all of `sums`."""
    loss, correct, count = totals(sums)
    return {
        'loss': loss / count if count else float('nan'),
        'accuracy': correct / count if count else float('nan'),
        'num_examples': int(count),
    }

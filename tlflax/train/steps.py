"""Pure functions of one batch: metric sums, `train_step` and `eval_step`."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from tlflax.features.batches import OnDevice
from tlflax.models.base.modules import Training, Variables
from tlflax.models.classifier import Classifier, Params
from tlflax.models.standard_heads import for_these_devices
from tlflax.train import losses
from tlflax.train.metrics.counts import ClassCounts, by_class
from tlflax.train.optim.ema import Average
from tlflax.utils.parallel import parts
from tlflax.utils.parallel.placement import ClassShards
from tlflax.utils.trees import flatten, like

Batch = dict[str, Array]


class TrainState(NamedTuple):
    """The state that a training step changes.

    Attributes:
        step: i32 scalar, completed optimizer steps.
        params: The trainable parameters alone.
        opt_state: Their optimizer state.
        model_state: What changes without a gradient, such as the statistics of BatchNorm.
        ema: The moving average of `params`; {}: there is none.
    """

    step: Int[Array, '']
    params: Params
    opt_state: optax.OptState
    model_state: Params
    ema: Params

    @property
    def variables(self) -> Variables:
        """What training has changed of the model."""
        return Variables(self.params, self.model_state)

    @property
    def evaluated(self) -> Variables:
        """What is used of it outside of training: with the moving average, if there is one."""
        return Variables(self.ema or self.params, self.model_state)


class Sums(NamedTuple):
    """Mergeable metrics: sums over examples, divided once by `examples` at the end.

    Attributes:
        loss: f32 sum of the examples' losses.
        correct: f32 number of correct predictions.
        examples: f32 number of examples.
    """

    loss: Float[Array, '']
    correct: Float[Array, '']
    examples: Float[Array, '']


class EvalSums(NamedTuple):
    """Mergeable metrics of evaluation."""

    sums: Sums
    counts: ClassCounts


def init_state(
    variables: Variables, tx: optax.GradientTransformation, average: Average | None = None
) -> TrainState:
    """Returns the state before the first step, for what training changes of the model."""
    params, model_state = variables
    ema = {} if average is None else jax.tree.map(jnp.array, params)  # a copy: both are donated
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), model_state, ema)


first_state = functools.partial(jax.jit, static_argnames=('tx', 'average'))(init_state)
"""`init_state`, compiled: operation by operation, each shape would be a program of its own."""


def metric_sums(
    logits: Float[Array, 'b classes'],
    loss: Float[Array, ' b'],
    batch: Batch,
    shards: ClassShards | None = None,
) -> Sums:
    """Sums loss and correct predictions over a batch's real examples.

    For a mixture of two labels, a prediction is correct by the share of its label (as in the code
    of Zhang et al. 2018, arXiv:1710.09412).
    """
    mask: Bool[Array, ' b'] = batch['mask']
    predicted = _predicted(logits, shards)
    right = (predicted == batch['label']).astype(jnp.float32)
    if 'mix' in batch:
        right = batch['mix'] * right + (1 - batch['mix']) * (predicted == batch['mix_label'])
    return Sums(
        jnp.where(mask, loss, 0).sum(),
        jnp.where(mask, right, 0).sum(),
        mask.sum(dtype=jnp.float32),
    )


def _predicted(logits: Float[Array, 'b classes'], shards: ClassShards | None) -> Int[Array, ' b']:
    return logits.argmax(-1) if shards is None else shards.argmax(logits)


def class_counts(
    predicted: Int[Array, ' b'], label: Int[Array, ' b'], mask: Bool[Array, ' b'], classes: int
) -> ClassCounts:
    """Counts the real examples by class, exactly, in integers."""

    def count(of: Array, which: Array) -> Array:
        return jnp.zeros(classes, jnp.int32).at[of].add(which.astype(jnp.int32))

    right = mask & (predicted == label)
    return ClassCounts(count(label, right), count(label, mask), count(predicted, mask))


def gradients(
    state: TrainState,
    frozen: Variables,
    batch: Batch,
    seed: Int[Array, ''] | int,
    loss: losses.Loss,
    *,
    classifier: Classifier,
) -> tuple[Params, tuple[Sums, Params]]:
    """Differentiates the loss of a batch with respect to the trainable parameters alone.

    What lies below the cut runs before, outside the differentiated function; what lies above it and
    below the first trainable layer depends on nothing that is differentiated, so no gradient is
    computed for it either.

    Args:
        state: The state before the step.
        frozen: The parameters and state that never change; empty branches are left out.
        batch: Images or features with 'label' and 'mask', and what
            `tlflax.train.losses.training_losses` knows.
        seed: Of dropout; the key depends on it and on the step number alone.
        loss: What is minimized, averaged over the real examples.
        classifier: The static half of the model.

    Returns:
        The gradients, and the sums of loss and correct predictions and the model's state after.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    training = Training(key, batch['mask'], frozenset(flatten(state.model_state)))
    batch = _at_cut(frozen, batch, classifier)
    if classifier.adders is not None and parts.divides(batch, classifier.adders):
        return _added_gradients(state, frozen, batch, key, loss, classifier, classifier.adders)
    shards, targets = classifier.shards, _targets(batch, classifier.shards)

    def loss_fn(params: Params) -> tuple[Array, tuple[Sums, Params]]:
        variables = Variables(params, state.model_state).merge(frozen)
        with for_these_devices():
            logits, after = classifier(variables, batch, training)
        each = losses.training_losses(loss, logits, targets, shards)
        sums = metric_sums(logits, each, targets, shards)
        return _mean(sums) + losses.penalty(loss, params), (sums, after)

    return jax.grad(loss_fn, has_aux=True)(state.params)


def _added_gradients(
    state: TrainState,
    frozen: Variables,
    batch: Batch,
    key: Array,
    loss: losses.Loss,
    classifier: Classifier,
    mesh: Mesh,
) -> tuple[Params, tuple[Sums, Params]]:
    """As `gradients`; each device differentiates the sum of its examples' losses.

    It is divided by the number of examples when gradients and sums are added up.
    """

    def of_part(whole: Any, part: Batch) -> tuple[Params, Sums]:
        params, model_state, frozen, key, loss = whole
        training = Training(key, part['mask'], frozenset())

        def loss_fn(params: Params) -> tuple[Array, Sums]:
            variables = Variables(params, model_state).merge(frozen)
            logits, _ = classifier(variables, part, training)
            sums = metric_sums(logits, losses.training_losses(loss, logits, part), part)
            return sums.loss, sums

        return jax.grad(loss_fn, has_aux=True)(params)

    whole = (state.params, state.model_state, frozen, key, loss)
    grads, sums = parts.sums(of_part, whole, batch, mesh)
    count = jnp.maximum(sums.examples, 1)
    grads = jax.tree.map(lambda grad: grad / count, grads)
    if loss.l2_sp is not None:
        own = jax.grad(lambda params: losses.penalty(loss, params))(state.params)
        grads = jax.tree.map(jnp.add, grads, own)
    return grads, (sums, state.model_state)


def _targets(batch: Batch, shards: ClassShards | None) -> Batch:
    """Returns the batch without what the model reads; of all examples, where logits are too."""
    targets = {key: value for key, value in batch.items() if key not in ('features', 'image')}
    return targets if shards is None else shards.gathered(targets)


def _mean(sums: Sums) -> Float[Array, '']:
    return sums.loss / jnp.maximum(sums.examples, 1)


def _at_cut(frozen: Variables, batch: Batch, classifier: Classifier) -> Batch:
    """Adds the features of images, unless the batch has them or the cut is the image."""
    if 'features' in batch or classifier.cut_is_image:
        return batch
    features = classifier.features(frozen.branch('backbone'), batch['image'])
    return {**batch, 'features': features}


gradient_step = functools.partial(jax.jit, static_argnames=('classifier',))(gradients)
"""`gradients`, compiled, for a step that is not taken."""


def update(
    state: TrainState,
    frozen: Variables,
    batch: Batch,
    seed: Int[Array, ''] | int,
    loss: losses.Loss,
    *,
    classifier: Classifier,
    tx: optax.GradientTransformation,
    average: Average | None = None,
) -> tuple[TrainState, Sums]:
    """Takes one optimizer step on the trainable parameters; other arguments as of `gradients`.

    Args:
        tx: The optimizer of `state.params`.
        average: The moving average of them; None: there is none.

    Returns:
        The new state, and the sums of loss and correct predictions before the update.
    """
    batch = _at_cut(frozen, batch, classifier)

    def gradients_at(params: Params) -> tuple[Params, tuple[Sums, Params]]:
        there = state._replace(params=params)
        return gradients(there, frozen, batch, seed, loss, classifier=classifier)

    grads, (sums, after) = gradients_at(state.params)
    updates, opt_state = optax.with_extra_args_support(tx).update(
        grads,
        state.opt_state,
        state.params,
        value=_mean(sums),
        grad_fn=lambda params, _: gradients_at(params)[0],
    )
    params, step = optax.apply_updates(state.params, updates), state.step + 1
    ema = state.ema if average is None else average.updated(state.ema, params, step)
    new = TrainState(step, params, opt_state, like(after, state.model_state), ema)
    return new if classifier.shards is None else classifier.shards.keep(new), sums


train_step = functools.partial(
    jax.jit, static_argnames=('classifier', 'tx', 'average'), donate_argnames=('state',)
)(update)
"""`update`, compiled once per model and optimizer; the old state is donated."""


@functools.partial(jax.jit, static_argnames=('classifier',))
def eval_step(
    variables: Variables, batch: Batch, *, classifier: Classifier
) -> tuple[EvalSums, Array]:
    """Returns the metric sums of a batch and its class probabilities, f32[b, classes]."""
    (sums, predicted, logits), shards = _assess(variables, batch, classifier), classifier.shards
    classes = logits.shape[-1] if shards is None else shards.num_classes
    counts = class_counts(predicted, batch['label'], batch['mask'], classes)
    return EvalSums(sums, counts), _probabilities(logits, shards)


def _assess(
    variables: Variables, batch: Batch, classifier: Classifier
) -> tuple[Sums, Int[Array, ' b'], Float[Array, 'b classes']]:
    """Returns the metric sums of a batch, the predicted classes and the logits."""
    shards, targets = classifier.shards, _targets(batch, classifier.shards)
    with for_these_devices():
        logits, _ = classifier(variables, batch)
    each = losses.cross_entropy(logits, targets['label'], shards=shards)
    return metric_sums(logits, each, targets, shards), _predicted(logits, shards), logits


def _probabilities(
    logits: Float[Array, 'b _classes'], shards: ClassShards | None
) -> Float[Array, 'b classes']:
    probabilities = jax.nn.softmax(logits)
    return probabilities if shards is None else shards.by_example(probabilities)


def gather(on_device: OnDevice, rows: Int[Array, ' b']) -> Batch:
    """Returns the batch of these rows; a negative row is padding."""
    batch = {
        'features': on_device.features[rows],
        'label': on_device.label[rows],
        'mask': rows >= 0,
    }
    return batch if on_device.weight is None else {**batch, 'weight': on_device.weight[rows]}


def update_many(
    state: TrainState,
    frozen: Variables,
    on_device: OnDevice,
    rows: Int[Array, 'steps b'],
    seed: Int[Array, ''] | int,
    loss: losses.Loss,
    *,
    classifier: Classifier,
    tx: optax.GradientTransformation,
    average: Average | None = None,
) -> tuple[TrainState, Sums]:
    """Takes many optimizer steps as one program; the sums have a leading axis of steps."""

    def body(state: TrainState, rows: Array) -> tuple[TrainState, Sums]:
        batch = gather(on_device, rows)
        return update(
            state, frozen, batch, seed, loss, classifier=classifier, tx=tx, average=average
        )

    return jax.lax.scan(body, state, rows)


train_scan = functools.partial(
    jax.jit, static_argnames=('classifier', 'tx', 'average'), donate_argnames=('state',)
)(update_many)
"""`update_many`, compiled once per model and optimizer; the old state is donated."""


@functools.partial(jax.jit, static_argnames=('classifier',))
def eval_scan(
    variables: Variables,
    on_device: OnDevice,
    rows: Int[Array, 'steps b'],
    *,
    classifier: Classifier,
) -> tuple[EvalSums, Float[Array, 'steps b classes']]:
    """Evaluates many batches as one program; the counts are sums over all of them."""

    def body(carry: None, rows: Array) -> tuple[None, tuple[Sums, Array, Array]]:
        batch = gather(on_device, rows)
        sums, predicted, logits = _assess(variables, batch, classifier)
        return None, (sums, predicted, _probabilities(logits, classifier.shards))

    sums, predicted, probabilities = jax.lax.scan(body, None, rows)[1]
    flat, label = rows.ravel(), on_device.label[rows.ravel()]
    counts = class_counts(predicted.ravel(), label, flat >= 0, probabilities.shape[-1])
    return EvalSums(sums, counts), probabilities


class Totals(NamedTuple):
    """`Sums` on the host, in float64."""

    loss: float
    correct: float
    examples: float


def totals(sums: list[Sums]) -> Totals:
    """Adds up sums, scalars or arrays with a leading axis, in float64."""
    host = jax.device_get(sums)
    return Totals(*(sum(float(np.sum(s[i], dtype=np.float64)) for s in host) for i in range(3)))


def means(sums: list[Sums], counts: ClassCounts) -> dict[str, float]:
    """Returns the metrics of all examples of an evaluation.

    Args:
        sums: Scalars, or arrays with a leading axis.
        counts: The class counts of all examples.

    Returns:
        `loss` in nats, `accuracy`, `num_examples`, and what `by_class` adds.
    """
    loss, correct, count = totals(sums)
    return {
        'loss': loss / count if count else float('nan'),
        'accuracy': correct / count if count else float('nan'),
        'num_examples': int(count),
        **by_class(jax.device_get(counts)),
    }

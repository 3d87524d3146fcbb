"""Sharpness-aware steps, L2-SP and moving averages, against NumPy and PyTorch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from helpers import TESTS, run_on_devices

from tlflax.config.schema import OptimConfig
from tlflax.models import classifier as classifiers
from tlflax.models import heads
from tlflax.models.base.modules import Variables
from tlflax.models.vgg import network, rows
from tlflax.train import losses, steps
from tlflax.train.losses import Loss
from tlflax.train.optim.ema import Average
from tlflax.train.optim.learner import build_learner
from tlflax.utils.trees import flatten

LABELS = (('backbone/block5.*', 'tail'), ('backbone/.*', 'frozen'), ('head/.*', 'head'))


def make_model():
    """A tiny VGG whose last block is trained, with a linear head; features are those below it."""
    row, options = (
        rows.make('vgg16', network.VGG16, widths=(2, 2, 2, 3, 4)),
        {'units': 4, 'dropout': 0.0},
    )
    shape = row.feature_shape((32, 32), 'block5_pool')
    params = {
        'backbone': row.init(jax.random.key(0), 'block5_pool').params,
        'head': heads.init('gap_linear', shape, 3, jax.random.key(1), **options).params,
    }
    trained = {'backbone': {'block5_conv1': {'kernel': 0}}}
    model = classifiers.create(
        row, trained, image_size=(32, 32), num_classes=3, head='gap_linear', preprocess='caffe',
        layer='block5_pool', **options,
    )  # fmt: skip
    return params, model


def make_learner(params, model, **changes):
    config = OptimConfig(**{'labels': LABELS, 'name': 'sgd', 'learning_rate': 0.05, **changes})
    layers = model.backbone.layers
    return build_learner(config, Variables(params, {}), steps_per_epoch=4, epochs=5, layers=layers)


def make_batch(seed=0, n=8):
    rng = np.random.default_rng(seed)
    return {
        'features': jnp.asarray(rng.normal(size=(n, 2, 2, 3)), jnp.float32),
        'label': jnp.asarray(rng.integers(0, 3, n, np.int32)),
        'mask': jnp.arange(n) < n - 1,
    }


def start(learner):
    state = steps.init_state(learner.trainable, learner.tx, learner.average)
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), state)


def take(learner, model, state, batch, loss=Loss()):  # noqa: B008
    return steps.train_step(
        state, learner.frozen, batch, 0, loss, classifier=model, tx=learner.tx,
        average=learner.average,
    )  # fmt: skip


def softmax_gradient(kernel, bias, x, label):
    """The gradient of the mean cross-entropy of a linear classifier, float64."""
    logits = x @ kernel + bias
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(label)), label] -= 1
    return x.T @ p / len(label), p.mean(0)


@pytest.mark.parametrize('rho', [0.05, 0.5])
def test_sharpness_aware_steps_of_a_linear_head_by_hand(rho):
    rng = np.random.default_rng(5)
    options = {'units': 4, 'dropout': 0.0}
    head = heads.init('gap_linear', (1, 1, 4), 3, jax.random.key(1), **options).params
    static = heads.static('gap_linear', (1, 1, 4), 3, **options)
    row = rows.VGG16
    model = classifiers.Classifier(row, 'caffe', row.layer, row.layer, 'float32', static)
    learner = build_learner(
        OptimConfig(
            labels=(('.*', 'all'),), name='sgd', momentum=0.9, learning_rate=0.3, sam_rho=rho
        ),
        Variables({'head': head}, {}), steps_per_epoch=4, epochs=5,
    )  # fmt: skip
    (name,) = head
    weights = [np.array(head[name][part], np.float64) for part in ('kernel', 'bias')]
    velocity, state = [np.zeros_like(w) for w in weights], start(learner)
    for _ in range(5):
        x, label = rng.normal(size=(16, 4)), rng.integers(0, 3, 16)
        batch = {
            'features': jnp.asarray(x.reshape(16, 1, 1, 4), jnp.float32),
            'label': jnp.asarray(label, jnp.int32),
            'mask': np.ones(16, bool),
        }
        state, _ = take(learner, model, state, batch)
        grads = softmax_gradient(*weights, x, label)
        norm = np.sqrt(sum((g**2).sum() for g in grads))
        worst = [w + rho * g / norm for w, g in zip(weights, grads, strict=True)]
        grads = softmax_gradient(*worst, x, label)
        velocity = [0.9 * v + g for v, g in zip(velocity, grads, strict=True)]
        weights = [w - 0.3 * v for w, v in zip(weights, velocity, strict=True)]
    for part, expected in zip(('kernel', 'bias'), weights, strict=True):
        np.testing.assert_allclose(state.params['head'][name][part], expected, rtol=2e-4, atol=1e-5)


def test_a_loss_of_zero_has_a_sharpness_aware_step():
    params, model = make_model()
    learner = make_learner(params, model, sam_rho=0.1)
    batch = {**make_batch(), 'mask': jnp.zeros(8, bool)}
    state, _ = take(learner, model, start(learner), batch)
    jax.tree.map(np.testing.assert_array_equal, state.params, learner.trainable.params)


def test_the_pull_of_l2_sp_is_that_of_autograd_and_no_metric_has_it():
    params, model = make_model()
    learner = make_learner(params, model)
    origin = jax.tree.map(lambda leaf: leaf + 0.3, learner.trainable.params['backbone'])
    loss, batch = Loss(l2_sp=np.float32(0.2), start=origin), make_batch()
    (pulled, (sums, _)), (free, (own, _)) = (
        steps.gradient_step(start(learner), learner.frozen, batch, 0, one, classifier=model)
        for one in (loss, Loss())
    )
    assert sums == own
    for path, gradient in flatten(free).items():
        expected = torch.tensor(np.array(gradient), dtype=torch.float64)
        if path.startswith('backbone/'):
            weight = torch.tensor(np.array(flatten(learner.trainable.params)[path]))
            weight = weight.double().requires_grad_()
            there = torch.tensor(np.array(flatten({'backbone': origin})[path])).double()
            (0.1 * (weight - there).square().sum()).backward()
            expected = expected + weight.grad
        np.testing.assert_allclose(flatten(pulled)[path], expected, rtol=1e-4, atol=1e-6)


def test_at_the_start_l2_sp_is_nothing():
    params, model = make_model()
    trained = make_learner(params, model).trainable.params
    loss = Loss(l2_sp=np.float32(7.0), start=trained['backbone'])
    assert losses.penalty(loss, trained) == 0
    moved = jax.tree.map(lambda leaf: leaf + 1, trained)
    size = sum(leaf.size for leaf in jax.tree.leaves(trained['backbone']))
    assert losses.penalty(loss, moved) == pytest.approx(3.5 * size, rel=1e-5)


@pytest.mark.parametrize('every', [1, 2])
def test_the_moving_average_is_that_of_pytorch(every):
    params, model = make_model()
    learner = make_learner(params, model, ema_decay=0.8, accumulate_steps=every)
    assert learner.average == Average(0.8, every)
    state, weights = start(learner), None
    swa = torch.optim.swa_utils
    theirs = None
    for number in range(6):
        state, _ = take(learner, model, state, make_batch(number))
        if (number + 1) % every:
            continue
        values = [torch.tensor(np.array(leaf)) for leaf in jax.tree.leaves(state.params)]
        if weights is None:
            weights = torch.nn.ParameterList(values)
            theirs = swa.AveragedModel(weights, multi_avg_fn=swa.get_ema_multi_avg_fn(0.8))
        for weight, value in zip(weights, values, strict=True):
            weight.data = value
        theirs.update_parameters(weights)
    assert not np.allclose(*(jax.tree.leaves(tree)[0] for tree in (state.ema, state.params)))
    for ours, average in zip(jax.tree.leaves(state.ema), theirs.module.parameters(), strict=True):
        np.testing.assert_allclose(ours, average.detach().numpy(), rtol=1e-5, atol=1e-7)
    assert state.evaluated.params is state.ema


def test_without_an_average_there_is_no_state_of_it():
    params, model = make_model()
    learner = make_learner(params, model)
    state = start(learner)
    assert state.ema == {}
    assert state.evaluated == state.variables


ALL = {
    'name': 'adamw', 'weight_decay': 0.1, 'schedule': 'plateau', 'layer_decay': 0.7,
    'accumulate_steps': 2, 'ema_decay': 0.9, 'sam_rho': 0.05, 'clip_norm': 1.0,
}  # fmt: skip
SEVERAL_DEVICES = """
import sys; sys.path[:0] = sys.argv[1:]
import jax, numpy as np
from tlflax.train import steps
from tlflax.train.losses import Loss
from tlflax.utils.parallel.mesh import default_mesh, put_batch, replicate
import test_steps_of_fine_tuning as t
params, model = t.make_model()
learner, mesh = t.make_learner(params, model, **t.ALL), default_mesh()
loss = replicate(Loss(l2_sp=np.float32(0.1), start=learner.trainable.params['backbone']), mesh)
state = replicate(t.start(learner), mesh)
for i in range(6):
    batch = put_batch({k: np.asarray(v) for k, v in t.make_batch(i).items()}, mesh)
    state, sums = t.take(learner, model, state, batch, loss)
print(jax.device_count(), float(sums.loss),
      *[float(abs(leaf).sum()) for leaf in jax.tree.leaves((state.params, state.ema))])
"""


def test_several_devices_give_the_same_result():
    folder = TESTS / 'train' / 'optim'
    np.testing.assert_allclose(*run_on_devices(SEVERAL_DEVICES, folder), rtol=1e-4)


def test_scan_equals_steps_with_all_of_it():
    params, model = make_model()
    learner = make_learner(params, model, **ALL)
    loss = Loss(l2_sp=np.float32(0.1), start=learner.trainable.params['backbone'])
    batch = make_batch(n=20)
    on_device = steps.OnDevice(batch['features'], batch['label'])
    places = np.append(np.random.default_rng(1).permutation(20), [-1] * 4).reshape(3, 8)
    one = start(learner)
    for chosen in places:
        one, _ = take(learner, model, one, steps.gather(on_device, jnp.asarray(chosen)), loss)
    other, _ = steps.train_scan(
        start(learner), learner.frozen, on_device, jnp.asarray(places), 0, loss, classifier=model,
        tx=learner.tx, average=learner.average,
    )  # fmt: skip
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, other)
    assert optax.tree.norm(optax.tree.sub(one.params, learner.trainable.params)) > 1e-3


@pytest.mark.parametrize('layer', ['block5_conv3', 'block4_conv2'])
def test_layers_above_any_cut_are_enough(layer):
    """As in a sweep, which gives its members nothing from below."""
    params, model = make_model()
    cut = classifiers.find_cut(model.backbone, model.layer, {'backbone': {layer: 0}})
    model = dataclasses.replace(model, cut=cut)
    shape = model.backbone.feature_shape((32, 32), cut)
    features = jnp.asarray(np.random.default_rng(2).random((2, *shape)), jnp.float32)
    own = Variables(model.above(params), {})
    assert len(own.params['backbone']) < len(params['backbone'])
    (ours, _), (theirs, _) = (
        model(variables, {'features': features}) for variables in (own, Variables(params, {}))
    )
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize('since', [0, 3])
def test_an_average_begins_with_its_phase(since):
    average, params = Average(0.5, every=2, since=since), {'w': jnp.ones(2)}
    ema = {'w': jnp.zeros(2)}
    waiting = average.updated(ema, params, jnp.int32(since + 1))
    np.testing.assert_array_equal(waiting['w'], 0)
    first = average.updated(waiting, params, jnp.int32(since + 2))
    np.testing.assert_array_equal(first['w'], 1)
    later = average.updated(first, {'w': jnp.full(2, 3.0)}, jnp.int32(since + 4))
    np.testing.assert_array_equal(later['w'], 2)

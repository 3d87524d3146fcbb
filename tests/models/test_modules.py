"""Modules as pure functions: state and its masks against PyTorch's BatchNorm, dropout, paths."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from helpers import TESTS, run_on_devices

from tlflax.models.base import modules
from tlflax.models.base.modules import Training, Variables
from tlflax.models.classifier import split_state
from tlflax.utils.trees import flatten

MOMENTUM = 0.9


class Normed(nnx.Module):
    """Linear, BatchNorm, ReLU, linear, on features [b, h, w, c]."""

    def __init__(self, rngs):
        self.inner = nnx.Linear(5, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=MOMENTUM, rngs=rngs)
        self.outer = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.outer(nnx.relu(self.norm(self.inner(x))).mean((1, 2)))


class Theirs(torch.nn.Module):
    """The same in PyTorch, from the same parameters."""

    def __init__(self, params):
        super().__init__()
        self.inner, self.outer = torch.nn.Linear(5, 8), torch.nn.Linear(8, 3)
        self.norm = torch.nn.BatchNorm2d(8, momentum=1 - MOMENTUM)
        with torch.no_grad():
            for name in ('inner', 'outer'):
                layer = getattr(self, name)
                layer.weight.copy_(torch.tensor(np.array(params[name]['kernel']).T))
                layer.bias.copy_(torch.tensor(np.array(params[name]['bias'])))

    def forward(self, x):
        y = self.norm(self.inner(x).permute(0, 3, 1, 2))
        return self.outer(torch.relu(y).mean((2, 3)))


def batches(steps=50, seed=0):
    """Yields features and labels of 12 examples, the last batch of every five only 7."""
    rng = np.random.default_rng(seed)
    for step in range(steps):
        n = 7 if step % 5 == 4 else 12
        yield rng.normal(1, 2, (n, 3, 3, 5)).astype(np.float32), rng.integers(0, 3, n)


def test_fifty_steps_follow_pytorch():
    """Padded rows hold large values, which must count nowhere."""
    static = modules.static(Normed)
    variables = modules.init(Normed, jax.random.key(0))
    theirs = Theirs(variables.params)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9)
    tx = optax.sgd(0.05, momentum=0.9)
    live = frozenset(flatten(variables.state))
    assert live == {'norm/mean', 'norm/var'}

    @jax.jit
    def step(variables, opt_state, x, label, mask):
        def loss_fn(params):
            training = Training(jax.random.key(0), mask, live)
            logits, state = static.apply(Variables(params, variables.state), x, training)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
            return jnp.where(mask, losses, 0).sum() / mask.sum(), state

        grads, state = jax.grad(loss_fn, has_aux=True)(variables.params)
        updates, opt_state = tx.update(grads, opt_state, variables.params)
        return Variables(optax.apply_updates(variables.params, updates), state), opt_state

    opt_state = tx.init(variables.params)
    variance = np.ones(8)
    for x, label in batches():
        padded = np.full((12, *x.shape[1:]), 1e3, np.float32)
        padded[: len(x)] = x
        labels = np.zeros(12, np.int32)
        labels[: len(x)] = label
        variables, opt_state = step(variables, opt_state, padded, labels, np.arange(12) < len(x))
        before = theirs.norm.running_var.numpy().copy()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(theirs(torch.tensor(x)), torch.tensor(label)).backward()
        optimizer.step()
        # PyTorch's running variance is the unbiased one, Flax's (and Keras's) the biased one.
        count = 9 * len(x)
        new = (theirs.norm.running_var.numpy() - MOMENTUM * before) / (1 - MOMENTUM)
        variance = MOMENTUM * variance + (1 - MOMENTUM) * new * (count - 1) / count
    params, state = variables
    for name in ('inner', 'outer'):
        layer = getattr(theirs, name)
        np.testing.assert_allclose(params[name]['kernel'].T, layer.weight.detach(), atol=2e-4)
        np.testing.assert_allclose(params[name]['bias'], layer.bias.detach(), atol=2e-4)
    np.testing.assert_allclose(params['norm']['scale'], theirs.norm.weight.detach(), atol=2e-4)
    np.testing.assert_allclose(state['norm']['mean'], theirs.norm.running_mean, atol=2e-4)
    np.testing.assert_allclose(state['norm']['var'], variance, rtol=2e-3)
    assert np.abs(np.asarray(state['norm']['mean'])).max() > 0.1


def test_evaluation_uses_the_statistics_and_changes_nothing():
    variables = modules.init(Normed, jax.random.key(0))
    x = next(batches())[0]
    moved = Variables(variables.params, {'norm': {'mean': jnp.ones(8), 'var': jnp.full(8, 4.0)}})
    theirs = Theirs(variables.params).eval()
    theirs.norm.running_mean.fill_(1)
    theirs.norm.running_var.fill_(4)
    logits, state = modules.static(Normed).apply(moved, x)
    np.testing.assert_allclose(logits, theirs(torch.tensor(x)).detach(), atol=1e-5)
    assert state is moved.state


def test_frozen_statistics_are_used_in_training_too():
    static, variables = modules.static(Normed), modules.init(Normed, jax.random.key(0))
    x = next(batches())[0]
    training = Training(jax.random.key(0), np.ones(12, bool), frozenset())
    logits, state = static.apply(variables, x, training)
    np.testing.assert_array_equal(logits, static.apply(variables, x)[0])
    assert state is variables.state


def test_state_is_frozen_with_its_layer():
    state = {'head': {'a': {'mean': 0, 'count': 0}, 'b': {'bare': {'mean': 0}}}}
    a, b = {'a': {'scale': 0}}, {'b': {'dense': {'kernel': 0}}}
    live, fixed = split_state(state, {'head': a}, {'head': b})
    assert set(flatten(live)) == {'head/a/mean', 'head/a/count'}
    assert set(flatten(fixed)) == {'head/b/bare/mean'}
    live, fixed = split_state(state, {'head': b}, {'head': a})
    assert set(flatten(live)) == {'head/b/bare/mean'}
    assert set(flatten(fixed)) == {'head/a/mean', 'head/a/count'}


class Dropped(nnx.Module):
    """Two layers of dropout with random keys of their own."""

    def __init__(self, rngs):
        self.parts = nnx.Sequential(nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs))

    def __call__(self, x):
        return self.parts(x)


def test_dropout_follows_the_key_of_the_step():
    static, variables = modules.static(Dropped), modules.init(Dropped, jax.random.key(0))
    assert variables == ({}, {})
    x, mask = jnp.ones((64, 64)), np.ones(64, bool)

    def dropped(seed):
        return static.apply(variables, x, Training(jax.random.key(seed), mask, frozenset()))[0]

    one = dropped(0)
    np.testing.assert_array_equal(one, dropped(0))
    assert (one != dropped(1)).any()
    assert np.mean(one != 0) == pytest.approx(0.25, abs=0.02)  # the two drop different values
    np.testing.assert_array_equal(static.apply(variables, x)[0], x)


class Listed(nnx.Module):
    """Layers in a list, whose names are numbers."""

    def __init__(self, rngs):
        self.layers = nnx.Sequential(*[nnx.Linear(2, 2, rngs=rngs) for _ in range(12)])

    def __call__(self, x):
        return self.layers(x)


def test_numbered_layers_have_paths():
    variables = modules.init(Listed, jax.random.key(0))
    assert 'layers/layers/11/kernel' in flatten(variables.params)
    x = jnp.ones((1, 2))
    got = modules.static(Listed).apply(variables, x)[0]
    np.testing.assert_allclose(got, Listed(nnx.Rngs(jax.random.key(0)))(x), rtol=1e-6)


DEVICES = """
import sys; sys.path[:0] = sys.argv[1:]
import jax, numpy as np
import test_modules as t
from tlflax.models.base import modules
from tlflax.models.base.modules import Training
from tlflax.utils.parallel.mesh import default_mesh, put_batch, replicate
mesh, static = default_mesh(), modules.static(t.Normed)
variables = replicate(modules.init(t.Normed, jax.random.key(0)), mesh)
x = next(t.batches())[0][:10]
batch = put_batch({'x': x, 'mask': np.ones(10, bool)}, mesh)
live = frozenset(['norm/mean', 'norm/var'])
run = jax.jit(lambda v, b: static.apply(v, b['x'], Training(jax.random.key(0), b['mask'], live)))
logits, state = run(variables, batch)
print(jax.device_count(), *np.concatenate([state['norm']['mean'], state['norm']['var']]).tolist())
"""


def test_statistics_are_those_of_the_global_batch():
    np.testing.assert_allclose(*run_on_devices(DEVICES, TESTS / 'models'), rtol=1e-5)

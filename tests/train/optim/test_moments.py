"""Moments at the change of a phase, against optimizers that are never interrupted."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tlflax.config.schema import OptimConfig
from tlflax.models.base.modules import Variables
from tlflax.train.optim import moments, phases
from tlflax.train.optim.learner import build_learner

START = Variables(
    {'backbone': {'last': {'w': jnp.ones(3)}}, 'head': {'w': jnp.full((2,), 2.0)}}, {}
)
HEAD = (('head/.*', 'all'), ('.*', 'frozen'))
ALL = (('.*', 'all'),)


def gradient(step, shape):
    return jnp.asarray(np.random.default_rng(step).normal(size=shape), jnp.float32)


def take(learner, state, params, steps):
    for step in steps:
        grads = jax.tree.map(lambda leaf, step=step: gradient(step, leaf.shape), params)
        updates, state = learner.tx.update(grads, state, params, value=1.0)
        params = optax.apply_updates(params, updates)
    return params, state


def alone(transform, leaf, steps):
    state = transform.init(leaf)
    for step in steps:
        updates, state = transform.update(gradient(step, leaf.shape), state, leaf)
        leaf = optax.apply_updates(leaf, updates)
    return leaf


@pytest.mark.parametrize('name', ['adam', 'adamw', 'sgd'])
@pytest.mark.parametrize(
    'around', [{}, {'schedule': 'plateau'}, {'accumulate_steps': 1, 'clip_norm': 1e9}], ids=str
)
def test_what_stays_trainable_goes_on_and_the_rest_begins(name, around):
    """Under one label, whose older and newer parameters have bias corrections of their own.

    What the first phase has around its optimizer makes no difference.
    """
    optims = [
        OptimConfig(name=name, labels=HEAD, learning_rate=0.1, **around),
        OptimConfig(name=name, labels=ALL, learning_rate=0.1),
    ]
    lengths = {'steps_per_epoch': 10, 'epochs': 1}
    first = build_learner(optims[0], START, **lengths, since=phases.born(optims, START, 0))
    params, state = take(
        first, first.tx.init(first.trainable.params), first.trainable.params, range(4)
    )
    now = phases.updated(START, Variables(params, {}))
    second = build_learner(optims[1], now, **lengths, since=phases.born(optims, now, 1))
    assert sorted(set(jax.tree.leaves(second.labels))) == ['all since phase 1', 'all since phase 2']
    new = second.tx.init(second.trainable.params)
    carried = moments.carry(state, new, second.labels)
    after, _ = take(second, carried, second.trainable.params, range(4, 7))
    transform = {
        'adam': optax.adam(0.1),
        'adamw': optax.adamw(0.1, weight_decay=0.0),
        'sgd': optax.sgd(0.1, momentum=0.9),
    }[name]
    expected = alone(transform, START.params['head']['w'], range(7))
    np.testing.assert_allclose(after['head']['w'], expected, rtol=1e-6)
    fresh = alone(transform, START.params['backbone']['last']['w'], range(4, 7))
    np.testing.assert_allclose(after['backbone']['last']['w'], fresh, rtol=1e-6)


def test_schedules_begin_again():
    optim = OptimConfig(labels=ALL, learning_rate=0.1, schedule='cosine')
    lengths = {'steps_per_epoch': 5, 'epochs': 2}
    learner = build_learner(optim, START, **lengths)
    params, state = take(learner, learner.tx.init(START.params), START.params, range(10))
    still, _ = take(learner, state, params, [10])
    np.testing.assert_array_equal(still['head']['w'], params['head']['w'])  # the rate is zero
    carried = moments.carry(state, learner.tx.init(params), learner.labels)
    moved, _ = take(learner, carried, params, [10])
    assert np.all(np.abs(moved['head']['w'] - params['head']['w']) > 1e-3)


def test_born_counts_the_phases_in_a_row():
    frozen = OptimConfig(labels=HEAD)
    every = OptimConfig(labels=ALL)
    order = [every, frozen, every, every]
    assert phases.born(order, START, 3) == {'backbone/last/w': 2, 'head/w': 0}
    assert phases.born(order, START, 1) == {'head/w': 0}

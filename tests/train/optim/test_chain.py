"""Optimizers, schedules and factors against plain optax and PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from tlflax.config.schema import OPTIMIZERS, OptimConfig
from tlflax.models.base.modules import Variables
from tlflax.train.optim import build, decay, names, schedules
from tlflax.train.optim.learner import Rates, build_learner, state_bytes
from tlflax.utils.errors import UserError
from tlflax.utils.trees import flatten, unflatten

LABELS = (('backbone/.*', 'tail'), ('head/.*', 'head'))
LAYERS = ('block1', 'pool1', 'block2', 'block3')


def make_params(seed=0):
    """Three layers of a backbone, one of them with a norm, and a head."""
    rng = np.random.default_rng(seed)
    shapes = {
        'backbone/block1/kernel': (4, 3),
        'backbone/block1/bias': (3,),
        'backbone/block2/conv/kernel': (2, 2, 3),
        'backbone/block2/norm/scale': (3,),
        'backbone/block3/kernel': (3, 3),
        'head/logits/kernel': (3, 2),
        'head/logits/bias': (2,),
    }
    return unflatten(
        {path: jnp.asarray(rng.normal(size=shape), jnp.float32) for path, shape in shapes.items()}
    )


def make_learner(params, **changes):
    config = OptimConfig(**{'labels': LABELS, **changes})
    return build_learner(config, Variables(params, {}), steps_per_epoch=4, epochs=5, layers=LAYERS)


def follow(make, params, *rates, steps=6):
    """The parameters after some steps of `make(*rates)`, with gradients that depend on them."""

    @jax.jit
    def run(params, *rates):
        tx = optax.with_extra_args_support(make(*rates))

        def step(carry, number):
            params, state = carry
            grads = jax.tree.map(lambda leaf: jnp.sin(3 * leaf + number) + 0.1 * leaf, params)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(float(steps)))[0][0]

    return run(params, *rates)


def assert_close(ours, theirs, rtol=1e-5, atol=1e-6):
    for path, leaf in flatten(theirs).items():
        np.testing.assert_allclose(flatten(ours)[path], leaf, rtol, atol, err_msg=path)


def released_chain(name, rate, weight_decay, clip_norm):
    """The chain of a label as released versions had it."""
    steps = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    if name == 'sgd':
        steps += [optax.add_decayed_weights(weight_decay), optax.sgd(rate, momentum=0.9)]
    elif name == 'adamw':
        steps += [optax.adamw(rate, weight_decay=weight_decay)]
    else:
        steps += [optax.adam(rate)]
    return optax.chain(*steps)


@pytest.mark.parametrize(('schedule', 'clip_norm'), [('constant', 0.0), ('cosine', 0.5)])
@pytest.mark.parametrize('name', ['adam', 'adamw', 'sgd'])
def test_released_states_and_steps_are_the_same(name, schedule, clip_norm):
    """Their checkpoints can be continued: one structure; and decaying all gives equal numbers."""
    weight_decay = 0.0 if name == 'adam' else 0.1
    params = make_params()
    learner = make_learner(
        params, name=name, schedule=schedule, warmup_epochs=0.5, clip_norm=clip_norm,
        weight_decay=weight_decay, decayed=('.*',),
    )  # fmt: skip
    rate = schedules.schedule(1e-3, kind=schedule, warmup_steps=2, total_steps=20)
    chain = released_chain(name, rate, weight_decay, clip_norm)
    labels = jax.tree.map(lambda _: 'head', params['head'])
    before = optax.multi_transform(
        {'frozen': optax.set_to_zero(), 'head': chain, 'tail': chain},
        {'backbone': jax.tree.map(lambda _: 'tail', params['backbone']), 'head': labels},
    )
    assert jax.tree.structure(learner.tx.init(params)) == jax.tree.structure(before.init(params))
    ours, theirs = (follow(lambda tx=tx: tx, params) for tx in (learner.tx, before))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def plain(name, rate, weight_decay, mask):
    """The optimizer as a user of optax writes it."""
    if name == 'sgd':
        decayed = optax.add_decayed_weights(weight_decay, mask)
        return optax.chain(decayed, optax.sgd(rate, momentum=0.9))
    options = {'momentum': 0.9} if name in ('rmsprop', 'lars') else {}
    if name in ('adadelta', 'lars'):
        options |= {'weight_decay': weight_decay, 'weight_decay_mask': mask}
    elif name in ('adamaxw', 'adamw', 'adan', 'lamb', 'lion', 'nadamw'):
        options |= {'weight_decay': weight_decay, 'mask': mask}
    return getattr(optax, name)(rate, **options)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_each_optimizer_is_that_of_optax(name):
    """With rates that are traced too, as in a sweep."""
    params = make_params()
    weight_decay = 0.2 if names.KINDS[name].mask else 0.0
    changes = {'name': name, 'learning_rate': 0.01, 'schedule': 'linear'}
    learner = make_learner(params, **changes, weight_decay=weight_decay)
    rate = optax.linear_schedule(0.01, 0.0, 20)
    mask = jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    alone = follow(lambda: plain(name, rate, weight_decay, mask), params)
    rates = Rates(dict.fromkeys(('head', 'tail'), jnp.float32(0.01)), jnp.float32(weight_decay))
    assert_close(follow(learner.make, params, rates), alone, rtol=1e-4, atol=1e-5)


def test_the_list_of_names_is_complete():
    assert tuple(names.KINDS) == OPTIMIZERS


@pytest.mark.parametrize(
    ('name', 'fix'), [('adam', 'adamw'), ('nadam', 'nadamw'), ('yogi', 'adamw')]
)
def test_weight_decay_without_any_is_one_sentence(name, fix):
    with pytest.raises(UserError, match=rf"'{name}' has no weight decay.*'{fix}'"):
        make_learner(make_params(), name=name, weight_decay=0.1)


def test_layer_decay_and_decayed_parameters_follow_pytorch():
    """AdamW with a group for each layer, and for what is decayed in it, as in BEiT."""
    params = make_params()
    learner = make_learner(
        params, name='adamw', learning_rate=0.01, weight_decay=0.3, layer_decay=0.5,
        learning_rates=(('tail', 0.02),), decayed=('.*/kernel',), schedule='constant',
    )  # fmt: skip
    theirs = {path: torch.nn.Parameter(torch.tensor(np.array(leaf))) for path, leaf in
              flatten(params).items()}  # fmt: skip
    # block3 is below the head alone, block2 below block3 too; pool1 has no parameters.
    rates = {'block1': 0.02 / 8, 'block2': 0.02 / 4, 'block3': 0.02 / 2, 'logits': 0.01}
    optimizer = torch.optim.AdamW(
        [
            {
                'params': [leaf],
                'lr': rates[path.split('/')[1]],
                'weight_decay': 0.3 if path.endswith('kernel') else 0.0,
            }
            for path, leaf in theirs.items()
        ]
    )
    for number in range(6):
        for leaf in theirs.values():
            leaf.grad = torch.sin(3 * leaf.detach() + number) + 0.1 * leaf.detach()
        optimizer.step()
    ours = flatten(follow(lambda: learner.tx, params))
    for path, leaf in theirs.items():
        np.testing.assert_allclose(ours[path], leaf.detach().numpy(), rtol=1e-4, err_msg=path)


def test_parameters_without_dimensions_to_decay_are_spared():
    learner = make_learner(
        make_params(), name='sgd', learning_rate=0.1, weight_decay=0.5, momentum=0.0
    )
    params = make_params()
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = learner.tx.update(zero, learner.tx.init(params), params)
    for path, leaf in flatten(updates).items():
        decayed = path.endswith('kernel')
        np.testing.assert_allclose(leaf, -0.05 * flatten(params)[path] * decayed, rtol=1e-6)


@pytest.mark.parametrize(
    ('patterns', 'words'), [(('.*/kernal',), 'matches no parameter'), (('(',), 'not a valid')]
)
def test_bad_patterns_are_one_sentence(patterns, words):
    with pytest.raises(UserError, match=words) as error:
        decay.check(patterns, make_params())
    assert error.value.where == 'config.optim.decayed'


def test_schedules_by_their_formulas():
    make = functools.partial(schedules.schedule, 2.0, total_steps=110)
    linear = make(kind='linear', warmup_steps=10)
    expected = [s / 10 if s < 10 else max(0, 1 - (s - 10) / 100) for s in range(115)]
    np.testing.assert_allclose([linear(s) for s in range(115)], 2 * np.array(expected), atol=1e-6)
    falling = make(kind='linear', warmup_steps=0)
    np.testing.assert_allclose([falling(s) for s in (0, 55, 110)], [2, 1, 0], atol=1e-6)
    onecycle = [float(make(kind='onecycle', warmup_steps=0)(s)) for s in range(111)]
    up = 0.5 * (1 - np.cos(np.pi * np.arange(34) / 33))
    np.testing.assert_allclose(onecycle[:34], 2 / 25 + (2 - 2 / 25) * up, rtol=1e-5)
    assert np.all(np.diff(onecycle[33:]) < 0)
    assert onecycle[-1] == pytest.approx(2 / 25 / 1e4, rel=1e-3)


def test_onecycle_takes_no_other_warmup():
    with pytest.raises(UserError, match='warm-up of its own'):
        make_learner(make_params(), schedule='onecycle', warmup_epochs=1.0)


def test_plateau_follows_pytorch():
    """Each epoch's mean loss; optax counts the epoch that PyTorch's patience leaves out."""
    rng = np.random.default_rng(0)
    epochs = [3.0, 2.0, 2.1, 2.2, 2.3, 1.9, 1.95, 1.92, 1.93, 1.91, 1.8]
    learner = make_learner(
        make_params(), schedule='plateau', plateau_factor=0.5, plateau_patience=3, name='sgd',
        learning_rate=0.1, momentum=0.0,
    )  # fmt: skip
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=2)
    params = make_params()
    state, ours, theirs = learner.tx.init(params), [], []
    ones, step = jax.tree.map(jnp.ones_like, params), jax.jit(learner.tx.update)
    for number, mean in enumerate(epochs):
        noise = rng.normal(size=4)
        for value in mean + noise - noise.mean():
            updates, state = step(ones, state, params, value=jnp.float32(value))
        ours.append(learner.learning_rate(4 * (number + 1), state))
        np.testing.assert_allclose(updates['head']['logits']['bias'], -ours[-1], rtol=1e-5)
        optimizer.step()
        scheduler.step(mean)
        theirs.append(optimizer.param_groups[0]['lr'])
    assert len(set(theirs)) == 3
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize('name', ['adamw', 'sgd'])
def test_four_accumulated_batches_are_one_step_of_their_mean(name):
    params = make_params()
    changes = {'name': name, 'schedule': 'cosine', 'learning_rate': 0.01, 'clip_norm': 0.1}
    one = build.build_optimizer(
        OptimConfig(**changes), make_learner(params).labels, learning_rates=dict.fromkeys(
            ('head', 'tail'), schedules.schedule(0.01, kind='cosine', warmup_steps=0, total_steps=5)
        ), weight_decay=0.0, factors={}, steps_per_epoch=4,
    )  # fmt: skip
    learner = make_learner(params, **changes, accumulate_steps=4)
    step_ours, step_one = jax.jit(learner.tx.update), jax.jit(one.update)
    rng = np.random.default_rng(3)
    ours, theirs = params, params
    our_state, their_state = learner.tx.init(params), one.init(params)
    for _ in range(3):
        grads = [jax.tree.map(lambda a: rng.normal(size=a.shape).astype('f4'), params)
                 for _ in range(4)]  # fmt: skip
        for part in grads:
            updates, our_state = step_ours(part, our_state, ours)
            ours = optax.apply_updates(ours, updates)
        mean = jax.tree.map(lambda *parts: np.mean(parts, 0), *grads)
        updates, their_state = step_one(mean, their_state, theirs)
        theirs = optax.apply_updates(theirs, updates)
        assert_close(ours, theirs)
    assert learner.learning_rate(11) == learner.learning_rate(8) > learner.learning_rate(12)
    assert learner.learning_rate(20) == pytest.approx(0, abs=1e-9)  # 5 updates in 5 epochs of 4


def test_memory_of_a_label_is_told():
    params = make_params()
    sizes = {'head': 8 * 4, 'tail': 39 * 4}
    plain, more = (
        make_learner(params, name='sgd', **changes).table.splitlines()[-1].split()
        for changes in ({}, {'accumulate_steps': 2, 'ema_decay': 0.9, 'sam_rho': 0.1})
    )
    assert int(more[-1]) - int(plain[-1]) == 2 * sum(sizes.values())
    assert state_bytes(make_learner(params, sam_rho=0.1, schedule='plateau').tx.init(params))

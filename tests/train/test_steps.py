"""Freezing, losses and steps, against PyTorch and against what XLA compiled."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sklearn.metrics
import torch
from helpers import TESTS, run_on_devices

from tlflax.features.batches import OnDevice
from tlflax.models import classifier as classifiers
from tlflax.models import heads
from tlflax.models.base.modules import Variables
from tlflax.models.vgg import network, rows
from tlflax.train import steps
from tlflax.train.losses import Loss
from tlflax.train.optim import build, learner, schedules
from tlflax.utils import trees
from tlflax.utils.labels import label_tree, partition

WIDTHS = (4, 6, 8, 8, 8)
RULES = (('backbone/.*', 'frozen'), ('head/.*', 'head'))


def make_params(head='mlp', size=(32, 32), layer='block5_pool', rules=RULES):
    row = rows.make('vgg16', network.VGG16, widths=WIDTHS)
    options = {'units': 16, 'dropout': 0.0}
    shape = row.feature_shape(size, layer)
    params = {
        'backbone': row.init(jax.random.key(0), layer).params,
        'head': heads.init(head, shape, 3, jax.random.key(1), **options).params,
    }
    labels = label_tree(params, rules)
    model = classifiers.create(
        row,
        partition(params, labels)[0],
        image_size=size,
        num_classes=3,
        head=head,
        preprocess='caffe',
        layer=layer,
        **options,
    )
    return params, model


def make_learner(params, rules=RULES, name='adam', **options):
    labels = label_tree(params, rules)
    trainable, frozen = learner.partition_variables(Variables(params, {}), labels)
    trainable_labels, _ = partition(labels, labels)
    rates = learner.label_rates(trainable_labels, default=1e-2, overrides=())
    tx = build.build(trainable_labels, name=name, learning_rates=rates, **options)
    return trainable, frozen, tx


def make_batch(seed, n=8, real=None, size=(32, 32)):
    rng = np.random.default_rng(seed)
    return {
        'image': jnp.asarray(rng.integers(0, 256, (n, *size, 3), np.uint8)),
        'label': jnp.asarray(rng.integers(0, 3, n, np.int32)),
        'mask': jnp.arange(n) < (n if real is None else real),
    }


def copy(tree):
    return jax.tree.map(lambda a: jnp.array(a, copy=True), tree)


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        ('adam', {}),
        ('adamw', {'weight_decay': 0.1, 'clip_norm': 0.5}),
        ('sgd', {'weight_decay': 0.1}),
    ],
)
def test_frozen_parameters_stay_bit_identical_and_carry_no_state(name, options):
    params, model = make_params()
    trainable, frozen, tx = make_learner(params, name=name, **options)
    before, head_before = jax.device_get(frozen), jax.device_get(trainable.params)
    state = steps.init_state(copy(trainable), tx)
    for i in range(20):
        state, _ = steps.train_step(
            state, frozen, make_batch(i), 0, Loss(), classifier=model, tx=tx
        )
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(frozen))
    for path, leaf in trees.flatten(state.params).items():
        assert path.startswith('head/')
        assert np.any(leaf != trees.flatten(head_before)[path]), path
    head_shapes = {leaf.shape for leaf in jax.tree.leaves(trainable.params)} | {()}
    assert {leaf.shape for leaf in jax.tree.leaves(state.opt_state)} <= head_shapes
    assert learner.state_bytes(state.opt_state)['frozen'] == 0


def test_optimizer_over_all_parameters_gives_frozen_ones_no_update():
    params, _ = make_params()
    labels = label_tree(params, RULES)
    tx = build.build(labels, name='adamw', learning_rates={'head': 0.1}, weight_decay=0.5)
    grads = jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(grads, tx.init(params), params)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(updates['backbone']))
    assert all(np.all(leaf != 0) for leaf in jax.tree.leaves(updates['head']))


def _flops(rules):
    params, model = make_params(rules=rules)
    trainable, frozen, tx = make_learner(params, rules)
    state = steps.init_state(trainable, tx)
    lowered = steps.train_step.lower(
        state, frozen, make_batch(0), 0, Loss(), classifier=model, tx=tx
    )
    return lowered.compile().cost_analysis()['flops']


def test_compiled_step_computes_no_gradient_of_frozen_layers():
    params, model = make_params()
    forward = (
        steps.eval_step.lower(Variables(params, {}), make_batch(0), classifier=model)
        .compile()
        .cost_analysis()['flops']
    )
    assert _flops(RULES) < 1.1 * forward
    everything = _flops((('.*', 'all'),))
    assert everything > 2.5 * forward
    # A backbone frozen up to block5 costs the backward pass of block5 alone.
    part = (('backbone/block5.*', 'tail'), ('backbone/.*', 'frozen'), ('head/.*', 'head'))
    assert forward < _flops(part) < 1.3 * forward


def test_partly_frozen_backbone_learns_where_it_may():
    rules = (('backbone/block5.*', 'tail'), ('backbone/.*', 'frozen'), ('head/.*', 'head'))
    params, model = make_params(rules=rules)
    assert model.cut == 'block4_pool'
    trainable, frozen, tx = make_learner(params, rules)
    before = jax.device_get(trainable.params)
    state = steps.init_state(copy(trainable), tx)
    for i in range(5):
        state, _ = steps.train_step(
            state, frozen, make_batch(i), 0, Loss(), classifier=model, tx=tx
        )
    moved = trees.flatten(state.params)
    assert any(path.startswith('backbone/block5_conv1') for path in moved)
    assert all(np.any(moved[path] != leaf) for path, leaf in trees.flatten(before).items())


@pytest.mark.parametrize(
    ('pattern', 'cut'),
    [
        ('backbone/block5.*', 'block4_pool'),
        ('backbone/block5_conv[23]/.*', 'block5_conv1'),
        ('backbone/block[35].*', 'block2_pool'),
        ('backbone/block1_conv1/bias', 'image'),
    ],
)
def test_the_cut_is_below_the_first_layer_that_is_trained(pattern, cut):
    """Twenty steps from what the cut puts out equal those from images, whatever is trained."""
    rules = ((pattern, 'tail'), ('backbone/.*', 'frozen'), ('head/.*', 'head'))
    params, model = make_params(rules=rules)
    assert model.cut == cut
    whole = dataclasses.replace(model, cut='image')
    trainable, frozen, tx = make_learner(params, rules, name='sgd')
    states = [steps.init_state(copy(trainable), tx) for _ in range(2)]
    for i in range(20):
        batch = make_batch(i)
        below = dict(batch)
        if cut != 'image':
            image = below.pop('image')
            below['features'] = model.features(frozen.branch('backbone'), image)
        kinds = ((model, below), (whole, batch))
        grads = [
            steps.gradient_step(state, frozen, one, 0, Loss(), classifier=kind)[0]
            for state, (kind, one) in zip(states, kinds, strict=True)
        ]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *grads)
        states = [
            steps.train_step(state, frozen, one, 0, Loss(), classifier=kind, tx=tx)[0]
            for state, (kind, one) in zip(states, kinds, strict=True)
        ]
    ours, theirs = (state.params for state in states)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, theirs)


def test_one_compilation_each_over_ragged_last_batches():
    params, model = make_params(head='gap_linear')
    trainable, frozen, tx = make_learner(params)
    state = steps.init_state(trainable, tx)
    before = steps.train_step._cache_size(), steps.eval_step._cache_size()
    for epoch in range(2):
        for i, real in enumerate((8, 8, 3)):
            batch = make_batch(10 * epoch + i, real=real)
            state, _ = steps.train_step(state, frozen, batch, 0, Loss(), classifier=model, tx=tx)
        for real in (8, 5):
            full = state.variables.merge(frozen)
            steps.eval_step(full, make_batch(0, real=real), classifier=model)
    after = steps.train_step._cache_size(), steps.eval_step._cache_size()
    assert (after[0] - before[0], after[1] - before[1]) == (1, 1)


WEIGHTED = Loss(0.1, 2.0, jnp.array([0.5, 1, 3]), jnp.log(jnp.array([0.6, 0.3, 0.1])))


@pytest.mark.parametrize('loss', [Loss(), WEIGHTED], ids=['plain', 'weighted'])
def test_padding_changes_nothing(loss):
    params, model = make_params()
    trainable, frozen, tx = make_learner(params)
    full = {**make_batch(3, n=5), 'weight': jnp.arange(1.0, 6)}
    padded = {
        'image': jnp.concatenate([full['image'], make_batch(9, n=3)['image']]),
        'label': jnp.concatenate([full['label'], jnp.ones(3, jnp.int32)]),
        'mask': jnp.arange(8) < 5,
        'weight': jnp.arange(1.0, 9),
    }
    outcomes = []
    for batch in (full, padded):
        state = steps.init_state(copy(trainable), tx)
        outcomes.append(steps.train_step(state, frozen, batch, 0, loss, classifier=model, tx=tx))
    (one, sums_one), (other, sums_other) = outcomes
    assert sums_one.examples == sums_other.examples == 5
    np.testing.assert_allclose(sums_one.loss, sums_other.loss, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), one.params, other.params)


class TorchConvHead(torch.nn.Module):
    """The recipe's head, written in PyTorch, with parameters in our layout."""

    def __init__(self, params):
        super().__init__()
        for layer, leaves in params.items():
            for name, leaf in leaves.items():
                value = torch.nn.Parameter(torch.tensor(np.array(leaf)))
                self.register_parameter(f'{layer}_{name}', value)

    def forward(self, x):
        f = torch.nn.functional
        x = x.permute(0, 3, 1, 2)
        for layer in ('conv1', 'conv2'):
            kernel = getattr(self, f'{layer}_kernel').permute(3, 2, 0, 1)
            x = f.max_pool2d(
                f.relu(f.conv2d(x, kernel, getattr(self, f'{layer}_bias'), padding=1)), 2
            )
        x = x.permute(0, 2, 3, 1).flatten(1)
        x = f.relu(x @ self.hidden_kernel + self.hidden_bias)
        return x @ self.logits_kernel + self.logits_bias


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('name', ['adam', 'adamw', 'sgd'])
def test_training_the_head_follows_pytorch(name, weighted):
    """Weighted: by class and example, divided by the number of examples."""
    rng = np.random.default_rng(1)
    shape, options = (7, 7, 16), {'units': 8, 'dropout': 0.0}
    head = heads.init('conv', shape, 3, jax.random.key(2), **options).params
    static = heads.static('conv', shape, 3, **options)
    row = rows.VGG16
    model = classifiers.Classifier(row, 'caffe', row.layer, row.layer, 'float32', static)
    decay = 0.0 if name == 'adam' else 0.05
    trainable, frozen, tx = make_learner(
        {'head': head}, (('head/.*', 'head'),), name, weight_decay=decay, decayed=('.*',)
    )
    theirs = TorchConvHead(head)
    their_optimizer = {
        'adam': lambda p: torch.optim.Adam(p, lr=1e-2),
        'adamw': lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=decay),
        'sgd': lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=decay),
    }[name](theirs.parameters())
    by_class = torch.tensor([0.5, 1, 4] if weighted else [1.0, 1, 1])
    our_loss = Loss(class_weight=by_class.numpy()) if weighted else Loss()
    state = steps.init_state(copy(trainable), tx)
    for _ in range(10):
        features = rng.normal(0, 1, (16, *shape)).astype(np.float32)
        label = rng.integers(0, 3, 16)
        batch = {'features': features, 'label': label.astype(np.int32), 'mask': np.ones(16, bool)}
        weight = np.ones(16, np.float32)
        if weighted:
            weight = batch['weight'] = rng.random(16).astype(np.float32)
        state, sums = steps.train_step(state, frozen, batch, 0, our_loss, classifier=model, tx=tx)
        their_optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            theirs(torch.tensor(features)), torch.tensor(label), weight=by_class, reduction='none'
        )
        loss = (loss * torch.tensor(weight)).sum() / 16
        loss.backward()
        their_optimizer.step()
        np.testing.assert_allclose(sums.loss / 16, loss.item(), rtol=1e-4)
    for path, leaf in trees.flatten(state.params['head']).items():
        reference = getattr(theirs, path.replace('/', '_')).detach().numpy()
        np.testing.assert_allclose(leaf, reference, atol=2e-4, err_msg=path)


def test_scan_equals_steps():
    params, model = make_params()
    trainable, frozen, tx = make_learner(params)
    rng = np.random.default_rng(4)
    features = jnp.asarray(rng.normal(0, 1, (20, 1, 1, 8)), jnp.float32)
    label = jnp.asarray(rng.integers(0, 3, 20, np.int32))
    weight = jnp.asarray(rng.random(20, np.float32))
    places = np.append(rng.permutation(20), [-1, -1, -1, -1]).reshape(3, 8).astype(np.int32)
    one = steps.init_state(copy(trainable), tx)
    losses = []
    for batch_rows in places:
        batch = {
            'features': features[batch_rows],
            'label': label[batch_rows],
            'mask': batch_rows >= 0,
            'weight': weight[batch_rows],
        }
        one, sums = steps.train_step(one, frozen, batch, 5, WEIGHTED, classifier=model, tx=tx)
        losses.append(float(sums.loss))
    other, sums = steps.train_scan(
        steps.init_state(copy(trainable), tx), frozen, OnDevice(features, label, weight),
        jnp.asarray(places), 5, WEIGHTED, classifier=model, tx=tx,
    )  # fmt: skip
    np.testing.assert_allclose(sums.loss, losses, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one.params, other.params)


def test_evaluation_counts_classes_and_knows_no_weights():
    params, model = make_params(head='gap_linear')
    rng = np.random.default_rng(6)
    params['head'] = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params['head'])
    features = jnp.asarray(rng.normal(0, 1, (19, 1, 1, 8)), jnp.float32)
    label = rng.integers(0, 3, 19).astype(np.int32)
    places = np.append(np.arange(19), [-1] * 5).reshape(3, 8)
    on_device = OnDevice(features, jnp.asarray(label), jnp.full(19, 100.0))
    variables = Variables(params, {})
    scanned, probabilities = steps.eval_scan(
        variables, on_device, jnp.asarray(places), classifier=model
    )
    one_by_one = [
        steps.eval_step(variables, steps.gather(on_device, batch), classifier=model)[0]
        for batch in jnp.asarray(places)
    ]
    probabilities = np.asarray(probabilities).reshape(-1, 3)[:19]
    predicted = probabilities.argmax(-1)
    assert len(set(predicted.tolist())) > 1
    added = jax.tree.map(lambda *counts: sum(counts), *(one.counts for one in one_by_one))
    for sums, counts in (
        ([scanned.sums], scanned.counts),
        ([one.sums for one in one_by_one], added),
    ):
        means = steps.means(sums, counts)
        assert means['num_examples'] == 19
        assert means['accuracy'] == pytest.approx(np.mean(predicted == label))
        expected = -np.log(probabilities[np.arange(19), label].astype(float)).mean()
        assert means['loss'] == pytest.approx(expected, rel=1e-5)
        present = sorted(set(label.tolist()))
        recalls = sklearn.metrics.recall_score(label, predicted, labels=present, average=None)
        assert means['balanced_accuracy'] == pytest.approx(recalls.mean())
        assert means['worst_recall'] == pytest.approx(recalls.min())
        f1 = sklearn.metrics.f1_score(label, predicted, labels=present, average='macro')
        assert means['macro_f1'] == pytest.approx(f1)


def test_mixed_labels_are_right_by_their_shares():
    logits = jnp.array([[9.0, 0, 0], [9, 0, 0], [9, 0, 0], [0, 9, 0]])
    batch = {
        'label': jnp.array([0, 1, 2, 1]),
        'mix_label': jnp.array([1, 0, 1, 1]),
        'mix': jnp.array([0.75, 0.75, 0.75, 0.5]),
        'mask': jnp.array([True, True, True, False]),
    }
    assert steps.metric_sums(logits, jnp.ones(4), batch) == (3, 0.75 + 0.25, 3)


def test_schedules():
    cosine = schedules.schedule(1.0, kind='cosine', warmup_steps=10, total_steps=110)
    expected = [
        s / 10 if s < 10 else 0.5 * (1 + np.cos(np.pi * (s - 10) / 100)) for s in range(111)
    ]
    np.testing.assert_allclose([cosine(s) for s in range(111)], expected, atol=1e-6)
    constant = schedules.schedule(1.0, kind='constant', warmup_steps=4, total_steps=8)
    np.testing.assert_allclose([constant(s) for s in range(6)], [0, 0.25, 0.5, 0.75, 1, 1])


def test_labels_have_their_own_rates():
    params, _ = make_params()
    labels = label_tree(params, (('head/.*', 'head'), ('backbone/.*', 'tail')))
    rates = learner.label_rates(labels, default=1e-3, overrides=(('tail', 1e-5),))
    assert rates == {'head': 1e-3, 'tail': 1e-5}
    tx = build.build(labels, name='sgd', learning_rates=rates, momentum=0.0)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    assert np.all(optax.tree.max(updates['head']) == np.float32(-1e-3))
    assert np.all(optax.tree.max(updates['backbone']) == np.float32(-1e-5))


SEVERAL_DEVICES = """
import sys; sys.path[:0] = sys.argv[1:]
import jax, numpy as np, dataclasses
from tlflax.features.batches import OnDevice
from tlflax.train import epoch, steps
from tlflax.utils.parallel.mesh import default_mesh, put_batch, put_rows, replicate
import test_steps as t
params, model = t.make_params()
trainable, frozen, tx = t.make_learner(params)
mesh = default_mesh()
r = epoch.Runner(classifier=model, tx=tx, frozen=replicate(frozen, mesh), mesh=mesh,
                  seed=0, loss=t.WEIGHTED)
state = replicate(steps.init_state(trainable, tx), mesh)
for i in range(5):
    batch = {k: np.asarray(v) for k, v in t.make_batch(i, n=6, real=5).items()}
    batch = put_batch({**batch, 'weight': np.arange(6, dtype=np.float32)}, mesh)
    state, sums = steps.train_step(state, r.frozen, batch, 0, r.loss, classifier=model, tx=tx)
leaves = jax.tree.leaves(state.params)
rows = np.append(np.arange(5), -1).reshape(1, 6)
on_device = replicate(
    OnDevice(np.asarray(t.make_batch(9, n=5, size=(1, 1))['image'][..., :1] / 99.0 *
                   np.ones(8, np.float32)), np.arange(5, dtype=np.int32) % 3), mesh)
full = state.variables.merge(r.frozen)
counts = steps.eval_scan(full, on_device, put_rows(rows, mesh), classifier=model)[0].counts
assert int(counts.true.sum()) == int(counts.predicted.sum()) == 5
print(jax.device_count(), float(sums.loss), *np.concatenate(counts).tolist(),
      *[float(abs(x).sum()) for x in leaves])
"""


def test_several_devices_give_the_same_result():
    np.testing.assert_allclose(*run_on_devices(SEVERAL_DEVICES, TESTS / 'train'), rtol=1e-4)

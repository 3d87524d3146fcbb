"""Heat maps: Grad-CAM by PyTorch in float64, linear heads by hand, taps, ensembles, own methods."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import make_folders, toy_config, untrained
from torch.nn import functional

from tlflax.inference import embeddings, heat_maps, splits

ENSEMBLE = 'ensemble:0:1024 power|0:512 raw*3.0,512:1024 row'
RUNS = {
    'conv': {'model__head': 'conv', 'model__units': 7},
    'tuned': {
        'model__head': 'conv',
        'optim__labels': (('backbone/block1/.*', 'frozen'), ('.*', 'up')),
    },
    'gap': {'model__head': 'gap_linear'},
    'flat': {'model__head': 'flatten_linear'},
    'mlp': {'model__head': 'mlp', 'model__units': 5},
    'taps': {'features__layers': ('block1:mean', 'block2:mean', 'block2:flatten', 'block3:mean')},
    'means': {'features__layers': ('block1:mean', 'block2:mean')},
    'ensemble': {'model__head': ENSEMBLE},
}


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder with images and a cache of its own."""
    root = tmp_path_factory.mktemp('heat')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TLFLAX_CACHE', str(root / 'cache'))
        make_folders(root / 'Train', 4, seed=1)
        make_folders(root / 'Test', 4, seed=2)
        yield root


@pytest.fixture(scope='module')
def classifiers(place):
    return {run: untrained(toy_config(place, **changes)) for run, changes in RUNS.items()}


@pytest.fixture(autouse=True)
def _cache(place, monkeypatch):
    monkeypatch.setenv('TLFLAX_CACHE', str(place / 'cache'))


def inputs(trained):
    """The validation images, and what the head reads of them, float64."""
    table = splits.load_split(trained, 'validation')
    return table, embeddings.of_table(trained, table, full=True).astype(np.float64)


def logits(trained, table):
    rows = embeddings.of_table(trained, table, full=True)
    shape = (-1, 8, 8, 16) if not trained.classifier.taps else rows.shape
    head = trained.variables.branch('head')
    return np.asarray(trained.classifier.head.apply(head, jnp.asarray(rows.reshape(shape)))[0])


def normalized(heat):
    heat = np.maximum(heat, 0)
    largest = heat.max((1, 2), keepdims=True)
    return heat / np.where(largest > 0, largest, 1)


def conv_head(params, x):
    """The conv head in PyTorch, on f64[b, c, h, w]."""

    def tensor(*path):
        leaf = params
        for name in path:
            leaf = leaf[name]
        return torch.tensor(np.asarray(leaf, np.float64))

    for name in ('conv1', 'conv2'):
        kernel = tensor(name, 'kernel').permute(3, 2, 0, 1)
        x = functional.relu(functional.conv2d(x, kernel, tensor(name, 'bias'), padding=1))
        x = functional.max_pool2d(x, 2)
    x = x.permute(0, 2, 3, 1).flatten(1)
    x = functional.relu(x @ tensor('hidden', 'kernel') + tensor('hidden', 'bias'))
    return x @ tensor('logits', 'kernel') + tensor('logits', 'bias')


@pytest.mark.parametrize('run', ['conv', 'tuned'])
@pytest.mark.parametrize('given', [False, True], ids=['predicted', 'given'])
def test_grad_cam_is_that_of_pytorch(classifiers, run, given):
    trained = classifiers[run]
    table, rows = inputs(trained)
    x = torch.tensor(rows.reshape(-1, 8, 8, 16)).permute(0, 3, 1, 2).requires_grad_()
    x.retain_grad()
    out = conv_head(trained.params['head'], x)
    classes = np.arange(len(table)) % 3 if given else out.argmax(1).numpy()
    out[torch.arange(len(table)), torch.tensor(classes)].sum().backward()
    weights = x.grad.mean((2, 3), keepdim=True)
    expected = normalized((weights * x).sum(1).detach().numpy())
    found = heat_maps.of_table(trained, table, classes if given else None)
    assert found.maps.dtype == np.float32
    np.testing.assert_allclose(found.maps, expected, atol=1e-5)
    assert np.median(expected.std((1, 2))) > 0.05
    word = 'given' if given else 'predicted'
    assert found.note == (
        f'Grad-CAM (Selvaraju et al. 2017) of the {word} class at block2, 8 x 8 positions.'
    )


@pytest.mark.parametrize('run', ['gap', 'flat', 'taps'])
def test_maps_of_linear_heads_are_what_each_position_adds(classifiers, run):
    trained = classifiers[run]
    table, rows = inputs(trained)
    kernel = np.asarray(trained.params['head']['logits']['kernel'], np.float64)
    classes = logits(trained, table).argmax(1)
    if run == 'gap':
        kernel = np.repeat(kernel[None], 64, 0) / 64
    elif run == 'taps':  # 8 of block1, then the means of block2, then its positions
        kernel, means = kernel[24 : 24 + 1024], np.tile(kernel[8:24] / 64, (64, 1))
        kernel, rows = kernel + means, rows[:, 24 : 24 + 1024]
    weights = kernel.reshape(64, 16, 3)[..., classes].transpose(2, 0, 1)
    added = (rows.reshape(-1, 64, 16) * weights).sum(-1).reshape(-1, 8, 8)
    found = heat_maps.of_table(trained, table)
    np.testing.assert_allclose(found.maps, normalized(added), atol=1e-5)
    assert ('Grad-CAM' if run == 'gap' else 'HiResCAM') in found.note


def test_of_a_hidden_layer_each_position_counts_too(classifiers):
    trained = classifiers['mlp']
    table, rows = inputs(trained)
    head = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), trained.params['head'])
    hidden = rows @ head['hidden']['kernel'] + head['hidden']['bias']
    classes = logits(trained, table).argmax(1)
    back = (hidden > 0) * head['logits']['kernel'].T[classes]
    added = (rows * (back @ head['hidden']['kernel'].T)).reshape(-1, 8, 8, 16).sum(-1)
    np.testing.assert_allclose(
        heat_maps.of_table(trained, table).maps, normalized(added), atol=1e-5
    )


def ensemble(params, rows, classes):
    """The log-odds of the ensemble's class in PyTorch, f64[b]; `rows` may have a gradient."""
    params = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf, np.float64)), params)
    root = torch.sqrt(rows)
    second = rows[:, 512:]
    parts = [
        functional.normalize(root),
        torch.cat([3 * rows[:, :512], functional.normalize(second)], 1),
    ]
    found = [
        torch.log_softmax(part @ params[f'branch{n}']['kernel'] + params[f'branch{n}']['bias'], 1)
        for n, part in enumerate(parts)
    ]
    scores = torch.logsumexp(torch.stack(found) + params['log_weight'][:, None, None], 0)
    own = torch.arange(3)[None] == torch.tensor(classes)[:, None]
    others = torch.logsumexp(scores.masked_fill(own, -torch.inf), 1)
    return scores[own] - others


@pytest.mark.parametrize('sure', [False, True])
def test_of_an_ensemble_by_its_log_odds(classifiers, sure):
    trained = classifiers['ensemble']
    params = trained.trainable.params
    if sure:
        branch = jax.tree.map(lambda leaf: 1000 * leaf, params['head']['branch0'])
        weights = jnp.array([0.0, -200.0])
        params = {'head': {**params['head'], 'branch0': branch, 'log_weight': weights}}
    trained = dataclasses.replace(trained, trainable=trained.trainable._replace(params=params))
    table, rows = inputs(trained)
    assert (rows == 0).any()  # where the gradient of a square root is infinite
    classes = logits(trained, table).argmax(1)
    certain = jax.nn.softmax(logits(trained, table)).max(1)
    assert (certain == 1).any() == sure
    x = torch.tensor(rows).requires_grad_()
    ensemble(params['head'], x, classes).sum().backward()
    added = np.where(rows > 0, rows * x.grad.numpy(), 0).reshape(-1, 8, 8, 16).sum(-1)
    found = heat_maps.of_table(trained, table)
    np.testing.assert_allclose(found.maps, normalized(added), atol=1e-4)
    assert 'of the log-odds of the predicted class' in found.note


def test_vectors_have_no_map_and_a_sentence_says_so(classifiers):
    trained = classifiers['means']
    table = splits.load_split(trained, 'validation')
    maps, note = heat_maps.of_table(trained, table)
    assert maps is None
    assert note == 'There are no heat maps, as block1:mean, block2:mean has no positions.'


def test_rows_are_those_of_the_table_and_come_from_the_cache(classifiers):
    trained = dataclasses.replace(classifiers['conv'])
    table = splits.load_split(trained, 'validation')
    whole = heat_maps.of_table(trained, table).maps
    trained.sources._programs[:] = [lambda images: pytest.fail('computed')]
    rows = np.array([11, 0, 5])
    classes = logits(trained, table).argmax(1)[rows]
    for given in (None, classes):
        some = heat_maps.of_table(trained, table.select(rows), given).maps
        np.testing.assert_allclose(some, whole[rows], atol=1e-6)
    assert heat_maps.of_table(trained, table.select(rows[:0])).maps.shape == (0, 8, 8)


def test_a_class_that_nothing_speaks_for_has_a_map_of_zeros(classifiers):
    trained = classifiers['gap']
    params = {'head': {'logits': {'kernel': -jnp.ones((16, 3)), 'bias': jnp.zeros(3)}}}
    trained = dataclasses.replace(trained, trainable=trained.trainable._replace(params=params))
    table = splits.load_split(trained, 'validation')
    np.testing.assert_array_equal(heat_maps.of_table(trained, table).maps, 0)


def test_a_backbone_brings_its_own(classifiers):
    def own(logits, features, target):
        assert features.shape[1:] == (8, 8, 16)
        gradient = jax.grad(lambda x: jnp.take_along_axis(logits(x), target[:, None], 1).sum())
        return -gradient(features).sum(-1)

    trained = classifiers['flat']
    model = trained.classifier
    backbone = dataclasses.replace(model.backbone, heat_map=own)
    trained = dataclasses.replace(trained, classifier=dataclasses.replace(model, backbone=backbone))
    table = splits.load_split(trained, 'validation')
    kernel = np.asarray(trained.params['head']['logits']['kernel']).reshape(8, 8, 16, 3).sum(2)
    target = np.arange(len(table)) % 3
    found = heat_maps.of_table(trained, table, target)
    expected = normalized(-kernel[..., target].transpose(2, 0, 1))
    np.testing.assert_allclose(found.maps, expected, atol=1e-5)
    assert found.note.startswith("The backbone's own heat map of the given class at block2")

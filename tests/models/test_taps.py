"""Taps of several layers: poolings against NumPy, the programs against each other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_backbone import toy as BACKBONE

from tlflax.models.base import taps
from tlflax.models.base.taps import Tap
from tlflax.models.classifier import create, feature_shape
from tlflax.models.vgg import fast_cpu, network
from tlflax.models.vgg.rows import make
from tlflax.models.vgg.winograd import Tiling
from tlflax.utils.errors import UserError

X = np.random.default_rng(0).normal(size=(6, 5, 4, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ('pooling', 'expected'),
    [
        ('flatten', X.reshape(6, -1)),
        ('mean', X.mean((1, 2))),
        ('max', X.max((1, 2))),
        (
            'grid2',
            np.concatenate(
                [
                    X[:, r, c].mean((1, 2))
                    for r in (slice(2), slice(2, 5))
                    for c in (slice(2), slice(2, 4))
                ],
                1,
            ),
        ),
    ],
)
def test_poolings(pooling, expected):
    tap = Tap('top', pooling)
    np.testing.assert_allclose(tap.pooled(jnp.asarray(X)), expected, atol=1e-6)
    assert tap.columns(X.shape[1:]) == expected.shape[1]


@pytest.mark.parametrize('pooling', ['flatten', 'mean', 'max', 'grid2', 'grid4'])
def test_vectors_and_maps_of_one_position(pooling):
    vectors, tap = jnp.asarray(X[:, 0, 0]), Tap('fc1', pooling)
    np.testing.assert_array_equal(tap.pooled(vectors), vectors)
    one = tap.pooled(jnp.asarray(X[:, :1, :1]))
    np.testing.assert_allclose(one, vectors, atol=1e-7)


def test_cells_of_a_map_that_they_do_not_divide():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 14, 6, 3)).astype(np.float32))
    found = taps.cells(x, 4).reshape(2, 4, 4, 3)
    edges, sides = (0, 4, 7, 10, 14), (0, 2, 3, 4, 6)
    for i in range(4):
        for j in range(4):
            cell = x[:, edges[i] : edges[i + 1], sides[j] : sides[j + 1]]
            np.testing.assert_allclose(found[:, i, j], cell.mean((1, 2)), atol=1e-6)
    assert taps.cells(x[:, :2], 4).shape == (2, 2 * 4 * 3)


def test_parsing():
    layers = ('low', 'top')
    assert taps.parse(('top', 'low:grid2'), layers) == (Tap('low', 'grid2'), Tap('top', 'flatten'))
    assert taps.parse((), layers) == ()
    for texts, words in {
        ('lwo:mean',): "there is no 'lwo'; did you mean 'low'",
        ('low:mena',): "there is no 'mena'; did you mean 'mean'",
        ('low:mean', 'low:mean'): 'a tap is named twice',
    }.items():
        with pytest.raises(UserError, match=words):
            taps.parse(texts, layers)


TAPS = (Tap('block2_pool', 'grid2'), Tap('block3_pool', 'mean'), Tap('block3_pool', 'flatten'))


def test_the_fast_program_taps_as_the_network_does():
    params = network.init(jax.random.key(0), (1, 1, 2, 1, 1), widths=(8, 8, 16, 16, 16))
    x = jax.random.normal(jax.random.key(1), (5, 32, 32, 3))
    plan = tuple(fast_cpu.BlockPlan((Tiling(4),) * depth, images=2) for depth in (1, 1, 2, 1, 1))
    prepared = fast_cpu.prepare(params, plan, layer='block3_pool')
    found = fast_cpu.features(prepared, x, plan, layer='block3_pool', taps=TAPS)
    one_by_one = [tap.pooled(fast_cpu.features(prepared, x, plan, layer=tap.layer)) for tap in TAPS]
    np.testing.assert_allclose(found, np.concatenate(one_by_one, 1), atol=1e-5)


def classifier(**changes):
    last = BACKBONE.layers[-1]
    tapped = (Tap(BACKBONE.layers[0], 'grid2'), Tap(last, 'flatten'))
    settings = {
        'image_size': (32, 32), 'num_classes': 3, 'head': 'flatten_linear', 'units': 4,
        'dropout': 0.0, 'preprocess': 'torch', 'layer': last, 'taps': tapped, **changes,
    }  # fmt: skip
    return create(BACKBONE, settings.pop('trainable', {}), **settings)


def test_a_classifier_feeds_all_taps_to_its_head():
    model = classifier()
    variables = BACKBONE.init(jax.random.key(0), model.layer)
    images = jax.random.uniform(jax.random.key(1), (2, 32, 32, 3), maxval=255)
    found = model.features(variables, images)
    single = dataclasses.replace(model, taps=())
    for tap in model.taps:
        alone = dataclasses.replace(single, layer=tap.layer, cut=tap.layer)
        rows = tap.pooled(alone.features(variables, images))
        np.testing.assert_allclose(found[:, : rows.shape[1]], rows, atol=1e-6)
        found = found[:, rows.shape[1] :]
    assert found.shape[1] == 0
    assert feature_shape(BACKBONE, (32, 32), model.layer, model.taps) == (
        sum(tap.columns(BACKBONE.feature_shape((32, 32), tap.layer)) for tap in model.taps),
    )


def test_a_backbone_that_is_trained_is_refused():
    layer = BACKBONE.layers[0]
    with pytest.raises(UserError, match=r'config\.features\.layers'):
        classifier(trainable={'backbone': {layer: {}}})


def test_recommended_taps():
    row = make('narrow', network.VGG16)
    taps = row.auto_taps('auto')
    assert 'block4_pool:grid4' in taps
    assert {f'block{block}_pool:mean' for block in range(1, 6)} < set(taps)
    assert row.auto_taps('block3_pool') == ('block3_pool:mean', 'block3_pool:flatten')
    assert BACKBONE.auto_taps('auto')[-1] == f'{BACKBONE.layer}:flatten'

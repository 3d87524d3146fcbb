"""Features from those of lower layers: equal to those from images, and images are not decoded."""

import re
from dataclasses import replace

import jax
import numpy as np
import pytest
import toy_backbone
from helpers import make_folders, run_on_devices, scan_folder

from tlflax.config.schema import AugmentConfig, FeaturesConfig, TrainConfig
from tlflax.data.images.format import ImageFormat
from tlflax.data.pipeline import tf_data
from tlflax.features import extract, programs, sources
from tlflax.features.cache import quota
from tlflax.features.cache.store import Store
from tlflax.features.select import SourceSelector
from tlflax.models import heads
from tlflax.models.base import taps
from tlflax.models.base.modules import Variables
from tlflax.models.classifier import Classifier
from tlflax.models.vgg import network, rows
from tlflax.utils import assets
from tlflax.utils.errors import UserError
from tlflax.utils.parallel.mesh import default_mesh

NARROW = rows.make('vgg16', network.VGG16, widths=(4, 6, 8, 8, 8))
SIZE = (32, 32)


@pytest.fixture(scope='module')
def table(tmp_path_factory):
    return scan_folder(make_folders(tmp_path_factory.mktemp('images'), 7, seed=1))


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv('TLFLAX_CACHE', str(tmp_path / 'cache'))
    caplog.set_level('INFO')


def selector(cut, model=toy_backbone.toy, *, tapped=(), epochs=30, preprocess='torch', **features):
    """The sources of a backbone that is frozen up to `cut`, with random weights."""
    variables = jax.device_get(model.init(jax.random.key(0), cut))
    # Statistics unlike those of a new network, so that evaluation mode shows.
    state = jax.tree.map(lambda leaf: leaf + 0.5, variables.state)
    found = taps.parse(tapped, model.layers)
    shape = model.feature_shape(SIZE, cut)
    return SourceSelector(
        image_format=ImageFormat(image_size=SIZE),
        augment=AugmentConfig(),
        features=FeaturesConfig(**features),
        train_config=TrainConfig(epochs=epochs, batch_size=8),
        weights_digest='abc',
        backbone=Variables(variables.params, state),
        classifier=Classifier(
            backbone=model,
            preprocess=preprocess,
            layer=cut,
            cut=cut,
            dtype='float32',
            head=heads.static('flatten_linear', shape, 3, units=4, dropout=0.0),
            taps=found,
        ),
        mesh=default_mesh(),
    )


def values(chosen, table):
    """The features of both views of all images, computed from images by the plain program."""
    plain, parts = chosen.classifier, []
    for mirrored in (False, True):
        draws = {'horizontal_flip': np.full(len(table), mirrored)}
        images = tf_data.batches(
            table,
            np.arange(len(table)),
            draws=draws,
            augment=chosen.augment,
            image_format=chosen.image_format,
            batch_size=programs.batch_size(),
        )
        parts += [
            np.asarray(programs.backbone_step(chosen.backbone, b['image'], classifier=plain))[
                b['mask']
            ]
            for b in images
        ]
    return np.concatenate(parts)


def kept(chosen, table):
    return np.asarray(chosen.train(table).on_device.features, np.float32)


def assert_equal(a, b):
    assert a.shape == b.shape
    assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)
    assert np.abs(a - b).max() <= 1e-4 * np.abs(b).max()  # no row is out of place


def computed(caplog):
    """From what features were computed since last asked, and how many; '': from images."""
    pattern = r'training: computing features of (\d+) of \d+ views (?:from (\w+)|of)'
    found = [(layer, int(count)) for count, layer in re.findall(pattern, caplog.text)]
    caplog.clear()
    return found


def refuse(*_):
    raise AssertionError('an image is decoded')


def test_features_follow_from_a_lower_layer_without_images(table, caplog, monkeypatch):
    kept(selector('block2'), table)
    assert computed(caplog) == [('', 42)]
    top = selector('block3')
    monkeypatch.setattr(extract, '_images', refuse)
    found = kept(top, table)
    assert re.search(r'features of 42 of 42 views from block2 \(\d+ MB\)', caplog.text)
    assert computed(caplog) == [('block2', 42)]
    monkeypatch.undo()
    assert_equal(found, values(top, table))


def test_what_the_nearest_layer_lacks_comes_from_below_it_and_then_from_images(table, caplog):
    half = np.arange(21) % 3 > 0
    kept(selector('block1'), table.select(np.flatnonzero(half)))
    kept(selector('block2', epochs=1), table.select(np.arange(10)))
    caplog.clear()
    top = selector('block3')
    found = kept(top, table)
    assert_equal(found, values(top, table))
    order = computed(caplog)
    assert [layer for layer, _ in order] == ['block2', 'block1', '']
    assert dict(order)['block2'] == 10
    assert sum(count for _, count in order) == 42
    kept(selector('block3'), table)
    assert computed(caplog) == []


@pytest.mark.parametrize(
    ('lower', 'upper', 'source'),
    [
        ({'dtype': 'float16'}, {}, ''),
        ({'dtype': 'bfloat16'}, {'dtype': 'bfloat16'}, ''),
        ({}, {'dtype': 'float16'}, 'block2'),
        ({'preprocess': 'caffe'}, {}, ''),
        ({'tapped': ('block2:flatten',)}, {}, ''),
        ({}, {'tapped': ('block2:mean', 'block3:flatten')}, ''),
    ],
    ids=['half', 'both-half', 'to-half', 'preprocess', 'lower-taps', 'taps'],
)
def test_only_exact_features_that_differ_in_the_layer_alone_serve(
    table, caplog, lower, upper, source
):
    kept(selector('block2', **lower), table)
    caplog.clear()
    kept(selector('block3', **upper), table)
    assert computed(caplog) == [(source, 42)]


def test_a_higher_layer_is_of_no_use(table, caplog):
    kept(selector('block3'), table)
    kept(selector('block2'), table)
    assert computed(caplog) == [('', 42), ('', 42)]


def test_corrected_layers(table, caplog):
    """Old values of a layer, without its mark, are used by no one, and the mark is for itself."""
    model = replace(toy_backbone.toy, corrected={'block2': 'fixed'})
    kept(selector('block2'), table)  # as a release before the correction kept them
    kept(selector('block3', model), table)
    assert computed(caplog) == [('', 42), ('', 42)]
    model = replace(toy_backbone.toy, corrected={'block3': 'fixed'})
    kept(selector('block3', model), table)
    assert computed(caplog) == [('block2', 42)]


def test_an_interrupted_computation_goes_on_where_it_was(table, caplog, monkeypatch):
    monkeypatch.setattr(programs, 'BATCH', 8)
    kept(selector('block2'), table)
    append, calls = Store.append, iter(range(100))

    def broken(self, keys, features):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return append(self, keys, features)

    monkeypatch.setattr(Store, 'append', broken)
    with pytest.raises(KeyboardInterrupt):
        kept(selector('block3'), table)
    monkeypatch.setattr(Store, 'append', append)
    caplog.clear()
    top = selector('block3')
    assert_equal(kept(top, table), values(top, table))
    assert computed(caplog) == [('block2', 42 - 2 * 8)]


def test_without_room_for_both_the_lower_layer_gives_way(table, caplog):
    root = assets.cache_folder() / 'features'
    kept(selector('block2'), table)
    full = sum(space.bytes for space in quota.info(root))
    top = selector('block3', max_gb=full / 1e9)
    caplog.clear()
    assert_equal(kept(top, table), values(top, table))
    assert computed(caplog) == [('', 42)]
    assert [s.description['space']['layer'] for s in quota.info(root) if s.rows] == ['block3']
    with pytest.raises(UserError, match='the limit is'):
        kept(selector('block1', max_gb=1e-9), table)


def test_lower_features_may_be_evicted_as_soon_as_they_are_read(table, monkeypatch):
    root = assets.cache_folder() / 'features'
    kept(selector('block2'), table)
    in_use = []

    def append(self, keys, features, append=Store.append):
        in_use.append({s.description['space']['layer']: s.in_use for s in quota.info(root)})
        return append(self, keys, features)

    monkeypatch.setattr(Store, 'append', append)
    kept(selector('block3'), table)
    assert in_use[0]['block2']
    assert not any(space.in_use for space in quota.info(root))


def test_streamed_features_follow_too(table, caplog, monkeypatch):
    kept(selector('block2'), table)
    monkeypatch.setattr(sources, 'on_device_limit', lambda: 0)
    top = selector('block3')
    caplog.clear()
    batches = list(top.eval(table, 'training').eval_batches())
    assert computed(caplog) == [('block2', 21)]
    found = np.concatenate([b['features'][b['mask']] for b in batches])
    assert_equal(found, values(top, table)[:21])


@pytest.mark.parametrize(
    ('layer', 'tapped'),
    [
        ('block3_conv1', ()),
        ('block3_conv2', ('block1_pool:mean', 'block2_conv1:max', 'block3_conv2:flatten')),
        ('block3_conv1', ('block1_pool:mean', 'block2_pool:grid2', 'block3_conv1:flatten')),
        ('block1_conv1', ()),
    ],
)
def test_a_layer_inside_a_block_takes_the_fast_program_up_to_the_pool_below(
    table, layer, tapped, monkeypatch
):
    chosen, asked = selector(layer, NARROW, tapped=tapped), []
    fast = NARROW.fast_cpu

    def fast_cpu(*args, **kwargs):
        program = fast(*args, **kwargs)
        asked.append((kwargs['layer'], program is not None))
        return program

    model = replace(NARROW, fast_cpu=fast_cpu)
    chosen = replace(chosen, classifier=replace(chosen.classifier, backbone=model))
    assert_equal(kept(chosen, table), values(selector(layer, NARROW, tapped=tapped), table))
    pool = {'block3_conv1': 'block2_pool', 'block3_conv2': 'block1_pool'}.get(layer)
    assert [name for name, served in asked if served] == ([pool] if pool else [])
    names = {
        s.description['space']['layer'] for s in quota.info(assets.cache_folder() / 'features')
    }
    assert names == {layer}  # the pool is not stored


def test_lower_layers_serve_vgg_where_that_is_faster_than_the_fast_program(table, caplog):
    model = rows.make('vgg16', network.VGG16, widths=(4, 8, 16, 32, 32))  # in VGG's proportions
    kept(selector('block1_pool', model), table)
    kept(selector('block4_pool', model), table)
    assert computed(caplog) == [('', 42), ('', 42)]  # most of the work is above block1_pool
    top = selector('block5_pool', model)
    assert_equal(kept(top, table), values(top, table))
    assert computed(caplog) == [('block4_pool', 42)]


def test_the_work_is_counted_in_operations():
    chosen = selector('block2_conv1', NARROW).classifier
    multiplications = 16 * 16 * 9 * 4 * 6
    counted = programs.work(chosen, 'block1_pool', SIZE)
    assert 2 * 0.8 * multiplications < counted < 2 * 1.1 * multiplications  # borders have fewer


CODE = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + '/features']
import os, jax, numpy as np
os.environ['TLFLAX_CACHE'] = f'{sys.argv[2]}/cache{jax.device_count()}'
import test_derive as t
from helpers import scan_folder
table = scan_folder(f'{sys.argv[2]}/images')
t.kept(t.selector('block2'), table)
def refuse(*_):
    raise AssertionError('an image is decoded')
t.extract._images = refuse
found = t.kept(t.selector('block3'), table)
print(jax.device_count(), found.astype(np.float64).sum(), np.abs(found).max())
"""


def test_one_and_four_devices_agree(tmp_path):
    make_folders(tmp_path / 'images', 3)
    one, four = run_on_devices(CODE, tmp_path)
    np.testing.assert_allclose(one, four, rtol=1e-5)

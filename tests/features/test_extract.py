"""Training from cached features: equal to training from images, and nothing computed twice."""

import gc
import json
import os
import re
import runpy
import threading
from dataclasses import replace

import jax
import numpy as np
import pytest
from helpers import ROOT, make_folders, small_config

import tlflax
from tlflax.config.schema import AugmentConfig
from tlflax.data.augment import sampling
from tlflax.data.images.format import ImageFormat
from tlflax.data.splits.load import load_table
from tlflax.features import programs, sources, spaces
from tlflax.features.cache import quota
from tlflax.features.cache.keys import describe
from tlflax.features.cache.store import Store
from tlflax.features.views import training_views, view_keys
from tlflax.models.base.backbone import FastProgram
from tlflax.train import components, setup, train_and_evaluate
from tlflax.utils import assets, trees
from tlflax.utils.errors import UserError


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('TLFLAX_CACHE', str(tmp_path / 'cache'))


@pytest.fixture
def folders(tmp_path):
    make_folders(tmp_path / 'd' / 'Train', 7, seed=1)
    make_folders(tmp_path / 'd' / 'Test', 3, seed=2)
    return tmp_path / 'd'


def params_of(workdir):
    return trees.flatten(jax.device_get(tlflax.load(workdir, 'last').trainable.params))


def records(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def computed(caplog):
    """How many features were computed since last asked, for each split that needed any."""
    found = re.findall(r'(\w+): computing features of (\d+) of', caplog.text)
    caplog.clear()
    return {name: int(count) for name, count in found}


def test_the_description_of_a_feature_space_stays_what_it_is():
    """Its digest is the name of a folder in caches that exist."""
    config = setup.configure(runpy.run_path(str(ROOT / 'configs/traffic.py'))['get_config']())

    def described(background=(0, 0, 0)):
        form = replace(ImageFormat.of(config.data), background=background)
        model = components.build_classifier(config, {}, 3, 'caffe')
        return spaces.describe_space(form, model, weights_digest='abc')

    assert described() == {
        'version': 1,
        'weights': 'abc',
        'preprocess': 'caffe',
        'image_size': [224, 224],
        'resize': 'stretch',
        'antialias': True,
        'layer': 'block5_pool',
        'compute': 'float32',
    }
    name, text = describe(described(), (7, 7, 512), config.features.dtype, 2674)
    assert name == 'be26eedebcb58408'
    assert json.loads(text)['space'] == described()
    assert describe(described((1, 2, 3)), (7, 7, 512), 'float32', 10)[0] == '979fa5b48a34f798'


@pytest.mark.parametrize(
    ('head', 'optimizer', 'augment'),
    [
        ('conv', 'sgd', {'vertical_flip': True}),  # four views
        ('flatten_linear', 'adam', {'right_angles': True}),  # eight
        ('flatten_linear', 'sgd', {'crops': 'ten', 'crop_fraction': 0.8}),
    ],
)
def test_cached_training_equals_live_training(folders, tmp_path, head, optimizer, augment):
    """The same seed, batches and views: after 51 steps the parameters agree to 1e-5."""
    for cache in ('auto', 'False'):
        config = small_config(folders, features__cache=cache, train__epochs=17)
        config.model.head, config.optim.name = head, optimizer
        config.augment.update(augment)
        train_and_evaluate(config, tmp_path / cache)
    cached, live = params_of(tmp_path / 'auto'), params_of(tmp_path / 'False')
    for path, leaf in live.items():
        off = np.abs(cached[path] - leaf) > 1e-5
        # Adam divides by the gradient's size: where that is all rounding, a weight may differ.
        assert off.mean() <= (0.001 if optimizer == 'adam' else 0), path
    for a, b in zip(records(tmp_path / 'auto'), records(tmp_path / 'False'), strict=True):
        for key in ('train_loss', 'val_loss', 'train_accuracy', 'val_accuracy'):
            assert abs(a[key] - b[key]) < 1e-5, key


def test_streaming_equals_on_device_training(folders, tmp_path, monkeypatch):
    config = small_config(folders)
    train_and_evaluate(config, tmp_path / 'on_device')
    monkeypatch.setattr(sources, 'on_device_limit', lambda: 0)
    train_and_evaluate(config, tmp_path / 'streamed')
    on_device, streamed = params_of(tmp_path / 'on_device'), params_of(tmp_path / 'streamed')
    for path, leaf in on_device.items():
        np.testing.assert_allclose(streamed[path], leaf, atol=1e-6, err_msg=path)


def test_streamed_features_leave_no_thread_no_file_and_no_lock(folders, monkeypatch):
    """Also where an epoch is abandoned, and where nobody closes the store."""
    config = setup.configure(small_config(folders, train__epochs=20))
    table = load_table(config.data.train, data=config.data)
    monkeypatch.setattr(sources, 'on_device_limit', lambda: 0)
    root = assets.cache_folder() / 'features'

    def run(epochs):
        made = setup.build(config, setup.load(config))
        source = made.sources.train(table)
        assert isinstance(source, sources.StreamedFeatures)
        for epoch in range(epochs):
            batches = source.train_batches(epoch, 0)
            next(batches)
            if epoch % 2:
                list(batches)
        assert quota.info(root)[0].in_use

    run(2)
    gc.collect()
    assert not quota.info(root)[0].in_use
    threads, files = threading.enumerate(), len(os.listdir('/proc/self/fd'))
    run(20)
    gc.collect()
    assert threading.enumerate() == threads
    assert len(os.listdir('/proc/self/fd')) <= files
    assert not quota.info(root)[0].in_use


def test_each_view_of_each_image_is_computed_once_ever(folders, tmp_path, caplog):
    caplog.set_level('INFO')
    config = small_config(folders, train__epochs=30)
    train_and_evaluate(config, tmp_path / 'a')
    assert computed(caplog) == {'training': 42, 'validation': 9}  # 21 images, two views
    config.train.seed = 1
    config.weights.source = 'random'  # another seed is another random backbone
    config.model.head = 'gap_linear'
    config.train.seed = 0
    train_and_evaluate(config, tmp_path / 'b')
    assert computed(caplog) == {}
    make_folders(tmp_path / 'more', 2, seed=9)
    for photo in (tmp_path / 'more' / 'red').iterdir():
        photo.rename(folders / 'Train' / 'red' / f'more-{photo.name}')
    (folders / 'Train' / 'green' / '000.jpg').rename(folders / 'Train' / 'green' / 'renamed.jpg')
    train_and_evaluate(config, tmp_path / 'c')
    assert computed(caplog) == {'training': 4}  # two images more, two views each


def test_few_epochs_compute_only_what_they_draw(folders, tmp_path, caplog):
    caplog.set_level('INFO')
    train_and_evaluate(small_config(folders, train__epochs=1), tmp_path / 'w')
    assert computed(caplog)['training'] == 21


def test_interrupted_extraction_goes_on_where_it_was(folders, tmp_path, caplog, monkeypatch):
    caplog.set_level('INFO')
    config = small_config(folders, train__epochs=30)
    program = programs.backbone_program

    def failing(*args, **kwargs):
        compute, calls = program(*args, **kwargs), iter(range(100))

        def broken(image):
            if next(calls) == 3:
                raise KeyboardInterrupt
            return compute(image)

        return broken

    monkeypatch.setattr(programs, 'BATCH', 8)
    monkeypatch.setattr(programs, 'backbone_program', failing)
    with pytest.raises(KeyboardInterrupt):
        train_and_evaluate(config, tmp_path / 'w')
    monkeypatch.setattr(programs, 'backbone_program', program)
    caplog.clear()
    train_and_evaluate(config, tmp_path / 'w')
    assert computed(caplog)['training'] == 42 - 2 * 8  # the third batch was under way


@pytest.mark.parametrize('step', [4, 0])
def test_padding_is_computed_as_far_as_a_program_needs_it(step, folders, tmp_path, monkeypatch):
    program, sizes = programs.backbone_program, []

    def watched(*args, **kwargs):
        compute = program(*args, **kwargs)
        assert isinstance(compute, FastProgram)  # as for VGG on a CPU

        def run(image):
            sizes.append(len(image))
            return compute(image)

        return FastProgram(run, step) if step else run

    monkeypatch.setattr(programs, 'BATCH', 8)
    monkeypatch.setattr(programs, 'backbone_program', watched)
    train_and_evaluate(small_config(folders, train__epochs=30), tmp_path / 'w')
    assert sizes[:6] == [8] * 5 + [4 if step else 8]  # 42 views for training


def test_features_that_cannot_be_read_back_are_an_error(folders, tmp_path, monkeypatch):
    lookup = Store.lookup
    monkeypatch.setattr(Store, 'lookup', lambda self, keys: np.minimum(lookup(self, keys), -1))
    with pytest.raises(UserError, match='that were just written cannot be read back'):
        train_and_evaluate(small_config(folders, train__epochs=1), tmp_path / 'w')


def test_half_width_storage_is_close(folders, tmp_path):
    losses = {}
    for dtype in ('float32', 'float16', 'bfloat16'):
        config = small_config(folders, features__dtype=dtype)
        losses[dtype] = train_and_evaluate(config, tmp_path / dtype)['best_val_loss']
    assert losses['float16'] != losses['float32']
    assert abs(losses['float16'] - losses['float32']) < 2e-3
    assert abs(losses['bfloat16'] - losses['float32']) < 2e-2


def test_endless_augmentation_runs_live_unless_told_otherwise(folders, tmp_path, caplog):
    caplog.set_level('INFO')
    config = small_config(folders, augment__rotation_range=10.0, train__epochs=2)
    train_and_evaluate(config, tmp_path / 'live')
    assert 'endless outcomes' in caplog.text
    assert computed(caplog) == {'validation': 9}
    config.features.cache = True
    config.features.views = 3
    config.train.epochs = 40
    train_and_evaluate(config, tmp_path / 'cached')
    assert 'approximated by 3 views' in caplog.text
    assert computed(caplog) == {'training': 63}


def test_sampled_views_belong_to_the_image_not_to_its_row():
    augment = AugmentConfig(rotation_range=10.0)
    views = training_views(augment, seed=0, n=4, samples=2)
    digests = np.array([f'{i:064x}' for i in range(4)], object)
    all_keys = np.concatenate([view_keys(digests, name) for name in views.names])
    assert len(np.unique(all_keys, axis=0)) == 8
    np.testing.assert_array_equal(
        view_keys(digests[:2], views.names[0][:2]),
        view_keys(digests, views.names[0])[:2],
    )
    assert len(np.unique([d['rotation'] for d in views.draws])) == 8


def test_evaluation_uses_the_center_crop_that_training_stored(folders, tmp_path, caplog):
    """The same images as training and validation: nothing is computed twice."""
    caplog.set_level('INFO')
    config = small_config(folders, augment__crops='five', train__epochs=80)
    config.data.val = config.data.train
    train_and_evaluate(config, tmp_path / 'w')
    assert computed(caplog) == {'training': 210}


@pytest.mark.parametrize(
    ('settings', 'names'),
    [
        ({}, ['', 'horizontal_flip', 'horizontal_flip vertical_flip', 'vertical_flip']),
        (
            {'horizontal_flip': False, 'crops': 'five', 'vertical_flip': False},
            [
                f'crop={corner}/0.875'
                for corner in ('bottom_left', 'bottom_right', 'centre', 'top_left', 'top_right')
            ],
        ),
    ],
)
def test_exact_views_are_what_the_live_pipeline_draws(settings, names):
    augment = AugmentConfig(**{'vertical_flip': True, **settings})
    views = training_views(augment, seed=3, n=50, samples=1)
    assert sorted(views.names) == names
    for epoch in range(3):
        live = sampling.draw(augment, 3, epoch, 50)
        chosen = views.choose(epoch)
        for name, values in live.items():
            drawn = [views.draws[view][name][i] for i, view in enumerate(chosen)]
            np.testing.assert_array_equal(drawn, values)


TAIL = (('backbone/block3.*', 'tail'), ('backbone/.*', 'frozen'), ('head/.*', 'head'))


@pytest.mark.parametrize('augment', [{}, {'crops': 'five'}], ids=['flips', 'crops'])
def test_fine_tuning_reads_the_layer_below_what_is_trained(folders, tmp_path, caplog, augment):
    """Its features are kept, and training from them equals training from images."""
    caplog.set_level('INFO')
    config = small_config(folders, optim__labels=TAIL, optim__name='sgd', train__epochs=4)
    config.model.dropout = 0.25
    config.augment.update(augment)
    result = train_and_evaluate(config, tmp_path / 'w')
    assert set(computed(caplog)) == {'training', 'validation'}
    restored = tlflax.load(tmp_path / 'w')
    assert restored.classifier.cut == 'block2_pool'
    assert abs(restored.evaluate()['loss'] - result['best_val_loss']) < 1e-6
    assert computed(caplog) == {}
    config.features.cache = False
    train_and_evaluate(config, tmp_path / 'live')
    assert computed(caplog) == {}
    kept, live = params_of(tmp_path / 'w'), params_of(tmp_path / 'live')
    assert 'backbone/block3_conv1/kernel' in kept
    for path, leaf in kept.items():
        np.testing.assert_allclose(leaf, live[path], rtol=1e-4, atol=1e-5, err_msg=path)


def test_where_the_first_layer_is_trained_nothing_is_kept(folders, tmp_path, caplog):
    caplog.set_level('INFO')
    config = small_config(folders, optim__labels=(('.*', 'all'),), train__epochs=1)
    config.optim.learning_rate = 1e-5
    result = train_and_evaluate(config, tmp_path / 'w')
    assert computed(caplog) == {}
    restored = tlflax.load(tmp_path / 'w')
    assert abs(restored.evaluate()['loss'] - result['best_val_loss']) < 1e-6
    config.features.cache = True
    with pytest.raises(UserError, match='first layer of the backbone is trained'):
        train_and_evaluate(config, tmp_path / 'v')

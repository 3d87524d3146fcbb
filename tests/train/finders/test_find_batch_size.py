"""The gradient noise scale against per-example gradients in NumPy; times, memory and the choice."""

import json
import math

import jax
import numpy as np
import pytest
import toy_backbone
from helpers import make_folders, small_config

from tlflax.features.on_host import read
from tlflax.train import setup
from tlflax.train.finders import batch_size, batches, command, noise_scale
from tlflax.train.finders.batch_size import Measured
from tlflax.train.finders.noise_scale import Squares


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('images')
    make_folders(root / 'Train', 16, seed=1)
    make_folders(root / 'Test', 3, seed=2)
    return root


def small(folders, **changes):
    return small_config(
        folders,
        model__backbone=f'py:{toy_backbone.__file__}:toy',
        features__layer='auto',
        **{'augment__horizontal_flip': False, **changes},
    )


def build(config):
    resolved = setup.configure(config)
    return setup.build(resolved, setup.load(resolved))


def by_example(run, source, state):
    """The gradient of each image's loss, f64[n, parameters], of softmax regression."""
    features, label = read(source)
    x = features.reshape(len(features), -1).astype(np.float64)
    layer = jax.device_get(state.params['head']['logits'])
    logits = x @ layer['kernel'].astype(np.float64) + layer['bias']
    p = np.exp(logits - logits.max(1, keepdims=True))
    residual = p / p.sum(1, keepdims=True) - np.eye(3)[label]
    kernel = x[:, :, None] * residual[:, None, :]
    return np.concatenate([kernel.reshape(len(x), -1), residual], axis=1)


def test_the_noise_scale_is_that_of_the_gradients_of_single_images(folders):
    run = build(small(folders, train__epochs=300, model__dropout=0.0))
    source, state = run.sources.train(run.splits.train), batches.first_state(run)
    for _, batch in zip(range(5), batches.endless(run, source), strict=False):
        state, _ = batches.step(run, state, batch)
    gradients = by_example(run, source, state)
    mean = gradients.mean(0)
    expected = gradients.var(0, ddof=1).sum() / (mean @ mean)
    eights = batches.with_size(run, source, 8)
    for count in (3, 6):  # a large batch of half of the images, and of all
        squares = []
        for number in range(150):
            group = list(batches.epoch(run, eights, number))[:count]
            squares.append(noise_scale.large_batch(run, state, group))
        found = noise_scale.noise_scale(squares, 8, 8 * count, 48)
        assert found == pytest.approx(expected, rel=0.1), count
    assert squares[0].large == pytest.approx(mean @ mean, rel=1e-4)  # of all images
    quick = noise_scale.measure(run, source, state)
    assert expected / 2 < quick < expected * 2


def test_the_formula_is_unbiased():
    """Batches of a population of Gaussian gradients, drawn without replacement."""
    rng = np.random.default_rng(0)
    gradients = rng.normal(0.3, 1, (60, 20))
    mean = gradients.mean(0)
    expected = gradients.var(0, ddof=1).sum() / (mean @ mean)
    squares = []
    for _ in range(4000):
        parts = gradients[rng.permutation(60)[:20]].reshape(5, 4, 20).mean(1)
        squares.append(Squares((parts**2).sum(1).mean(), (parts.mean(0) ** 2).sum()))
    assert noise_scale.noise_scale(squares, 4, 20, 60) == pytest.approx(expected, rel=0.03)
    assert noise_scale.noise_scale([Squares(4.0, 0.9)], 1, 4, 10**9) == math.inf  # all is noise


def test_dropout_is_part_of_the_noise(folders):
    """Each small batch draws its own; measured with one mask for all, it would not average out."""
    changes = {'model__head': 'mlp', 'model__dropout': 0.9}
    run = build(small(folders, **changes))
    source, state = run.sources.train(run.splits.train), batches.first_state(run)
    batch = next(batches.epoch(run, batches.with_size(run, source, 8), 0))
    squares = noise_scale.large_batch(run, state, [batch] * 6)
    assert squares.large < 0.9 * squares.small  # the same images, yet other gradients


def rows(*images_per_second, fits=True):
    return [
        Measured(2 ** (3 + n), 1.0, speed, 10.0, fits) for n, speed in enumerate(images_per_second)
    ]


@pytest.mark.parametrize(
    ('found', 'noise', 'images', 'expected'),
    [
        (rows(100, 200, 400, 800, 1600), 20, 10_000, (16, 'noise')),
        (rows(100, 200, 400, 800, 1600), 25, 10_000, (32, 'noise')),
        (rows(100, 200, 400, 410, 420), 1000, 10_000, (32, 'speed')),
        (rows(100, 90, 110, 95, 105), 1000, 10_000, (8, 'speed')),
        (rows(100, 200, 400, 800, 1600), math.inf, 300, (32, 'images')),
        (rows(100, 200, 400, 800), 1.5, 10_000, (8, 'noise')),
        (rows(100, 200), math.inf, 20, (8, 'images')),
        ([*rows(100, 200), Measured(32, math.nan, math.nan, 1e9, False)], 500, 9999, (16, 'speed')),
    ],
)
def test_the_choice_is_as_large_as_pays(found, noise, images, expected):
    choice = batch_size.choose(found, noise, images)
    assert (choice.batch_size, choice.limit) == expected


@pytest.mark.parametrize('cache', ['auto', 'False'], ids=['cached', 'live'])
def test_the_report(folders, caplog, cache):
    caplog.set_level('INFO')
    config = small(folders, features__cache=cache)
    report = command.find_batch_size(config).splitlines()
    found = json.loads(report[-1])
    assert [one['batch_size'] for one in found['sizes']] == [8]  # 48 images
    assert found['batch_size'] == 8
    (one,) = found['sizes']
    assert one['images_per_second'] == pytest.approx(8000 / one['milliseconds'])
    assert one['fits']
    assert one['megabytes'] > 0
    assert report[0].split() == ['batch', 'size', 'ms', 'a', 'step', 'images/s', 'MB']
    assert report[-2].startswith('suggestion: train.batch_size=8: ')
    assert ('images are read in every step' in caplog.text) == (cache == 'False')


def test_all_sizes_are_measured_and_what_does_not_fit_is_not_run(folders, monkeypatch):
    run = build(small(folders))
    source = run.sources.train(run.splits.train)
    monkeypatch.setattr(batch_size, 'SHARE', 2)
    found = batch_size.measure(run, source)
    assert [one.batch_size for one in found] == [8, 16, 32]
    assert all(one.fits and one.milliseconds > 0 for one in found)
    sizes = [one.megabytes for one in found]
    assert sizes == sorted(sizes)
    features = source.on_device.features.nbytes / 1e6
    assert features < sizes[0] < features + 10  # the features are arguments of the step
    monkeypatch.setattr(batch_size, 'free_bytes', lambda: 0.0)
    (first,) = batch_size.measure(run, source)
    assert not first.fits
    assert math.isnan(first.milliseconds)


def test_free_memory_is_known_on_linux():
    assert 1e6 < batch_size.free_bytes() < 1e14

"""Test-time augmentation: the mean over views, against each view evaluated by itself."""

import json

import jax
import numpy as np
import pytest
from helpers import make_folders, run_module, scan_folder, small_config

import tlflax
from tlflax.data.augment import sampling
from tlflax.data.images.format import ImageFormat
from tlflax.data.pipeline import tf_data
from tlflax.train import train_and_evaluate


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('TLFLAX_CACHE', str(tmp_path / 'cache'))


def workdir(tmp_path, **changes):
    make_folders(tmp_path / 'd' / 'Train', 5, seed=1)
    make_folders(tmp_path / 'd' / 'Test', 3, seed=2, noise=90.0)
    config = small_config(tmp_path / 'd', train__epochs=2, **changes)
    train_and_evaluate(config, tmp_path / 'w')
    return tmp_path / 'w'


def by_hand(work, root, views):
    """Each view's pixels from the pipeline, its probabilities, their mean in float64."""
    restored = tlflax.load(work)
    table = scan_folder(root)
    config = restored.config
    total = 0
    for view in views:
        (batch,) = tf_data.eval_epoch(
            table, augment=config.augment, view=view, batch_size=len(table),
            image_format=ImageFormat.of(config.data),
        )  # fmt: skip
        found = jax.nn.softmax(restored.logits(restored.params, batch['image']))
        total = total + np.asarray(found, np.float64)
    return table, total / len(views)


@pytest.mark.parametrize(
    ('changes', 'count'),
    [
        ({}, 2),
        ({'augment__horizontal_flip': False}, 2),
        ({'augment__crops': 'five', 'augment__vertical_flip': True}, 20),
        ({'augment__rotation_range': 5.0, 'features__cache': 'False'}, 2),
    ],
    ids=str,
)
def test_mean_over_the_views(tmp_path, caplog, changes, count):
    caplog.set_level('INFO')
    work = workdir(tmp_path, **changes)
    restored = tlflax.load(work)
    views = sampling.test_views(restored.config.augment)
    assert len(views) == count
    table, expected = by_hand(work, tmp_path / 'd' / 'Test', views)
    result = restored.evaluate(tta=True)
    assert f'the mean over {count} views' in caplog.text
    assert ('which training has not seen' in caplog.text) == (
        changes.get('augment__horizontal_flip') is False
    )
    labels = table.labels
    assert result['num_examples'] == 9
    assert result['accuracy'] == (expected.argmax(1) == labels).mean()
    loss = -np.log(expected[np.arange(9), labels]).mean()
    assert result['loss'] == pytest.approx(loss, abs=1e-5)
    assert np.sum(result['confusion_matrix']) == 9
    predicted = restored.predict(list(table.paths), tta=True)
    got = [list(p.probabilities.values()) for p in predicted]
    np.testing.assert_allclose(got, expected, atol=1e-5)
    plain = restored.evaluate()
    assert abs(plain['loss'] - result['loss']) > 1e-6


def test_stored_flips_are_not_computed_again(tmp_path, caplog):
    work = workdir(tmp_path)
    caplog.set_level('INFO')
    restored = tlflax.load(work)
    restored.evaluate(tta=True)
    assert 'computing features of 9 of 18 views' in caplog.text
    caplog.clear()
    restored.evaluate(tta=True)
    assert 'computing' not in caplog.text


def test_arrays_are_mirrored_and_turned(tmp_path):
    work = workdir(tmp_path, augment__right_angles=True)
    restored = tlflax.load(work)
    image = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    symmetric = [np.rot90(i, k, axes=(1, 2)) for i in (image, image[:, :, ::-1]) for k in range(4)]
    single = np.mean(
        [[list(p.probabilities.values()) for p in restored.predict(i.copy())] for i in symmetric],
        axis=0,
    )
    averaged = [list(p.probabilities.values()) for p in restored.predict(image, tta=True)]
    np.testing.assert_allclose(averaged, single, atol=1e-6)


def test_the_commands(tmp_path):
    work = workdir(tmp_path)
    cache = {'TLFLAX_CACHE': str(tmp_path / 'cache')}
    done = run_module('evaluate', f'--workdir={work}', '--tta', **cache)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])['num_examples'] == 9
    assert 'test-time augmentation: the mean over 2 views' in done.stderr
    photo = next((tmp_path / 'd' / 'Test' / 'red').iterdir())
    done = run_module('predict', f'--workdir={work}', '--tta', '--format=json', str(photo), **cache)
    expected = tlflax.load(work).predict([photo], tta=True)[0]
    assert json.loads(done.stdout)['probability'] == pytest.approx(expected.probability, abs=1e-5)

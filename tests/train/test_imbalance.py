"""Whole runs on imbalanced images: every path weighs and draws alike, and monitors see it."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from helpers import Stops, make_folders, small_config

import tlflax
from tlflax.data.augment import sampling
from tlflax.data.splits.load import load_splits
from tlflax.features import sources
from tlflax.sweep import run
from tlflax.train import loop, setup, train_and_evaluate
from tlflax.utils import trees

TIMES = {'epoch_seconds', 'images_per_second'}
EVERYTHING = {
    'train__balanced_sampling': True,
    'train__label_smoothing': 0.1,
    'loss__name': 'focal',
    'loss__class_weights': 'effective',
    'loss__logit_adjustment': 0.5,
}


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """12 green, 6 red and 2 yellow images to train with."""
    root = tmp_path_factory.mktemp('images')
    make_folders(root / 'Train', 12, seed=1)
    make_folders(root / 'Test', 3, seed=2)
    for name, kept in (('red', 6), ('yellow', 2)):
        for photo in sorted((root / 'Train' / name).iterdir())[kept:]:
            photo.unlink()
    return root


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('TLFLAX_CACHE', str(tmp_path / 'cache'))


def records(workdir):
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def params_of(workdir):
    return trees.flatten(jax.device_get(tlflax.load(workdir, 'last').trainable.params))


def assert_same_run(workdir, other, tolerance):
    for mine, theirs in zip(records(workdir), records(other), strict=True):
        assert mine == pytest.approx(theirs, abs=tolerance)
    theirs = params_of(other)
    for path, value in params_of(workdir).items():
        np.testing.assert_allclose(value, theirs[path], atol=tolerance, err_msg=path)


def with_weights(monkeypatch, weight_of):
    """Gives the training images the weights that a manifest would."""
    real = setup.load_splits

    def load(data):
        splits = real(data)
        weights = np.array([weight_of(path) for path in splits.train.paths], np.float32)
        return dataclasses.replace(splits, train=dataclasses.replace(splits.train, weights=weights))

    monkeypatch.setattr(setup, 'load_splits', load)


def test_live_on_device_and_streamed_training_are_one(folders, tmp_path, monkeypatch):
    """With weights of examples and classes, and everything else."""
    with_weights(monkeypatch, lambda path: 0.25 + int(path[-5]) % 3)
    config = small_config(folders, train__epochs=2, **EVERYTHING)
    config.optim.name, config.optim.learning_rate = 'sgd', 1e-3
    train_and_evaluate(config, tmp_path / 'on_device')
    config.features.cache = 'False'
    train_and_evaluate(config, tmp_path / 'live')
    config.features.cache = 'auto'
    with monkeypatch.context() as patch:
        patch.setattr(sources, 'on_device_limit', lambda: 0)
        train_and_evaluate(config, tmp_path / 'streamed')
    assert_same_run(tmp_path / 'streamed', tmp_path / 'on_device', 1e-5)
    assert_same_run(tmp_path / 'live', tmp_path / 'on_device', 1e-5)


def test_example_weights_are_class_weights_where_classes_share_them(folders, tmp_path, monkeypatch):
    by_class = {'green': 0.5, 'red': 1.0, 'yellow': 4.0}
    config = small_config(folders, optim__name='sgd', optim__learning_rate=1e-3)
    config.loss.class_weights = 'explicit'
    config.loss.weights_by_class = tuple(by_class.items())
    train_and_evaluate(config, tmp_path / 'by_class')
    with_weights(monkeypatch, lambda path: by_class[path.split('/')[-2]])
    config.loss.class_weights, config.loss.weights_by_class = 'none', ()
    train_and_evaluate(config, tmp_path / 'by_example')
    assert_same_run(tmp_path / 'by_example', tmp_path / 'by_class', 1e-6)


def test_sweeps_know_example_weights(folders, tmp_path, monkeypatch):
    with_weights(monkeypatch, lambda path: 0.25 + int(path[-5]) % 3)
    config = small_config(folders, train__epochs=2, optim__learning_rate=1e-4)
    sweep = run.prepare_sweep(setup.configure(config), [{}, {'loss.logit_adjustment': 1.0}])
    assert sorted(sweep.train()) == [0, 1]
    train_and_evaluate(config, tmp_path / 'alone')
    for mine, theirs in zip(sweep.members[0].records, records(tmp_path / 'alone'), strict=True):
        assert {k: v for k, v in mine.items() if k not in TIMES} == pytest.approx(theirs, abs=1e-5)


def test_fine_tuning_weighs_too(folders, tmp_path):
    """With weight on one class alone, the network learns to say nothing else."""
    config = small_config(folders, train__epochs=3, loss__class_weights='explicit')
    config.loss.weights_by_class = (('red', 0.0), ('green', 0.0))
    config.optim.labels = (('backbone/block[12].*', 'frozen'), ('.*', 'all'))
    result = train_and_evaluate(config, tmp_path / 'w')
    assert result['val']['per_class']['yellow']['recall'] == 1
    assert result['val']['balanced_accuracy'] == pytest.approx(1 / 3)


@pytest.mark.parametrize(('cache', 'answers'), [('False', 4), ('auto', 2)])
def test_balanced_run_goes_on_exactly(folders, tmp_path, monkeypatch, cache, answers):
    config = small_config(folders, features__cache=cache, **EVERYTHING)
    train_and_evaluate(config, tmp_path / 'whole')
    stops = iter([False] * answers + [True] + [False] * 1000)
    monkeypatch.setattr(loop.interrupts, 'deferred', lambda announce: Stops(stops))
    with pytest.raises(loop.Interrupted):
        train_and_evaluate(config, tmp_path / 'parts')
    train_and_evaluate(config, tmp_path / 'parts')
    assert_same_run(tmp_path / 'parts', tmp_path / 'whole', 0)


def test_only_what_balanced_epochs_draw_is_computed(folders, tmp_path, caplog):
    caplog.set_level('INFO')
    config = small_config(folders, train__epochs=1, train__balanced_sampling=True)
    config.augment.horizontal_flip = False
    train_and_evaluate(config, tmp_path / 'w')
    labels = load_splits(setup.configure(config).data).train.labels
    drawn = np.unique(sampling.epoch_order(0, 0, labels, balanced=True))
    assert len(drawn) < 20
    assert f'computing features of {len(drawn)} of {len(drawn)} views of 20' in caplog.text


def test_evaluation_is_plain_cross_entropy(folders, tmp_path):
    result = train_and_evaluate(
        small_config(folders, train__epochs=1, **EVERYTHING), tmp_path / 'w'
    )
    restored = tlflax.load(tmp_path / 'w')
    photos = sorted((folders / 'Test').glob('*/*.jpg'))
    right = [p.probabilities[p.path.split('/')[-2]] for p in restored.predict(photos)]
    assert result['val']['loss'] == pytest.approx(-np.log(right).mean(), rel=1e-4)
    assert result['best_val_loss'] == pytest.approx(result['val']['loss'], rel=1e-5)


@pytest.mark.parametrize(
    ('monitor', 'name'),
    [
        ('val_balanced_accuracy', 'balanced_accuracy'),
        ('val_macro_f1', 'macro_f1'),
        ('val_worst_recall', 'worst_recall'),
    ],
)
def test_monitors_of_imbalance(folders, tmp_path, monitor, name):
    config = small_config(folders, train__epochs=30, early_stopping__monitor=monitor)
    config.early_stopping.min_delta = 0.0
    result = train_and_evaluate(config, tmp_path / 'w')
    values = [record[monitor] for record in records(tmp_path / 'w')]
    assert result['stopped_early']
    assert result['best_epoch'] == values.index(max(values)) + 1
    assert result['val'][name] == pytest.approx(max(values), abs=1e-9)


def test_weights_are_shown_and_making_up_twice_is_said(folders, tmp_path, caplog):
    caplog.set_level('INFO')
    config = small_config(folders, train__epochs=1, train__balanced_sampling=True)
    config.loss.class_weights = 'balanced'
    train_and_evaluate(config, tmp_path / 'w')
    assert "class weights: 'yellow' 3.333, 'red' 1.111, 'green' 0.5556" in caplog.text
    assert 'loss.class_weights and train.balanced_sampling' in caplog.text

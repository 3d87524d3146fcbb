"""Phases of a training: what each trains, where it goes on; interruptions leave no mark."""

import json
import re

import jax
import numpy as np
import pytest
from helpers import Stops, make_folders, small_config
from PIL import Image

import tlflax
from tlflax.config.phases import expand
from tlflax.probe import run as probing
from tlflax.train import loop, setup, train_and_evaluate
from tlflax.utils import trees
from tlflax.utils.errors import UserError
from tlflax.workdir.checkpoints import Checkpoints
from tlflax.workdir.files import Workdir

HEAD = (('backbone/.*', 'frozen'), ('head/.*', 'head'))
BLOCK3 = (('backbone/block3.*', 'tail'), *HEAD)
BLOCK2 = (('backbone/block[23].*', 'tail'), *HEAD)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    make_folders(root / 'Train', 10)
    make_folders(root / 'Test', 5, seed=1)
    return root


def phased(folders, *phases, **changes):
    config = small_config(folders, train__phases=phases, optim__learning_rate=1e-4, **changes)
    config.model.dropout = 0.25
    return config


PHASES = (
    {'optim.labels': HEAD, 'train.epochs': 2, 'optim.learning_rate': 1e-2},
    {'optim.labels': BLOCK3, 'train.epochs': 2},
    {'optim.labels': BLOCK2, 'train.epochs': 2, 'optim.schedule': 'cosine'},
)


def records(workdir):
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    timed = ('epoch_seconds', 'images_per_second')
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def params(workdir, step=None):
    restored = tlflax.load(workdir, step)
    return trees.flatten(jax.device_get(restored.params))


@pytest.fixture(scope='module')
def finished(folders, tmp_path_factory):
    """Gradual unfreezing; the last epoch counts."""
    workdir = tmp_path_factory.mktemp('run') / 'w'
    config = phased(folders, *PHASES, early_stopping__restore_best=False)
    return workdir, config, train_and_evaluate(config, workdir)


def test_each_phase_trains_what_it_says(finished):
    workdir, _, result = finished
    assert [line['phase'] for line in records(workdir)] == [1, 1, 2, 2, 3, 3]
    assert [line['epoch'] for line in records(workdir)] == [1, 2, 3, 4, 5, 6]
    rates = [line['learning_rate'] for line in records(workdir)]
    assert rates[:4] == pytest.approx([1e-2, 1e-2, 1e-4, 1e-4])
    assert rates[4:] == pytest.approx([5e-5, 0], abs=1e-9)
    restored = tlflax.load(workdir)
    assert restored.classifier.cut == 'block1_pool'
    assert restored.step == result['step'] == 6 * 4
    backbone = restored.trainable.params['backbone']
    assert {name[:6] for name in backbone} == {'block2', 'block3'}
    found = restored.evaluate()
    assert found['loss'] == pytest.approx(result['val']['loss'], abs=1e-6)
    assert found['loss'] == pytest.approx(records(workdir)[-1]['val_loss'], abs=1e-6)


def test_a_fine_tuned_run_is_used_like_any_other(finished, folders):
    workdir, _, _ = finished
    restored = tlflax.load(workdir)
    paths = sorted(map(str, (folders / 'Test').rglob('*.jpg')))[:6]
    images = np.stack([np.asarray(Image.open(path).resize((32, 32))) for path in paths])
    logits = np.asarray(restored.logits(restored.params, images), np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for found in (restored.predict(images), restored.predict(list(images), keep_features=True)):
        ours = [list(one.probabilities.values()) for one in found]
        np.testing.assert_allclose(ours, expected, atol=1e-5)
    mirrored = np.asarray(restored.logits(restored.params, images[:, :, ::-1]), np.float64)
    mirrored = np.exp(mirrored) / np.exp(mirrored).sum(1, keepdims=True)
    views = [list(one.probabilities.values()) for one in restored.predict(images, tta=True)]
    np.testing.assert_allclose(views, (expected + mirrored) / 2, atol=1e-5)
    assert restored.evaluate(tta=True)['num_examples'] == 15
    work = Workdir(workdir.parent / 'probe')
    probe = probing.run(setup.configure(phased(folders, *PHASES)), work)
    assert tlflax.load(workdir.parent / 'probe').classifier.cut == 'block3_pool'
    assert probe['val']['num_examples'] == 15


def test_a_checkpoint_of_any_phase_restores(folders, tmp_path):
    config = phased(folders, *PHASES[:2], early_stopping__monitor='val_loss')
    config.train.phases[1]['optim.learning_rate'] = 3.0  # makes everything worse
    config.train.phases[1]['optim.name'] = 'sgd'
    config.train.phases[1]['optim.clip_norm'] = 1e-3
    result = train_and_evaluate(config, tmp_path / 'w')
    best = tlflax.load(tmp_path / 'w')
    assert result['best_epoch'] <= 2
    assert best.classifier.cut == 'block3_pool'
    assert set(best.trainable.params) == {'head'}
    assert best.evaluate()['loss'] == pytest.approx(result['best_val_loss'], abs=1e-6)
    last = tlflax.load(tmp_path / 'w', 'last')
    assert last.classifier.cut == 'block2_pool'
    losses = [line['val_loss'] for line in records(tmp_path / 'w')]
    assert last.evaluate()['loss'] == pytest.approx(losses[-1], abs=1e-6)
    assert min(losses) == result['best_val_loss']


@pytest.mark.parametrize(
    ('monitor', 'answers'), [('val_loss', 1), ('val_loss', 2), ('val_loss', 4), ('', 3), ('', 5)]
)
def test_interrupted_anywhere_it_ends_the_same(
    folders, tmp_path, monkeypatch, tmp_path_factory, monitor, answers
):
    """Asked before each scan, which is an epoch here, and after each phase."""
    config = phased(folders, *PHASES, early_stopping__monitor=monitor)
    whole = tmp_path_factory.getbasetemp() / f'whole{monitor}'
    if not (whole / 'result.json').exists():
        train_and_evaluate(config, whole)
    stops = iter([False] * answers + [True] + [False] * 1000)
    monkeypatch.setattr(loop.interrupts, 'deferred', lambda announce: Stops(stops))
    with pytest.raises(loop.Interrupted):
        train_and_evaluate(config, tmp_path / 'w')
    train_and_evaluate(config, tmp_path / 'w')
    assert records(tmp_path / 'w') == records(whole)
    for step in (None, 'last'):
        jax.tree.map(
            np.testing.assert_array_equal, params(tmp_path / 'w', step), params(whole, step)
        )


def test_what_is_frozen_again_keeps_what_it_learned(folders, tmp_path, caplog):
    """Its features are of the trained weights, in a space of their own."""
    caplog.set_level('INFO')
    phases = (
        {'optim.labels': BLOCK3, 'train.epochs': 2, 'optim.learning_rate': 3e-3},
        {'optim.labels': HEAD, 'train.epochs': 2},
    )
    config = phased(folders, *phases, early_stopping__restore_best=False)
    result = train_and_evaluate(config, tmp_path / 'w')
    restored = tlflax.load(tmp_path / 'w')
    assert restored.classifier.cut == 'block3_pool'
    first = setup.first_variables(
        setup.configure(config), setup.load(setup.configure(config))
    ).params
    kept = trees.flatten(restored.frozen.params)
    moved = {p for p, leaf in kept.items() if np.any(leaf != trees.flatten(first)[p])}
    assert {p.split('/')[1][:6] for p in moved} == {'block3'}
    assert restored.evaluate()['loss'] == pytest.approx(result['val']['loss'], abs=1e-6)
    live = phased(folders, *phases, early_stopping__restore_best=False, features__cache='False')
    other = train_and_evaluate(live, tmp_path / 'live')
    assert other['val']['loss'] == pytest.approx(result['val']['loss'], rel=1e-4)
    with Checkpoints(tmp_path / 'w' / 'checkpoints', read_only=True) as saved:
        folder = tmp_path / 'w' / 'checkpoints' / str(saved.find('last'))
        assert (folder / 'frozen').is_dir()


def test_the_next_phase_begins_with_the_best_epoch(folders, tmp_path):
    """With a rate of zero it stays where it was."""
    config = phased(
        folders,
        {'optim.labels': HEAD, 'train.epochs': 5, 'optim.learning_rate': 0.5},
        {'optim.labels': BLOCK3, 'train.epochs': 1, 'optim.learning_rate': 0.0},
        early_stopping__monitor='val_loss',
        early_stopping__patience=9,
    )
    train_and_evaluate(config, tmp_path / 'w')
    losses = [line['val_loss'] for line in records(tmp_path / 'w')]
    best = int(np.argmin(losses[:5]))
    assert best < 4, 'the first phase should get worse in the end'
    assert losses[5] == pytest.approx(losses[best], rel=1e-5)


def test_each_phase_has_its_own_stopping_rule(folders, tmp_path):
    config = phased(
        folders,
        {'train.epochs': 9, 'optim.learning_rate': 0.0, 'early_stopping.patience': 2},
        {'train.epochs': 9, 'optim.learning_rate': 0.0, 'early_stopping.patience': 1},
        early_stopping__monitor='val_loss',
    )
    result = train_and_evaluate(config, tmp_path / 'w')
    assert [line['phase'] for line in records(tmp_path / 'w')] == [1, 1, 1, 2, 2]
    assert result['best_epoch'] == 1
    assert result['stopped_early']


@pytest.mark.parametrize(
    ('phase', 'message'),
    [
        ({'model.head': 'mlp'}, r"phases\[1\].*a phase cannot change 'model.head'"),
        ({'optim.lables': ()}, r"cannot change 'optim.lables'; did you mean 'optim.labels'"),
        ({'train.epochs': 'x'}, r"phases\[1\]: config.train.epochs: 'x' is a str"),
        ({'optim.labels': (('block9.*', 'a'),)}, r'phases\[1\]: config.optim.labels.*block9'),
        ({'optim.learning_rates': (('a', 1.0),)}, r"phases\[1\].*no trainable parameter.*'a'"),
        ('optim.labels', r"'optim.labels' is not a phase"),
    ],
)
def test_a_wrong_phase_is_one_sentence_before_training(folders, tmp_path, phase, message):
    config = phased(folders, PHASES[0], phase)
    with pytest.raises(UserError) as caught:
        train_and_evaluate(config, tmp_path / 'w')
    assert re.search(message, str(caught.value)), caught.value
    assert not (tmp_path / 'w' / 'metrics.jsonl').exists()


def test_phases_are_the_same_from_json(folders):
    config = setup.configure(phased(folders, *PHASES))
    again = setup.configure(json.loads(json.dumps(tlflax.config.parse.to_dict(config))))
    assert repr(again) == repr(config)  # it has a NaN
    assert [one.optim.labels for one in expand(again)] == [HEAD, BLOCK3, BLOCK2]
    assert {one.train.phases for one in expand(again)} == {()}

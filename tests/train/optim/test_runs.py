"""Whole runs that fine-tune a backbone with BatchNorm: resumed, evaluated, swept, and old ones."""

import json
import shutil

import jax
import numpy as np
import pytest
from helpers import TESTS, Stops, make_folders, small_config

import tlflax
from tlflax.config.config_file import read
from tlflax.models.backbones import find
from tlflax.sweep import run as sweeping
from tlflax.train import loop, setup
from tlflax.train.run import train_and_evaluate
from tlflax.utils.errors import UserError
from tlflax.utils.files import write_json
from tlflax.utils.trees import flatten, merge
from tlflax.workdir.checkpoints import Checkpoints

TAIL = (('backbone/block3.*', 'tail'), ('.*/block[12].*', 'frozen'), ('head/.*', 'head'))
TIMES = {'epoch_seconds', 'images_per_second'}
ALL = {
    'optim__name': 'adamw',
    'optim__learning_rate': 3e-3,
    'optim__weight_decay': 0.01,
    'optim__layer_decay': 0.5,
    'optim__l2_sp': 0.01,
    'optim__accumulate_steps': 2,
    'optim__ema_decay': 0.7,
    'optim__sam_rho': 0.05,
    'optim__statistics': 'updated',
}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tuned')
    make_folders(folder / 'Train', 7)
    make_folders(folder / 'Test', 3, seed=1)
    shutil.copy(TESTS / 'toy_backbone.py', folder / 'toy.py')
    return folder


def toy_config(root, **changes):
    own = {
        'model__backbone': f'py:{root}/toy.py:toy',
        'features__layer': 'auto',
        'optim__labels': TAIL,
        'train__epochs': 3,
    }
    return small_config(root, **own | changes)


def records(workdir):
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def stop_after(monkeypatch, answers):
    stops = iter([False] * answers + [True] + [False] * 1000)
    monkeypatch.setattr(loop.interrupts, 'deferred', lambda announce: Stops(stops))
    monkeypatch.setattr('tlflax.train.epoch.SCAN', 1)


def interrupted(config, workdir, monkeypatch, answers=4):
    with monkeypatch.context() as patch:
        stop_after(patch, answers)
        with pytest.raises(loop.Interrupted):
            train_and_evaluate(config, workdir)


@pytest.mark.parametrize(
    ('cache', 'schedule'), [('auto', 'plateau'), ('False', 'onecycle')], ids=['cached', 'live']
)
def test_all_of_it_resumes_bit_for_bit_and_is_evaluated_as_recorded(
    root, tmp_path, monkeypatch, cache, schedule
):
    changes = {'features__cache': cache, 'optim__schedule': schedule}
    config = toy_config(root, **ALL, **changes, optim__plateau_patience=1)
    with monkeypatch.context() as patch:
        patch.setattr('tlflax.train.epoch.SCAN', 1)
        result = train_and_evaluate(config, tmp_path / 'whole')
    # After four of nine steps: two updates of two batches each, in the second epoch.
    interrupted(config, tmp_path / 'parts', monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr('tlflax.train.epoch.SCAN', 1)
        train_and_evaluate(config, tmp_path / 'parts')
    assert records(tmp_path / 'parts') == records(tmp_path / 'whole')
    restored = [tlflax.load(tmp_path / name, 'last') for name in ('whole', 'parts')]
    trained = [jax.device_get(one.trainable) for one in restored]
    jax.tree.map(np.testing.assert_array_equal, *trained)
    best = tlflax.load(tmp_path / 'whole')
    assert best.evaluate()['loss'] == pytest.approx(result['val']['loss'], abs=1e-6)
    last = records(tmp_path / 'whole')[-1]
    assert restored[0].evaluate()['loss'] == pytest.approx(last['val_loss'], abs=1e-6)
    assert np.any(best.trainable.state['backbone']['block3']['norm']['mean'] != 0)


def test_the_average_is_saved_beside_what_it_is_of(root, tmp_path):
    train_and_evaluate(toy_config(root, optim__ema_decay=0.9), tmp_path / 'w')
    classifier = tlflax.load(tmp_path / 'w', 'last')
    with Checkpoints(tmp_path / 'w' / 'checkpoints', read_only=True) as saved:
        saved_params = saved._variables(classifier.step, classifier.trainable, ('params', 'state'))
    assert any(
        np.any(leaf != flatten(saved_params.params)[path])
        for path, leaf in flatten(classifier.trainable.params).items()
    )
    folder = tmp_path / 'w' / 'checkpoints' / str(classifier.step)
    assert (folder / 'ema').is_dir()
    shutil.rmtree(folder / 'ema')
    with pytest.raises(UserError):
        tlflax.load(tmp_path / 'w', 'last')


def test_frozen_statistics_stand_still_under_trained_parameters(root, tmp_path):
    config = toy_config(root, optim__labels=(('.*', 'all'),), train__epochs=1)
    result = train_and_evaluate(config, tmp_path)
    restored = tlflax.load(tmp_path)
    assert restored.trainable.state == {}
    assert restored.frozen.params == {}
    state = flatten(restored.frozen.state)
    assert len(state) == 6
    assert all(np.all(leaf == path.endswith('var')) for path, leaf in state.items())
    assert restored.evaluate()['loss'] == pytest.approx(result['val']['loss'], abs=1e-6)


def released(workdir, *keys):
    """Removes keys from the saved configurations of a workdir, as a released version wrote them."""
    path = workdir / 'config.json'
    saved = json.loads(path.read_text())
    for key in keys:
        del saved['optim'][key]
    write_json(path, saved)


@pytest.fixture
def old_metadata(monkeypatch):
    """Checkpoints are saved without the keys that released versions did not have."""
    real = Checkpoints.save

    def save(self, step, *, meta, **rest):
        optim = {k: v for k, v in meta['config']['optim'].items() if k not in NEW}
        config = {**meta['config'], 'optim': optim}
        real(self, step, meta={**meta, 'config': config}, **rest)

    monkeypatch.setattr(Checkpoints, 'save', save)


NEW = ('decayed', 'statistics')


def test_a_run_of_a_released_version_goes_on_by_its_rules(
    root, tmp_path, monkeypatch, old_metadata
):
    """Everything is decayed and statistics move, before and after, with today's command."""
    changes = {'optim__name': 'adamw', 'optim__weight_decay': 0.5}
    then = toy_config(
        root, **changes, optim__decayed=('.*',), optim__statistics='updated', train__epochs=2
    )
    now = toy_config(root, **changes, train__epochs=2)
    with monkeypatch.context() as patch:
        patch.setattr('tlflax.train.epoch.SCAN', 1)
        train_and_evaluate(then, tmp_path / 'whole')
        train_and_evaluate(now, tmp_path / 'today')
    interrupted(then, tmp_path / 'parts', monkeypatch)
    released(tmp_path / 'parts', *NEW)
    assert read(str(tmp_path / 'parts' / 'config.json')).optim.statistics == 'updated'
    other = toy_config(root, **changes, train__epochs=2, optim__decayed=('head/.*',))
    with pytest.raises(UserError, match=r"optim\.decayed was \['\.\*'\] and is \['head/\.\*'\]"):
        train_and_evaluate(other, tmp_path / 'parts')
    with monkeypatch.context() as patch:
        patch.setattr('tlflax.train.epoch.SCAN', 1)
        train_and_evaluate(now, tmp_path / 'parts')
    assert records(tmp_path / 'parts') == records(tmp_path / 'whole') != records(tmp_path / 'today')
    restored = tlflax.load(tmp_path / 'parts')
    assert set(restored.trainable.state['backbone']) == {'block3'}
    assert restored.config.optim.decayed == ('.*',)


@pytest.mark.parametrize(('mapped', 'statistics'), [(False, 'updated'), (True, 'frozen')])
def test_members_of_a_sweep_equal_solo_runs(root, tmp_path, monkeypatch, mapped, statistics):
    """One call for each member, or, as on accelerators, one mapped over all."""
    if mapped:
        monkeypatch.setattr('tlflax.sweep.per_member.one_by_one', lambda mesh: False)
    changes = {**ALL, 'optim__schedule': 'cosine', 'optim__statistics': statistics}
    settings = [
        {'optim.learning_rate': 1e-3, 'optim.l2_sp': 0.5},
        {'optim.weight_decay': 0.3},
    ]
    np.savez(root / 'toy.npz', **_weights(root))
    config = toy_config(root, **changes, weights__source=str(root / 'toy.npz'))
    sweep = sweeping.prepare_sweep(setup.configure(config), settings)
    assert sorted(sweep.train()) == [0, 1]
    programs = {sweeping._structure(member.run.config) for member in sweep.members}
    assert len(programs) == 1
    for number, member in enumerate(sweep.members):
        folder = tmp_path / str(number)
        alone = toy_config(root, **changes, weights__source=str(root / 'toy.npz'))
        for key, value in settings[number].items():
            alone.optim[key.removeprefix('optim.')] = value
        train_and_evaluate(alone, folder)
        for ours, theirs in zip(member.records, records(folder), strict=True):
            for key, value in theirs.items():
                assert ours[key] == pytest.approx(value, rel=1e-5, abs=1e-5), key
        theirs = flatten(jax.device_get(tlflax.load(folder, 'last').trainable))
        for path, leaf in flatten(member.saved[-1][0].evaluated).items():
            np.testing.assert_allclose(leaf, theirs[path], atol=1e-5, err_msg=path)


def _weights(root):
    toy = find(f'py:{root}/toy.py:toy')
    return flatten(merge(*jax.device_get(toy.init(jax.random.key(5), toy.layer))))


def test_a_plateau_is_not_swept(root):
    config = setup.configure(toy_config(root, optim__schedule='plateau'))
    with pytest.raises(UserError, match='share their counters'):
        sweeping.prepare_sweep(config, [{'optim.learning_rate': 1e-3}])


@pytest.mark.parametrize('changes', [{'optim__l2_sp': 0.1}, {'optim__layer_decay': 0.5}])
def test_what_is_for_the_backbone_needs_one_that_is_trained(root, tmp_path, changes):
    frozen = (('backbone/.*', 'frozen'), ('.*', 'head'))
    config = toy_config(root, **changes, optim__labels=frozen)
    (key,) = changes
    with pytest.raises(UserError, match='all are frozen') as error:
        train_and_evaluate(config, tmp_path / 'w')
    assert error.value.where == f'config.{key.replace("__", ".")}'


def test_more_batches_than_there_are_make_no_update(root, tmp_path):
    config = toy_config(root, optim__accumulate_steps=10)
    with pytest.raises(UserError, match='never'):
        train_and_evaluate(config, tmp_path / 'w')

"""Sweeps: every member equals its solo run, stops by itself, and the best is a normal workdir."""

import csv
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import TESTS, make_folders, run_module, small_config

import tlflax
from tlflax.models.vgg import network
from tlflax.sweep import ranking as rankings
from tlflax.sweep import run as sweeping
from tlflax.sweep.settings import grid, read_settings, resolve_settings
from tlflax.train import setup
from tlflax.train.run import train as train_alone
from tlflax.utils import trees
from tlflax.utils.errors import UserError
from tlflax.workdir.files import Workdir

TIMES = {'epoch_seconds', 'images_per_second', 'wall_seconds', 'peak_memory_bytes'}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """Images, and a backbone in a file: with a random one the seed would decide the features."""
    root = tmp_path_factory.mktemp('images')
    make_folders(root / 'Train', 7, seed=1, noise=90.0)
    for rare in range(4, 7):
        (root / 'Train' / 'yellow' / f'{rare:03}.jpg').unlink()
    make_folders(root / 'Test', 4, seed=2, noise=90.0)
    params = trees.flatten(jax.device_get(network.init(jax.random.key(3))))
    # Features of order one, as ordinary training has: a head on huge ones amplifies rounding.
    params['block3_conv3/kernel'] = 0.02 * params['block3_conv3/kernel']
    np.savez(root / 'backbone.npz', **params)
    return root


@pytest.fixture
def config(root):
    return _config(root)


def _config(root):
    return small_config(
        root,
        weights__source=str(root / 'backbone.npz'),
        weights__preprocess='caffe',
        model__head='conv',
        model__units=8,
    )


def without_times(records):
    return [{k: v for k, v in record.items() if k not in TIMES} for record in records]


def assert_equals_solo_run(member, folder):
    """Trains the member's configuration alone and compares every record and the parameters."""
    result = train_alone(member.run.config, Workdir(folder))
    lines = (folder / 'metrics.jsonl').read_text().splitlines()
    alone, ours = without_times(map(json.loads, lines)), without_times(member.records)
    assert len(ours) == len(alone) == result['epochs_run']
    for mine, theirs in zip(ours, alone, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            assert mine[name] == pytest.approx(value, abs=1e-5, rel=1e-5), name
    assert member.position.stopping.stopped == result['stopped_early']
    assert member.records[member.position.stopping.best_epoch]['epoch'] == result['best_epoch']
    for which, (state, position) in (('best', member.saved[0]), ('last', member.saved[-1])):
        restored = tlflax.load(folder, which)
        assert restored.step == int(state.step) == position.epoch * member.run.steps_per_epoch
        theirs = trees.flatten(jax.device_get(restored.trainable.params))
        for path, value in trees.flatten(state.params).items():
            np.testing.assert_allclose(value, theirs[path], rtol=0, atol=1e-5, err_msg=path)


BLOCK3 = (('backbone/block3.*', 'tail'), ('backbone/.*', 'frozen'), ('head/.*', 'head'))
EQUAL = {
    'rates_and_smoothing': (
        {'optim__schedule': 'cosine', 'optim__warmup_epochs': 0.5},
        [
            {'optim.learning_rate': 1e-3, 'train.label_smoothing': 0.1},
            {'optim.learning_rate': 1e-4},
        ],
    ),
    'seeds_and_decay': (
        {'optim__name': 'adamw', 'optim__clip_norm': 0.5, 'optim__learning_rate': 1e-4},
        [
            {'train.seed': 5, 'optim.weight_decay': 0.1},
            {'train.seed': 6, 'optim.learning_rates': (('head', 3e-4),)},
            {'train.seed': 6, 'optim.learning_rates': (('head', 1e-4),)},
        ],
    ),
    'heads': (
        {'model__dropout': 0.0},
        [
            {'model.head': 'mlp', 'optim.name': 'sgd', 'optim.learning_rate': 1e-5},
            {'model.head': 'gap_linear', 'optim.learning_rate': 1e-2},
        ],
    ),
    'frozen_part_of_the_head': (
        {'optim__labels': (('backbone/.*|head/conv1/.*', 'frozen'), ('.*', 'head'))},
        [{'train.seed': 1}, {'train.seed': 2}],
    ),
    'fine_tuning_from_several_cuts': (
        {'model__head': 'gap_linear', 'optim__learning_rate': 1e-4},
        [
            {'optim.labels': BLOCK3},
            {'optim.labels': BLOCK3, 'optim.learning_rate': 1e-3, 'train.seed': 3},
            {'optim.labels': (('backbone/block[23].*', 'tail'), *BLOCK3[1:])},
        ],
    ),
    'losses': (
        {'early_stopping__monitor': 'val_balanced_accuracy', 'early_stopping__patience': 1},
        [
            {'loss.name': 'focal', 'loss.gamma': 1.0, 'loss.class_weights': 'balanced'},
            {
                'loss.name': 'focal',
                'loss.gamma': 3.0,
                'loss.class_weights': 'explicit',
                'loss.weights_by_class': (('red', 0.1), ('yellow', 3.0)),
            },
            {'loss.logit_adjustment': 1.0},
            {'loss.logit_adjustment': 2.0, 'train.label_smoothing': 0.1, 'train.seed': 3},
        ],
    ),
    'steps_of_early_stopping': (
        {
            'early_stopping__monitor': 'val_loss',
            'early_stopping__patience': 0,
            'early_stopping__patience_steps': 3,
            'early_stopping__min_steps': 6,
            'train__batch_size': 0,
            'optim__schedule': 'cosine',
        },
        [{'optim.learning_rate': 3e-3}, {'optim.learning_rate': 1e-4, 'train.seed': 3}],
    ),
    'balanced_sampling': (
        {'train__balanced_sampling': True, 'early_stopping__monitor': 'val_macro_f1'},
        [{'train.seed': 1}, {'train.seed': 2, 'loss.class_weights': 'effective'}],
    ),
    'sampled_views': (
        {'augment__rotation_range': 20.0, 'features__cache': 'True', 'features__views': 2},
        [{'train.seed': 3}, {'train.seed': 4}],
    ),
}


@pytest.mark.parametrize('case', EQUAL)
def test_each_result_equals_its_solo_run(config, tmp_path, case):
    changes, settings = EQUAL[case]
    for key, value in changes.items():
        section, name = key.split('__')
        config[section][name] = value
    sweep = sweeping.prepare_sweep(setup.configure(config), settings)
    assert sorted(sweep.train()) == list(range(len(settings)))
    for number, member in enumerate(sweep.members):
        assert_equals_solo_run(member, tmp_path / str(number))
    first, second = (trees.flatten(m.saved[-1][0].params) for m in sweep.members[:2])
    assert any(
        value.shape != second[path].shape or np.any(value != second[path])
        for path, value in first.items()
        if path in second
    )


def test_settings_of_one_loss_share_a_program(config):
    settings = EQUAL['losses'][1]
    structures = [
        sweeping._structure(one)
        for one in resolve_settings(setup.configure(config), settings, 'here')
    ]
    assert structures[0] == structures[1] != structures[2] == structures[3]


def test_making_up_twice_is_said_once(config, caplog):
    config.train.balanced_sampling = True
    settings = grid(**{'loss.class_weights': ['none', 'balanced', 'effective']})
    sweeping.prepare_sweep(setup.configure(config), settings)
    said = [record for record in caplog.records if 'rare classes count twice' in record.message]
    assert len(said) == 1


def test_members_stop_by_themselves_and_leave_their_replicas(config, tmp_path):
    """Two that learn nothing stop early, and the others go on in a smaller program."""
    config.train.epochs, config.early_stopping.patience = 9, 2
    config.early_stopping.monitor, config.early_stopping.min_delta = 'val_loss', 1e-3
    settings = grid(**{'optim.learning_rate': [1e-9, 3e-4, 1e-10, 1e-3], 'train.seed': [0]})
    sweep = sweeping.prepare_sweep(setup.configure(config), settings)
    order = list(sweep.train())
    assert set(order[:2]) == {0, 2}
    epochs = [len(member.records) for member in sweep.members]
    assert epochs[0] == epochs[2] == 3 < min(epochs[1], epochs[3])
    for number in (0, 1, 3):
        assert_equals_solo_run(sweep.members[number], tmp_path / str(number))


@pytest.fixture(scope='module')
def finished(root, tmp_path_factory):
    """A sweep's workdir and ranking; one of its settings diverges."""
    config = _config(root)
    settings = [
        {'optim.name': 'sgd', 'optim.learning_rate': 1e38},
        {'optim.name': 'sgd', 'optim.learning_rate': 1e-9},
        {'optim.learning_rate': 1e-3},
    ]
    workdir = tmp_path_factory.mktemp('sweeps') / 'w'
    return workdir, sweeping.run(setup.configure(config), settings, Workdir(workdir))


def test_diverging_setting_is_reported_and_stops_no_other(finished):
    _, ranking = finished
    assert [row['number'] for row in ranking] == [3, 2, 1]
    assert ranking[2]['status'] == 'diverged in epoch 1'
    assert ranking[1]['status'] == ranking[0]['status'] == 'finished after epoch 4'
    assert [row['rank'] for row in ranking] == [1, 2, 3]


def test_ranking_is_written_as_csv_and_json(finished):
    workdir, ranking = finished
    assert json.loads((workdir / 'sweep.json').read_text()) == ranking
    assert [len(row['records']) for row in ranking] == [4, 4, 0]
    with open(workdir / 'sweep.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['number'] for row in rows] == ['3', '2', '1']
    assert rows[0]['optim.learning_rate'] == '0.001'
    assert float(rows[0]['val_loss']) == ranking[0]['val_loss']
    table = rankings.format_table(ranking).splitlines()
    assert len(table) == 4
    assert 'diverged' in table[3]


def test_best_is_a_normal_workdir(finished, config):
    workdir, ranking = finished
    result = json.loads((workdir / 'best' / 'result.json').read_text())
    assert result['best_val_loss'] == ranking[0]['val_loss']
    done = run_module('evaluate', f'--workdir={workdir / "best"}')
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert abs(last['loss'] - result['best_val_loss']) < 1e-5
    saved = json.loads((workdir / 'best' / 'config.json').read_text())
    assert saved['optim']['learning_rate'] == 1e-3
    # Whoever trains this configuration there is told that it is done.
    from tlflax.train import train_and_evaluate

    config.optim.learning_rate = 1e-3
    assert train_and_evaluate(config, workdir / 'best') == result


def test_workdir_in_use_is_refused(finished, config):
    with pytest.raises(UserError, match='--workdir'):
        sweeping.run(setup.configure(config), [{}], Workdir(finished[0]))


def test_interruption_keeps_what_had_finished(config, tmp_path, monkeypatch):
    def interrupted(sweep):
        numbers = real(sweep)
        yield next(numbers)
        raise KeyboardInterrupt

    real = sweeping.Sweep.train
    monkeypatch.setattr(sweeping.Sweep, 'train', interrupted)
    settings = [{'model.head': 'gap_linear'}, {'model.head': 'mlp'}]
    with pytest.raises(KeyboardInterrupt, match='1 of 2 settings had finished'):
        sweeping.run(setup.configure(config), settings, Workdir(tmp_path / 'w'))
    assert len(json.loads((tmp_path / 'w' / 'sweep.json').read_text())) == 1
    assert tlflax.load(tmp_path / 'w' / 'best').config.model.head == 'gap_linear'


def test_all_diverged_is_a_sentence(config, tmp_path):
    config.optim.name = 'sgd'
    settings = grid(**{'optim.learning_rate': [1e38, 2e38]})
    with pytest.raises(UserError, match='all 2 settings diverged'):
        sweeping.run(setup.configure(config), settings, Workdir(tmp_path / 'w'))
    assert (tmp_path / 'w' / 'sweep.csv').exists()
    assert not (tmp_path / 'w' / 'best').exists()


def test_phases_are_refused(config):
    config.train.phases = ({'train.epochs': 1}, {'train.epochs': 2})
    with pytest.raises(UserError, match=r'heads of a sweep are trained in one phase'):
        sweeping.prepare_sweep(setup.configure(config), [{'train.seed': 1}])


BAD = [
    ([{'data.image_size': (64, 64)}], 'cannot be swept'),
    ([{'train.batch_size': 4}], 'cannot be swept'),
    ([{'augment.horizontal_flip': False}], 'setting 1'),
    ([{}, {'optim.learning_rat': 1.0}], 'setting 2'),
    ([{'optim.learning_rate': 'fast'}], 'config.optim.learning_rate'),
    ([{'model.head': 'conf'}], "did you mean 'conv'"),
    ([{'optim.weight_decay': 0.1}], 'adamw'),
    ([{'optim.labels': (('.*', 'all'),)}], 'the backbone is trained'),
]


@pytest.mark.parametrize(('settings', 'hint'), BAD, ids=lambda x: str(x)[:40])
def test_bad_setting_is_one_sentence(config, tmp_path, settings, hint):
    with pytest.raises(UserError, match=hint):
        sweeping.run(setup.configure(config), settings, Workdir(tmp_path / 'w'))


def test_seeds_need_one_backbone(root):
    config = setup.configure(small_config(root))
    with pytest.raises(UserError, match='random backbone'):
        sweeping.prepare_sweep(config, [{'train.seed': 1}])


def test_features_must_be_kept(config):
    config.features.cache = 'False'
    with pytest.raises(UserError, match=r'config\.features\.cache'):
        sweeping.prepare_sweep(setup.configure(config), [{}])


SWEEP_FILES = [
    (None, 'the sweep file does not exist'),
    ('def get_sweep(:', 'SyntaxError'),
    ('settings = []', 'get_sweep'),
    ('def get_sweep():\n    return [1 / 0]', r'division by zero \(.*sweep\.py, line 2\)'),
    ('raise SystemExit(0)', 'SystemExit'),
    ('def get_sweep():\n    return []', 'list of'),
    ('def get_sweep():\n    return {"train.seed": 1}', 'list of'),
]


@pytest.mark.parametrize(('text', 'hint'), SWEEP_FILES)
def test_bad_sweep_file_is_one_sentence(tmp_path, text, hint):
    path = tmp_path / 'sweep.py'
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=hint) as error:
        read_settings(path)
    assert str(path) in str(error.value)


def test_grid_is_every_combination():
    assert grid(**{'train.seed': [0, 1], 'model.units': [4]}) == [
        {'train.seed': 0, 'model.units': 4},
        {'train.seed': 1, 'model.units': 4},
    ]


def _files(root: Path, folder: Path) -> list[str]:
    """Writes a config and a sweep file and returns the flags that name them."""
    (folder / 'config.py').write_text(
        'import sys\n'
        f'sys.path.insert(0, {str(TESTS)!r})\n'
        'from pathlib import Path\n'
        'from helpers import small_config\n'
        'def get_config():\n'
        f'    return small_config(Path({str(root)!r}), model__head="conv", model__units=8)\n'
    )
    (folder / 'sweep.py').write_text(
        'from tlflax.sweep import grid\n'
        'def get_sweep():\n'
        "    return grid(**{'optim.learning_rate': [1e-4, 1e-3, 1e-2]})\n"
    )
    return [f'--config={folder / "config.py"}', f'--sweep={folder / "sweep.py"}']


def test_command_on_one_device_and_on_two(root, tmp_path):
    """Three members on two devices: one replica is a copy that counts for nothing."""
    command = _files(root, tmp_path)
    rows = []
    for devices in (1, 2):
        done = run_module(
            'sweep', *command, f'--workdir={tmp_path / str(devices)}',
            XLA_FLAGS=f'--xla_force_host_platform_device_count={devices}',
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[0].split()[:2] == ['rank', 'optim.learning_rate']
        rows.append(json.loads((tmp_path / str(devices) / 'sweep.json').read_text()))
    one, two = ({row['number']: row['val_loss'] for row in ranking} for ranking in rows)
    assert one == pytest.approx(two, abs=1e-5)


@pytest.mark.parametrize(
    ('arguments', 'hint'),
    [
        ([], '--sweep'),
        (['--config=configs/traffic.py', '--sweep=none.py'], 'the sweep file does not exist'),
    ],
)
def test_bad_command_line_is_one_sentence(arguments, hint):
    done = run_module('sweep', *arguments)
    assert done.returncode == 2
    assert hint in done.stderr
    *usage, sentence = done.stderr.strip().splitlines()
    assert sentence.startswith('error: ')
    assert [line.split(':')[0] for line in usage] == (['usage'] if not arguments else [])


def test_prepared_runs_share_one_backbone(config):
    sweep = sweeping.prepare_sweep(setup.configure(config), [{}, {'train.seed': 1}])
    first, second = (
        m.run.runner.frozen.params['backbone']['block1_conv1']['kernel'] for m in sweep.members
    )
    assert first.unsafe_buffer_pointer() == second.unsafe_buffer_pointer()
    assert sweep.members[0].source.on_device is sweep.members[1].source.on_device
    assert isinstance(sweep.members[0].run, setup.Run)

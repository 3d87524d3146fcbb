"""Few-shot probes: each draw is what scikit-learn fits, and the files say what was measured."""

import csv
import json

import numpy as np
import pytest
import scipy.stats
from helpers import make_folders, run_module, small_config, write_config
from sklearn.linear_model import RidgeCV

from tlflax.models.linear import ridge
from tlflax.probe import few_shot, shots
from tlflax.probe.rows import Rows
from tlflax.train import setup
from tlflax.utils.errors import UserError
from tlflax.workdir.files import Workdir


def make_rows(n, seed):
    """Noisy rows of three classes, of which the last is rare."""
    rng = np.random.default_rng(seed)
    label = np.where(np.arange(n) < 4, 2, np.arange(n) % 2).astype(np.int32)
    features = rng.normal(size=(n, 70)) + 1.5 * np.eye(3, 70)[label] + 1
    return Rows(features.astype(np.float32), label, 3)


def test_every_draw_is_that_of_scikit_learn():
    """Ridge regression on one-hot targets; the strength by leave-one-out within the draw."""
    train, val = make_rows(60, 0), make_rows(200, 1)
    found = few_shot.accuracies(train, val, [1, 3, 9], 6, seed=7)
    for own, count in zip(found, (1, 3, 9), strict=True):
        for draw, accuracy in enumerate(own):
            rows = few_shot.draw_rows(train.label, count, 7, draw)
            x = train.features[rows].astype(np.float64)
            alphas = np.array(ridge.STRENGTHS) * (x**2).sum()  # strength, examples, mean square
            model = RidgeCV(alphas).fit(x, np.eye(3)[train.label[rows]])
            predicted = model.predict(val.features.astype(np.float64)).argmax(1)
            assert accuracy == pytest.approx((predicted == val.label).mean())


def test_draws_are_stratified_nested_and_functions_of_the_seed():
    label = make_rows(60, 0).label
    rows = few_shot.draw_rows(label, 6, 0, 0)
    np.testing.assert_array_equal(np.bincount(label[rows]), [6, 6, 4])  # the last has four
    assert len(set(rows.tolist())) == len(rows)
    assert set(few_shot.draw_rows(label, 2, 0, 0)) < set(rows)
    np.testing.assert_array_equal(rows, few_shot.draw_rows(label, 6, 0, 0))
    for seed, draw in ((0, 1), (1, 0)):
        assert set(rows) != set(few_shot.draw_rows(label, 6, seed, draw))


def test_interval_is_students():
    values = np.array([0.5, 0.6, 0.7, 0.65])
    found = few_shot.summarize(5, values)
    low, high = scipy.stats.t.interval(0.95, 3, values.mean(), values.std(ddof=1) / 2)
    np.testing.assert_allclose(found[2:], [values.mean(), low, high])
    assert found[:2] == (5, 4)
    assert few_shot.summarize(5, np.array([1.0, 0.9]))[3:] == (pytest.approx(0.3147, abs=1e-4), 1)
    assert few_shot.summarize(5, np.full(3, 0.8))[2:] == pytest.approx((0.8, 0.8, 0.8))


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('images')
    make_folders(root / 'Train', 9, seed=1, noise=120.0)
    make_folders(root / 'Test', 6, seed=2, noise=120.0)
    return root


def test_files_hold_what_was_measured(root, tmp_path, said):
    config, work = setup.configure(small_config(root)), Workdir(tmp_path / 'w')
    result = shots.run(config, work, [2, 20], 3)
    assert sum('fewer than 20' in line for line in said) == 1
    assert json.loads((work.path / 'shots.json').read_text()) == result
    few, all_images = result['shots']
    assert len(few['accuracies']) == 3
    assert few['mean_accuracy'] == pytest.approx(np.mean(few['accuracies']))
    assert len(set(all_images['accuracies'])) == 1  # every draw has all nine of each class
    with open(work.path / 'shots.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ['shots', 'draws', 'mean_accuracy', 'low', 'high']
    assert [row['shots'] for row in rows] == ['2', '20']
    assert float(rows[0]['low']) == few['low']
    with pytest.raises(UserError, match='in use'):
        shots.run(config, work, [2], 3)
    again = shots.run(config, Workdir(tmp_path / 'again'), [2], 3)
    assert again['shots'] == [few]


@pytest.mark.parametrize(
    ('values', 'draws', 'where'),
    [(['0'], None, '--shots'), (['1', 'x'], None, '--shots'), (['1'], '1', '--draws')],
)
def test_numbers_are_checked(values, draws, where):
    with pytest.raises(UserError, match='whole number') as error:
        shots.parse(values, draws, 'raw')
    assert error.value.where == where


def test_numbers_are_sorted_and_draws_have_a_default():
    assert shots.parse(['10', '2', '2'], None, 'raw') == ([2, 10], shots.DRAWS)


def test_command(root, tmp_path):
    config = write_config(tmp_path / 'config.py', root)
    flags = [f'--config={config}', f'--workdir={tmp_path / "w"}']
    done = run_module('probe', *flags, '--shots=1,5', '--draws=4')
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [['shots', 'draws'], ['1', '4'], ['5', '4']]
    assert json.loads(lines[-1])['shots'][0]['shots'] == 1


@pytest.mark.parametrize(
    ('flags', 'said'),
    [
        (['--draws=5'], '--shots'),
        (['--shots=1', '--representation=standard'], '--representation'),
        (['--shots=one'], 'whole number'),
    ],
)
def test_flags_that_do_not_fit_are_one_sentence(flags, said):
    done = run_module('probe', '--config=configs/traffic.py', *flags)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1

"""data.fold='all': a run for each fold, and an out-of-fold prediction of every image."""

import csv
import json
import math
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import toy_backbone
from helpers import make_folders, run_module, scan_folder, small_config, write_config

import tlflax
from tlflax.data.splits.stratify import fold_split
from tlflax.probe import run as probe
from tlflax.sweep import auto, folds
from tlflax.sweep import run as sweep
from tlflax.sweep.fold_statistics import METRICS, corrected_interval, over_folds
from tlflax.train import setup, train_and_evaluate
from tlflax.train.epoch import Runner
from tlflax.train.loop import Interrupted
from tlflax.train.metrics.proportions import wilson_interval
from tlflax.train.metrics.scores import calibration_error
from tlflax.utils.errors import UserError
from tlflax.workdir.files import Workdir


def config_of(root, **changes):
    keys = {'data__val': '', 'data__folds': 3, 'data__fold': 'all', 'train__epochs': 2, **changes}
    return small_config(root, **keys)


def read(workdir):
    """The lines of predictions.csv, and their probabilities."""
    with open(workdir / 'predictions.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name.startswith('probability:')]
    return rows, np.array([[float(row[name]) for name in names] for row in rows])


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A cross-validation that is repeated once, on images that are hard to tell apart."""
    root = tmp_path_factory.mktemp('folds')
    make_folders(root / 'Train', 8, seed=1, noise=400.0)
    report = folds.cross_validate(config_of(root, data__repeats=2), root / 'w')
    return root, report


def test_every_image_is_predicted_once_in_each_repeat(whole):
    root, report = whole
    rows, _ = read(root / 'w')
    table = scan_folder(root / 'Train')
    for repeat in range(2):
        own = [row for row in rows if row['repeat'] == str(repeat)]
        assert sorted(row['path'] for row in own) == sorted(table.paths)
        assert {row['path']: row['digest'] for row in own} == dict(
            zip(table.paths, table.digests, strict=True)
        )
        for fold in range(3):
            part = fold_split(table, 3, fold, repeat)[1]
            found = [row['path'] for row in own if row['fold'] == str(fold)]
            assert found == list(part.paths)
    assert all(Path(row['path']).parent.name == row['true_class'] for row in rows)
    assert (report['images'], report['never_held_out'], report['repeats']) == (24, 0, 2)


@pytest.mark.parametrize(('repeat', 'fold'), [(0, 0), (1, 2)])
def test_a_fold_is_the_run_on_its_images_in_two_folders(whole, tmp_path, repeat, fold):
    root, report = whole
    parts = fold_split(scan_folder(root / 'Train'), 3, fold, repeat)
    for name, part in zip(('Train', 'Test'), parts, strict=True):
        for path in part.paths:
            target = tmp_path / name / Path(path).relative_to(root / 'Train')
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    result = train_and_evaluate(small_config(tmp_path, train__epochs=2), tmp_path / 'w')
    row = report['folds'][3 * repeat + fold]
    assert (row['repeat'], row['fold']) == (repeat, fold)
    assert row['workdir'] == f'repeat{repeat}/fold{fold}'
    assert {name: row[name] for name in METRICS} == {name: result['val'][name] for name in METRICS}


def test_figures_are_those_of_scikit_learn(whole):
    root, report = whole
    rows, probabilities = read(root / 'w')
    names = sorted({row['true_class'] for row in rows})
    label = np.array([names.index(row['true_class']) for row in rows])
    predicted = probabilities.argmax(1)
    assert [names[one] for one in predicted] == [row['class'] for row in rows]

    def figures(part):
        own = label[part], predicted[part]
        return {
            'accuracy': sklearn.metrics.accuracy_score(*own),
            'loss': sklearn.metrics.log_loss(label[part], probabilities[part], labels=[0, 1, 2]),
            'balanced_accuracy': sklearn.metrics.balanced_accuracy_score(*own),
            'macro_f1': sklearn.metrics.f1_score(*own, average='macro'),
            'expected_calibration_error': calibration_error(label[part], probabilities[part]),
        }

    at = np.array([3 * int(row['repeat']) + int(row['fold']) for row in rows])
    wanted = [figures(at == number) for number in range(6)]
    for row, one in zip(report['folds'], wanted, strict=True):
        assert {name: row[name] for name in METRICS} == pytest.approx(one, abs=1e-5)
    total = figures(at >= 0)
    assert {name: report['pooled'][name] for name in METRICS} == pytest.approx(total, abs=1e-5)
    assert 0.3 < total['accuracy'] < 1
    right = round(total['accuracy'] * 24)
    assert report['pooled']['accuracy_interval'] == list(wilson_interval(right, 24))
    values = [one['accuracy'] for one in wanted]
    assert report['mean']['accuracy']['mean'] == pytest.approx(np.mean(values))
    # A fold holds out half as many images as it trains on.
    half = scipy.stats.t.ppf(0.975, 5) * np.std(values, ddof=1) * math.sqrt(1 / 6 + 1 / 2)
    assert report['mean']['accuracy']['low'] == pytest.approx(max(np.mean(values) - half, 0))
    assert report['mean']['accuracy']['high'] == pytest.approx(min(np.mean(values) + half, 1))
    assert report['calibration']['loss']['before'] == pytest.approx(total['loss'], abs=1e-5)
    table = list(csv.DictReader((root / 'w' / 'folds.csv').read_text().splitlines()))
    assert [float(row['accuracy']) for row in table] == pytest.approx(values)


def test_each_fold_is_a_workdir_and_the_whole_says_so(whole):
    root, report = whole
    restored = tlflax.load(root / 'w' / 'repeat1' / 'fold2')
    assert restored.evaluate()['accuracy'] == report['folds'][5]['accuracy']
    with pytest.raises(UserError, match=r'this is a cross-validation.*repeat0/fold0'):
        tlflax.load(root / 'w')
    for command, *more in (['evaluate'], ['predict', 'x.jpg']):
        done = run_module(command, f'--workdir={root / "w"}', *more)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith('error: ')
        assert 'which has a classifier for each fold' in done.stderr


def test_the_same_command_is_finished_and_another_is_refused(whole):
    root, report = whole
    assert folds.cross_validate(config_of(root, data__repeats=2), root / 'w') == report
    for changes in ({'data__repeats': 3}, {'data__repeats': 2, 'train__seed': 5}):
        with pytest.raises(UserError, match='another config'):
            folds.cross_validate(config_of(root, **changes), root / 'w')


def test_a_report_that_is_damaged_or_lost(whole):
    root, report = whole
    path = root / 'w' / 'folds.json'
    path.write_text(path.read_text().replace('"images": 24', '"images": 23'))
    again = config_of(root, data__repeats=2)
    with pytest.raises(UserError, match=r'folds\.json: the file is damaged; delete it'):
        folds.cross_validate(again, root / 'w')
    path.unlink()
    before = (root / 'w' / 'predictions.csv').read_bytes()
    assert folds.cross_validate(again, root / 'w') == report
    assert (root / 'w' / 'predictions.csv').read_bytes() == before


def test_an_interrupted_one_ends_as_if_it_had_not_been(whole, tmp_path, monkeypatch):
    """A signal in the fourth run, after a step; the finished ones are not run again."""
    root, _ = whole
    train, calls = Runner.train, []

    def signaled(*arguments, **named):
        calls.append(1)
        if len(calls) == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return train(*arguments, **named)

    config = config_of(root, data__repeats=2)
    monkeypatch.setattr(Runner, 'train', signaled)
    with pytest.raises(Interrupted):
        folds.cross_validate(config, tmp_path / 'w')
    assert (tmp_path / 'w' / 'repeat1' / 'fold0' / 'checkpoints').exists()
    assert not (tmp_path / 'w' / 'repeat1' / 'fold0' / 'result.json').exists()
    assert not (tmp_path / 'w' / 'folds.json').exists()
    folds.cross_validate(config, tmp_path / 'w')
    assert len(calls) == 13  # two epochs each, one of which began twice
    for name in ('predictions.csv', 'folds.csv'):
        assert (tmp_path / 'w' / name).read_bytes() == (root / 'w' / name).read_bytes()


def test_images_that_change_in_between_are_refused(whole, tmp_path, monkeypatch):
    shutil.copytree(whole[0] / 'Train', tmp_path / 'Train')
    with monkeypatch.context() as patch:
        patch.setattr(folds, '_write', lambda *_: {})
        folds.cross_validate(config_of(tmp_path), tmp_path / 'w')
    make_folders(tmp_path / 'more', 1, seed=3)
    (tmp_path / 'more' / 'red' / '000.jpg').rename(tmp_path / 'Train' / 'red' / 'new.jpg')
    with pytest.raises(UserError, match='fold0: the images have changed since this fold'):
        folds.cross_validate(config_of(tmp_path), tmp_path / 'w')


def test_groups_are_not_divided_and_single_images_not_held_out(tmp_path, caplog):
    make_folders(tmp_path / 'Train', 6, seed=4)
    make_folders(tmp_path / 'more', 1, seed=5)
    shutil.copytree(tmp_path / 'more' / 'red', tmp_path / 'Train' / 'one')
    (tmp_path / 'Train' / 'one' / '000.jpg').rename(tmp_path / 'Train' / 'one' / '999.jpg')
    config = config_of(tmp_path, data__folds=2, data__group=r'(\d+)\.jpg', train__epochs=1)
    report = folds.cross_validate(config, tmp_path / 'w')
    rows, _ = read(tmp_path / 'w')
    assert len(rows) == report['images'] == 18
    folds_of = {}
    for row in rows:
        folds_of.setdefault(Path(row['path']).name, set()).add(row['fold'])
    assert len(folds_of) == 6
    assert all(len(found) == 1 for found in folds_of.values())
    assert report['never_held_out'] == 1
    assert '1 images are the only ones, or the only group, of their class' in caplog.text
    assert '; 1 that no fold holds out have no prediction' in folds.format_report(report)


@pytest.mark.usefixtures('cheap_choice')
def test_the_automatic_choice_is_made_in_each_fold(tmp_path):
    """From its training images alone: it is the choice of the same images in one run."""
    make_folders(tmp_path / 'Train', 8, seed=6, noise=200.0)
    backbone = {'model__backbone': f'py:{toy_backbone.__file__}:toy', 'features__layer': 'auto'}
    keys = {'model__head': 'auto', 'data__folds': 2, **backbone}
    report = folds.cross_validate(config_of(tmp_path, **keys), tmp_path / 'w')
    alone, choice = auto.choose_and_evaluate(
        config_of(tmp_path, data__fold=1, **keys), tmp_path / 'alone'
    )
    assert report['folds'][1]['loss'] == alone['val']['loss']
    found = json.loads((tmp_path / 'w' / 'fold1' / 'auto.json').read_text())
    assert found['cv_loss'] == choice['cv_loss']
    assert found['images'] == 12
    assert alone['calibration']['temperature'] > 0


def test_what_needs_one_run_refuses_all_folds(tmp_path):
    make_folders(tmp_path / 'Train', 3)
    config = config_of(tmp_path)
    resolved = setup.configure(config)
    for use in (
        lambda: train_and_evaluate(config, tmp_path / 'a'),
        lambda: sweep.run(resolved, [{}], Workdir(tmp_path / 'b')),
        lambda: probe.run(resolved, Workdir(tmp_path / 'c')),
    ):
        with pytest.raises(UserError, match=r'config\.data\.fold: .* let python -m tlflax\.train'):
            use()
    with pytest.raises(UserError, match=r'data\.val and config\.data\.folds: more than one'):
        folds.cross_validate(config_of(tmp_path, data__val='x'), tmp_path / 'd')
    with pytest.raises(UserError, match='takes every fold'):
        folds.cross_validate(config_of(tmp_path, data__fold=0), tmp_path / 'd')
    with pytest.raises(UserError, match=r'fold . of 9 has no image'):
        folds.cross_validate(config_of(tmp_path, data__folds=9), tmp_path / 'e')
    assert not (tmp_path / 'e' / 'config.json').exists()


def test_the_command(tmp_path):
    make_folders(tmp_path / 'Train', 6, seed=7)
    config = write_config(tmp_path / 'c.py', tmp_path)
    flags = ['val=', 'folds=2', 'fold=all']
    done = run_module(
        'train',
        f'--config={config}',
        f'--workdir={tmp_path / "w"}',
        '--config.train.epochs=1',
        *(f'--config.data.{flag}' for flag in flags),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / 'w' / 'folds.json').read_text())
    assert done.stdout == folds.format_report(report) + '\n'
    lines = done.stdout.splitlines()
    assert lines[0].split()[:3] == ['fold', 'images', 'accuracy']
    assert [line.split()[0] for line in lines[1:4]] == ['fold0', 'fold1', 'mean']
    assert 'out-of-fold predictions of 18 images' in lines
    assert lines[-1].startswith('calibrated by temperature')


def test_the_interval_of_a_mean_over_folds():
    """Of Nadeau & Bengio: with no test images, that of independent values; else wider."""
    values = [0.9, 0.94, 0.88, 0.95, 0.91]
    plain = scipy.stats.t.interval(0.95, 4, np.mean(values), scipy.stats.sem(values))
    assert corrected_interval(values, 0.0, 100.0) == pytest.approx(plain)
    low, high = corrected_interval(values, 20.0, 80.0)
    assert high - low == pytest.approx((plain[1] - plain[0]) * math.sqrt(1 + 5 * 0.25))
    row = {**dict.fromkeys(METRICS, 0.0), 'num_examples': 20, 'train_examples': 80}
    rows = [{**row, 'accuracy': 1.0}, {**row, 'accuracy': 0.5, 'loss': 3.0}]
    found = over_folds(rows)
    assert found['accuracy'] == {'mean': 0.75, 'low': 0.0, 'high': 1.0}
    assert found['loss']['high'] > 1

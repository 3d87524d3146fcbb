"""model.head='auto': chosen on training images alone, a workdir like any other."""

import csv
import json
import shutil

import jax
import numpy as np
import pytest
import toy_backbone
from helpers import make_folders, run_module, small_config
from sklearn.linear_model import RidgeClassifier

import tlflax
from tlflax.data.splits.load import load_table
from tlflax.data.splits.stratify import fold_numbers
from tlflax.models.base.taps import Tap
from tlflax.sweep import auto, auto_report, trials
from tlflax.sweep.candidates.catalogue import Layout, affordable, candidates
from tlflax.sweep.candidates.linear import LOGISTIC, RIDGE, Linear
from tlflax.train import setup, train_and_evaluate
from tlflax.utils.errors import UserError


def config_of(root, **changes):
    return small_config(root, model__head='auto', features__layer='auto', **changes)


@pytest.fixture(scope='module')
def chosen(tmp_path_factory):
    root = tmp_path_factory.mktemp('auto')
    make_folders(root / 'Train', 12, seed=1, noise=120.0)
    make_folders(root / 'Test', 5, seed=2, noise=120.0)
    result, report = auto.choose_and_evaluate(config_of(root), root / 'w')
    return root, result, report


def test_a_workdir_like_any_other(chosen):
    root, result, report = chosen
    restored = tlflax.load(root / 'w')
    again = restored.evaluate()
    assert again['accuracy'] == result['val']['accuracy']
    assert again['loss'] == pytest.approx(result['val']['loss'], abs=1e-6)
    paths = sorted((root / 'Test').rglob('*.jpg'))
    found = restored.predict(paths)
    right = [one.probabilities[one.true_class] for one in found]
    assert -np.log(right).mean() == pytest.approx(result['val']['loss'], abs=1e-4)
    for arguments in (['evaluate'], ['predict', str(paths[0])]):
        done = run_module(arguments[0], f'--workdir={root / "w"}', *arguments[1:])
        assert done.returncode == 0, done.stderr
    assert json.loads((root / 'w' / 'config.json').read_text())['model']['head'] == 'auto'
    assert json.loads((root / 'w' / 'auto.json').read_text()) == report


def test_the_report(chosen):
    root, _, report = chosen
    rows = list(csv.DictReader((root / 'w' / 'auto.csv').read_text().splitlines()))
    assert [row['candidate'] for row in rows] == [c['candidate'] for c in report['candidates']]
    weights = [row['weight'] for row in report['candidates']]
    assert sum(weights) == pytest.approx(1)
    best = min(row['cv_loss'] for row in report['candidates'])
    assert report['cv_loss'] <= best + 1e-9  # alone, it would have been chosen alone
    assert all(row['low'] <= row['cv_accuracy'] <= row['high'] for row in report['candidates'])
    assert report['why'].startswith(f'the mean of {sum(w > 0 for w in weights)} of ')
    assert report['why'] in auto_report.format_table(report)


def test_the_same_command_is_finished_and_another_config_is_refused(chosen):
    root, result, report = chosen
    assert auto.choose_and_evaluate(config_of(root), root / 'w') == (result, report)
    with pytest.raises(UserError, match='another config'):
        auto.choose_and_evaluate(config_of(root, train__seed=5), root / 'w')


def test_a_repeat_chooses_the_same(chosen, tmp_path):
    root, result, report = chosen
    again, repeated = auto.choose_and_evaluate(config_of(root), tmp_path / 'again')
    assert again['val'] == result['val']
    without = [{k: v for k, v in row.items() if k != 'seconds'} for row in report['candidates']]
    assert without == [
        {k: v for k, v in row.items() if k != 'seconds'} for row in repeated['candidates']
    ]


def test_validation_images_have_no_part_in_the_choice(chosen, tmp_path):
    """With other validation images, wrongly labeled, the head is the same to the bit."""
    root, _, report = chosen
    shutil.copytree(root / 'Train', tmp_path / 'Train')
    make_folders(tmp_path / 'other', 5, seed=9, noise=120.0)
    for name, source in {'green': 'red', 'red': 'yellow', 'yellow': 'green'}.items():
        shutil.copytree(tmp_path / 'other' / source, tmp_path / 'Test' / name)
    _, other = auto.choose_and_evaluate(config_of(tmp_path), tmp_path / 'w')
    assert [row['cv_loss'] for row in other['candidates']] == [
        row['cv_loss'] for row in report['candidates']
    ]
    one, two = (tlflax.load(w).trainable.params['head'] for w in (root / 'w', tmp_path / 'w'))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_cross_validation_is_that_of_an_independent_implementation(chosen):
    """A ridge candidate, refitted by scikit-learn on each fold at the strength that was found."""
    root, _, report = chosen
    resolved = auto._without_training(setup.configure(config_of(root)))
    offered = candidates(trials.layout(resolved))
    candidate = next(c for c in offered if isinstance(c, Linear) and c.solver == RIDGE)
    run = trials.build(resolved, setup.load(resolved))
    features, _, label = trials.read(run, run.splits.train, mirrored=False)
    (part,) = candidate.representation
    rows = features[:, part.start : part.stop].astype(np.float64)
    rows /= np.sqrt((rows**2).sum(1).mean())
    fold = fold_numbers(load_table(resolved.data.train, data=resolved.data), auto.FOLDS)
    (found,) = [row for row in report['candidates'] if row['candidate'] == candidate.name]
    right = 0
    for held in range(auto.FOLDS):
        out = fold == held
        strength = float(found['setting'].removeprefix('strength '))
        reference = RidgeClassifier(alpha=strength * len(rows))  # of all rows, as ours
        reference.fit(rows[~out], label[~out])
        right += (reference.predict(rows[out]) == label[out]).sum()
    assert found['cv_accuracy'] == pytest.approx(right / (fold >= 0).sum())


def test_the_command(chosen, tmp_path):
    root, result, report = chosen
    (tmp_path / 'c.py').write_text(
        'from tlflax.config import default_config\n'
        'def get_config():\n'
        '    config = default_config()\n'
        f"    config.data.train, config.data.val = '{root}/Train', '{root}/Test'\n"
        '    config.data.image_size = (32, 32)\n'
        "    config.weights.source, config.model.head = 'random', 'auto'\n"
        '    return config\n'
    )
    done = run_module('train', f'--config={tmp_path / "c.py"}', f'--workdir={tmp_path / "w"}')
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith('weight  accuracy')
    assert report['why'].split(' has ')[0] in done.stdout
    assert f'accuracy {result["val"]["accuracy"]:.4f}' in done.stdout


def test_other_ways_to_a_head_say_where_auto_is(tmp_path):
    make_folders(tmp_path / 'Train', 3)
    make_folders(tmp_path / 'Test', 2, seed=4)
    with pytest.raises(UserError, match=r'config\.model\.head: it stands for many heads.*train'):
        train_and_evaluate(config_of(tmp_path), tmp_path / 'w')


@pytest.mark.usefixtures('cheap_choice')
def test_a_backbone_of_ones_own(chosen, tmp_path):
    root, _, _ = chosen
    config = config_of(
        root, model__backbone=f'py:{toy_backbone.__file__}:toy', weights__source='random'
    )
    result, report = auto.choose_and_evaluate(config, tmp_path / 'w')
    assert tlflax.load(tmp_path / 'w').evaluate()['accuracy'] == result['val']['accuracy']
    assert any('block3' in row['candidate'] for row in report['candidates'])


def test_images_too_few_for_folds_are_refused(tmp_path):
    make_folders(tmp_path / 'Train', 1)
    make_folders(tmp_path / 'Test', 1, seed=4)
    config = config_of(tmp_path, train__batch_size=1)
    with pytest.raises(UserError, match='too few for cross-validation'):
        auto.choose_and_evaluate(config, tmp_path / 'w')


LAYOUT = Layout(
    (Tap('low', 'mean'), Tap('low', 'grid4'), Tap('top', 'mean'), Tap('top', 'flatten')),
    (512, 8192, 512, 25088),
    (7, 7, 512),
)
KINDS = ('ridge', 'logistic', 'nearest class', 'nearest neigh', 'gap_linear', 'mlp', 'conv')


def test_candidates_follow_from_the_taps():
    names = [one.name for one in candidates(LAYOUT)]
    assert len(set(names)) == len(names) == 26
    assert all(any(name.startswith(kind) for name in names) for kind in KINDS)
    for solver in (RIDGE, LOGISTIC):
        for rows in ('top pooled', 'top'):
            for kind in ('', ', unit rows', ', standardized'):
                assert f'{solver}, {rows}{kind}' in names
    assert not any('mirror' in name for name in names)
    mirrored = [one for one in candidates(LAYOUT, mirrored=True) if 'mirror' in one.name]
    assert len(mirrored) == 3
    alone = candidates(Layout(LAYOUT.taps[2:], LAYOUT.columns[2:], LAYOUT.shape))
    assert not any('earlier' in one.name or 'all layers' in one.name for one in alone)
    assert sum('averages of all layers' in name for name in names) == 2
    linear = [one for one in alone if isinstance(one, Linear)]
    assert max(part.stop for one in linear for part in one.representation) == 25600


def test_a_budget_drops_what_is_dear_in_a_fixed_order():
    offered = candidates(LAYOUT)
    for n in (100, 1000, 4000, 100_000):
        budget = auto.budget(n)
        kept = affordable(offered, n, 10, auto.FOLDS, budget)
        assert [one for one in offered if one in kept] == kept
        assert sum(one.cost(n, 10, auto.FOLDS) for one in kept) <= budget
        assert kept == affordable(offered, n, 10, auto.FOLDS, budget)
    assert affordable(offered, 300, 10, auto.FOLDS, auto.budget(300)) == offered
    many = affordable(offered, 100_000, 10, auto.FOLDS, auto.budget(100_000))
    assert 1 < len(many) < 12
    assert len(affordable(offered, 1000, 10, auto.FOLDS, 0.0)) == 1

"""Linear probes: the minimum is scikit-learn's, the best of the path is a normal workdir."""

import itertools
import json
from typing import get_args

import numpy as np
import pytest
import scipy.special
from helpers import make_folders, run_module, small_config, write_config
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

import tlflax
from tlflax.config import flags
from tlflax.data.splits.stratify import fold_numbers
from tlflax.models.linear import compression, logistic_regression
from tlflax.probe import cross_validation, path, run
from tlflax.probe.__main__ import Arguments
from tlflax.probe.rows import Representation, Rows, read_rows
from tlflax.train import setup
from tlflax.utils.errors import UserError
from tlflax.workdir.files import Workdir


def make_features(n, d, seed=0):
    """Non-negative features of very different sizes, of which a few tell the class."""
    rng = np.random.default_rng(seed)
    x = np.maximum(rng.normal(size=(n, d)), 0) * rng.exponential(size=d) * 20
    label = rng.integers(0, 3, n)
    x[np.arange(n), label] += 40
    return x.astype(np.float32), label.astype(np.int32)


@pytest.mark.parametrize(('n', 'd'), [(150, 400), (300, 40)], ids=['wide', 'tall'])
def test_path_is_that_of_scikit_learn(n, d):
    """Probabilities to 1e-4 at every strength, coefficients to 0.1 % where they are determined.

    The weakest strengths leave directions in which the objective is flat to float32.
    """
    x, label = make_features(n, d)
    wide = x.astype(np.float64)
    scale = np.sqrt((wide**2).sum(1).mean())
    for solved in logistic_regression.solve_path(x, label, 3):
        assert solved.gradient_norm <= 1e-5
        # In scaled units, or scikit-learn's own solver does not arrive.
        strength = solved.l2 / scale**2
        reference = LogisticRegression(C=1 / (strength * n), tol=1e-10, max_iter=50_000)
        reference.fit(wide / scale, label)
        ours = scipy.special.softmax(wide @ solved.kernel + solved.bias, axis=1)
        theirs = reference.predict_proba(wide / scale)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
        if strength > 1e-5:
            error = np.linalg.norm(solved.kernel.T * scale - reference.coef_)
            assert error < 1e-3 * np.linalg.norm(reference.coef_)


def test_gradient_in_float64_vanishes():
    """The objective as documented, differentiated by hand, for features as they are."""
    x, label = make_features(120, 300, seed=1)
    wide, target = x.astype(np.float64), np.eye(3)[label]
    for solved in logistic_regression.solve_path(x, label, 3, strengths=(1e-1, 1e-3)):
        excess = scipy.special.softmax(wide @ solved.kernel + solved.bias, axis=1) - target
        gradient = wide.T @ excess / len(x) + solved.l2 * solved.kernel
        at_zero = wide.T @ (1 / 3 - target) / len(x)
        assert np.linalg.norm(gradient) < 1e-4 * np.linalg.norm(at_zero)
        assert np.abs(excess.mean(0)).max() < 1e-5


def test_compression_loses_nothing():
    x, _ = make_features(60, 500)
    x[7] = x[8]  # a row that adds no direction
    rows = compression.compress(x)
    assert rows.coordinates.shape == (60, 59)
    weights = np.random.default_rng(0).normal(size=(59, 3))
    kernel = rows.kernel(x, weights)
    logits = rows.coordinates @ weights
    np.testing.assert_allclose(x @ kernel, logits, atol=1e-5 * np.abs(logits).max())
    norm = np.linalg.norm(kernel) * rows.scale
    np.testing.assert_allclose(norm, np.linalg.norm(weights), rtol=1e-5)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('images')
    make_folders(root / 'Train', 9, seed=1, noise=300.0)
    make_folders(root / 'Test', 6, seed=2, noise=300.0)
    return root


@pytest.fixture(scope='module', params=['flatten', 'gap', 'standardized', 'power'])
def finished(request, root, tmp_path_factory):
    """A probe's workdir, its result and the scikit-learn transform of the features."""
    head = {'gap': 'gap_linear'}.get(request.param, 'conv')  # 'conv' is no probe: flatten
    config = setup.configure(small_config(root, model__head=head))
    workdir = tmp_path_factory.mktemp('probes') / request.param
    representation = {'standardized': 'standard', 'power': 'power'}.get(request.param, 'raw')
    result = run.run(config, Workdir(workdir), representation)
    return workdir, result, request.param


def test_workdir_has_the_path_and_its_best(finished):
    workdir, result, _ = finished
    records = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    assert len(records) >= len(logistic_regression.STRENGTHS)
    strengths = [record['l2'] for record in records]
    assert strengths == sorted(strengths, reverse=True)
    losses = [record['train_loss'] for record in records]
    assert losses == sorted(losses, reverse=True)  # weaker regularization fits better
    lowest = min(record['cv_loss'] for record in records)
    best = next(record for record in records if record['cv_loss'] <= 1.005 * lowest)
    assert result['best_epoch'] == best['epoch']
    assert result['best_val_accuracy'] == best['val_accuracy'] > 0.5
    assert result['val']['loss'] == pytest.approx(best['val_loss'], abs=1e-6)
    assert all(record['gradient_norm'] <= 1e-5 for record in records)


def test_restored_probe_is_the_one_that_was_fitted(finished):
    workdir, result, kind = finished
    restored = tlflax.load(workdir)
    heads = {'gap': 'gap_linear', 'power': 'ensemble:0:4096 power'}
    assert restored.config.model.head == heads.get(kind, 'flatten_linear')
    assert restored.step == result['step']
    evaluated = restored.evaluate()
    assert evaluated['loss'] == pytest.approx(result['best_val_loss'], abs=1e-6)
    assert tlflax.load(workdir, 'last').step == max(
        json.loads(line)['step'] for line in (workdir / 'metrics.jsonl').read_text().splitlines()
    )


def test_standardized_probe_equals_scikit_learn_on_standardized_features(root, tmp_path):
    """The chosen kernel and bias, which are for plain features, give the same probabilities."""
    config = setup.configure(small_config(root, features__dtype='float32'))
    result = run.run(config, Workdir(tmp_path / 'w'), 'standard')
    record = (tmp_path / 'w' / 'metrics.jsonl').read_text().splitlines()[result['best_epoch'] - 1]
    restored = tlflax.load(tmp_path / 'w')
    source, table = _train_source(restored)
    rows = read_rows(source, 'flatten_linear', 3)
    x, label, wide = rows.features, rows.label, rows.features.astype(np.float64)
    deviation = np.where(wide.std(0) == 0, 1, wide.std(0))
    scaled = (wide - wide.mean(0)) / deviation
    reference = LogisticRegression(
        C=1 / (json.loads(record)['l2'] * len(x)), tol=1e-10, max_iter=50_000
    ).fit(scaled, label)
    layer = restored.trainable.params['head']['logits']
    ours = scipy.special.softmax(
        wide @ np.asarray(layer['kernel'], np.float64) + np.asarray(layer['bias']), axis=1
    )
    np.testing.assert_allclose(ours, reference.predict_proba(scaled), atol=1e-3)
    np.testing.assert_array_equal(label, table.labels)


def _train_source(restored):
    prepared = setup.build(restored.config, setup.load(restored.config))
    return prepared.sources.eval(prepared.splits.train, 'training'), prepared.splits.train


def reference_scores(x, label, fold, l2, standard):
    """Log-probabilities of the rows held out, by scikit-learn in float64."""
    found = np.full((len(x), 3), np.nan)
    for held in np.unique(fold[fold >= 0]):
        fitted, out = x[fold != held].astype(np.float64), x[fold == held].astype(np.float64)
        if standard:
            scaler = StandardScaler().fit(fitted)
            fitted, out = scaler.transform(fitted), scaler.transform(out)
        scale = np.sqrt((fitted**2).sum(1).mean())  # or its solver does not arrive
        left, roots, _ = np.linalg.svd(np.concatenate([fitted, out]), full_matrices=False)
        fitted, out = np.split(left * roots / scale, [len(fitted)])  # a rotation changes nothing
        model = LogisticRegression(C=1 / (l2 / scale**2 * len(fitted)), tol=1e-9, max_iter=50_000)
        model.fit(fitted, label[fold != held])
        found[fold == held] = model.predict_log_proba(out)
    return found


@pytest.mark.parametrize('representation', get_args(Representation))
def test_held_out_scores_are_those_of_scikit_learn(representation):
    """Each fold has its own moments; a row of fold -1 is in all training sides."""
    x, label = make_features(90, 60, seed=3)
    x[:, 59] = 0
    x[4, 59] = 50  # a column of zeros but for one row: its deviation differs between folds
    fold = np.arange(90) % 5
    fold[:3] = -1
    scale = 1.0 if representation == 'standard' else np.sqrt((x**2).sum(1).mean()) / 8
    l2s = [1.0 * scale**2, 0.1 * scale**2]
    rows = Rows(x, label, 3)
    scores = cross_validation.held_out_scores(rows, fold, representation, l2s)
    for l2, ours in zip(l2s, scores, strict=True):
        theirs = reference_scores(x, label, fold, l2, representation == 'standard')
        assert np.isnan(ours[:3]).all()
        np.testing.assert_allclose(
            scipy.special.softmax(ours[3:], 1), np.exp(theirs[3:]), atol=2e-3
        )
        loss, accuracy = cross_validation.assess(ours, label)
        assert loss == pytest.approx(log_loss(label[3:], np.exp(theirs[3:])), rel=2e-3)
        assert accuracy == (theirs[3:].argmax(1) == label[3:]).mean()


def test_chosen_strength_is_that_of_scikit_learns_cross_validation(finished):
    """On the folds of the training images; losses near zero depend on when a solver stops."""
    workdir, result, kind = finished
    records = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    restored = tlflax.load(workdir)
    source, table = _train_source(restored)
    representation = 'power' if kind == 'power' else 'raw'
    rows = read_rows(source, restored.config.model.head, 3, representation)
    if kind == 'power':  # by hand
        features = np.sqrt(read_rows(source, 'flatten_linear', 3).features.astype(np.float64))
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        np.testing.assert_allclose(rows.features, features, atol=1e-6)
    fold = fold_numbers(table, path.FOLDS)
    losses = {}
    for record in [*records[3:9], records[result['best_epoch'] - 1]]:
        theirs = reference_scores(
            rows.features, rows.label, fold, record['l2'], kind == 'standardized'
        )
        losses[record['epoch']] = log_loss(rows.label, np.exp(theirs))
        assert record['cv_loss'] == pytest.approx(losses[record['epoch']], rel=0.02, abs=8e-3)
        assert record['cv_accuracy'] == pytest.approx((theirs.argmax(1) == rows.label).mean())
    assert losses[result['best_epoch']] <= min(losses.values()) * 1.02 + 8e-3


def test_path_goes_on_while_the_best_is_at_an_end(root, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(logistic_regression, 'STRENGTHS', (1.0, 0.5))
    with caplog.at_level('INFO', logger='absl'):
        run.run(setup.configure(small_config(root)), Workdir(tmp_path / 'w'))
    lines = (tmp_path / 'w' / 'metrics.jsonl').read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record['epoch'] for record in records] == list(range(1, len(records) + 1))
    ratios = [one['l2'] / two['l2'] for one, two in itertools.pairwise(records)]
    np.testing.assert_allclose(ratios, 2, rtol=1e-5)
    assert len(records) > 2
    assert any('regularization' in message for message in caplog.messages)


@pytest.mark.parametrize('finished', ['gap'], indirect=True)
def test_validation_images_choose_nothing(finished, root, tmp_path):
    """Other validation images change neither the path nor its best."""
    config = small_config(root, data__val=str(root / 'Train'), model__head='gap_linear')
    other = run.run(setup.configure(config), Workdir(tmp_path / 'w'))
    seen = [
        (result['best_epoch'], [(r['l2'], r['cv_loss']) for r in Workdir(workdir).records()])
        for workdir, result in ((finished[0], finished[1]), (tmp_path / 'w', other))
    ]
    assert seen[0] == seen[1]


def test_one_image_of_each_class_cannot_be_divided(root, tmp_path):
    make_folders(tmp_path / 'Train', 1, seed=5)
    config = small_config(root, data__train=str(tmp_path / 'Train'), train__batch_size=2)
    with pytest.raises(UserError, match='cross-validation') as error:
        run.run(setup.configure(config), Workdir(tmp_path / 'w'))
    assert error.value.where == 'config.data.train'


def test_command_offers_every_representation():
    (offered,) = [one for one in flags.described(Arguments) if one.name == 'representation']
    assert get_args(Representation) == offered.choices


def test_workdir_in_use_is_refused(finished, root):
    with pytest.raises(UserError, match='--workdir'):
        run.run(setup.configure(small_config(root)), Workdir(finished[0]))


def test_averages_are_not_scaled_by_row(root, tmp_path):
    config = setup.configure(small_config(root, model__head='gap_linear'))
    with pytest.raises(UserError, match='gap_linear averages features') as error:
        run.run(config, Workdir(tmp_path / 'w'), 'row')
    assert error.value.where == '--representation'


def test_features_must_be_kept(root, tmp_path):
    config = small_config(root, features__cache='False')
    with pytest.raises(UserError, match=r'config\.features\.cache'):
        run.run(setup.configure(config), Workdir(tmp_path / 'w'))
    assert not (tmp_path / 'w' / 'config.json').exists()


def test_command(root, tmp_path):
    config = write_config(tmp_path / 'config.py', root)
    done = run_module('probe', f'--config={config}', f'--workdir={tmp_path / "w"}')
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split()[:2] == ['l2', 'iterations']
    assert json.loads(done.stdout.splitlines()[-1])['gradient_norm'] <= 1e-5
    photo = next((root / 'Test' / 'red').iterdir())
    assert len(tlflax.load(tmp_path / 'w').predict(photo)) == 1


def test_command_without_config_is_one_sentence():
    done = run_module('probe')
    assert done.returncode == 2
    assert '--config' in done.stderr
    usage, sentence = done.stderr.strip().splitlines()
    assert (usage.split()[0], sentence.split()[0]) == ('usage:', 'error:')

"""Candidates: held-out scores, branches and settings, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from tlflax.models import ensemble_head, heads
from tlflax.models.linear.representations import Part
from tlflax.sweep.candidates import trained
from tlflax.sweep.candidates.fitted import Training
from tlflax.sweep.candidates.linear import LOGISTIC, RIDGE, Linear
from tlflax.sweep.candidates.similarity import ClassMeans, Neighbors
from tlflax.sweep.candidates.trained import Trained

SHAPE = (4, 4, 6)
COLUMNS = 96


def make_training(n=60, noise=1.0, **changes):
    rng = np.random.default_rng(0)
    label = (np.arange(n) % 3).astype(np.int32)
    features = noise * rng.normal(size=(n, COLUMNS)) + 5 * np.eye(3, COLUMNS)[label]
    features[:, 6:9] += 4 * np.eye(3)[label]
    fold = np.arange(n) // 3 % 5 - (np.arange(n) < 3)
    return Training(features.astype(np.float32), label, 3, fold, **changes)


MIRRORED = make_training().features[:, ::-1].copy()
CANDIDATES = [
    Linear(RIDGE, (Part(0, 20, 'power', 8.0), Part(20, COLUMNS, 'raw')), 'two parts'),
    Linear(LOGISTIC, (Part(3, 40, 'standard'),), 'standardized'),
    Linear(RIDGE, (Part(0, COLUMNS, 'row'),), 'unit rows', mirrored=True),
    ClassMeans(Part(0, COLUMNS, 'row'), 'all'),
    Neighbors(Part(0, 40, 'row'), 'all'),
    Trained('mlp', Part(0, COLUMNS, 'raw'), SHAPE, 'map'),
    Trained('conv', Part(0, COLUMNS, 'raw'), SHAPE, 'map'),
]


@pytest.mark.parametrize('candidate', CANDIDATES, ids=lambda one: one.name)
def test_held_out_scores_are_those_of_branches_fitted_without_the_fold(candidate, monkeypatch):
    """Whoever fits a candidate to four folds alone, and applies its branch to the fifth, agrees."""
    monkeypatch.setattr(trained, '_STEPS', (60,))
    training = make_training(mirrored=MIRRORED)
    found = candidate.fit(training, [])
    held_out = training.fold >= 0
    own = found.log_probabilities[held_out]
    label = training.label[held_out]
    assert np.isnan(found.log_probabilities[~held_out]).all()
    assert found.loss == pytest.approx(found.losses(training.label)[held_out].mean())
    assert found.accuracy == (own.argmax(1) == label).mean() > 0.8
    np.testing.assert_allclose(np.exp(own).sum(1), 1, rtol=1e-6)
    out = training.fold == 2
    kept = np.flatnonzero(~out)
    monkeypatch.setattr('tlflax.models.linear.neighbors._CHUNK', 16)
    alone = Training(
        training.features[kept], training.label[kept], 3, training.fold[kept], MIRRORED[kept]
    )
    fixed = with_setting(candidate, found.setting, monkeypatch)
    scores = branch_scores(fixed.fit(alone, []), training.features[out])
    assert (scores.argmax(1) == found.log_probabilities[out].argmax(1)).mean() > 0.9


def with_setting(candidate, setting, monkeypatch):
    """The candidate with the setting that was found, as far as it has one."""
    value = setting.split()[0]
    if isinstance(candidate, Neighbors):
        monkeypatch.setattr('tlflax.sweep.candidates.similarity.VOTES', (int(value),))
    return candidate


def branch_scores(fitted, features):
    name = ensemble_head.name_of([fitted.branch])
    shape = (features.shape[1],)
    first = heads.init(name, shape, 3, jax.random.key(0), units=1, dropout=0.0)
    params = {'log_weight': np.zeros(1, np.float32), 'branch0': fitted.params}
    assert jax.tree.structure(first.params) == jax.tree.structure(params)
    static = heads.static(name, shape, 3, units=1, dropout=0.0)
    return np.asarray(static.apply(first._replace(params=params), jnp.asarray(features))[0])


def test_class_means_and_neighbors_by_hand():
    training = make_training()
    rows = training.features.astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    part = Part(0, COLUMNS, 'row')
    for candidate in (ClassMeans(part, ''), Neighbors(part, '')):
        found = candidate.fit(training, [])
        for held in range(5):
            out, used = training.fold == held, training.fold != held
            if isinstance(candidate, ClassMeans):
                means = np.stack([rows[used & (training.label == c)].mean(0) for c in range(3)])
                means /= np.linalg.norm(means, axis=1, keepdims=True)
                scores = rows[out] @ means.T
            else:
                cosine = rows[out] @ rows[used].T
                votes = int(found.setting.split()[0])
                near = np.argsort(-cosine, axis=1)[:, :votes]
                share = softmax(np.take_along_axis(cosine, near, 1) / 0.07, axis=1)
                targets = np.eye(3)[training.label[used]][near]
                scores = np.log((1 - 1e-6) * np.einsum('mk,mkc->mc', share, targets) + 1e-6 / 3)
            assert (scores.argmax(1) == found.log_probabilities[out].argmax(1)).all()
            ratio = np.ptp(found.log_probabilities[out], axis=1) / np.ptp(scores, axis=1)
            np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)  # one factor for all


def test_training_by_steps_is_adamw_with_a_one_cycle_schedule():
    """The linear head, against AdamW written out in float64."""
    training = make_training()
    rng = np.random.default_rng(3)
    rows = rng.integers(0, 60, (40, 8))
    x = training.features.reshape(-1, *SHAPE)
    static = heads.static('gap_linear', SHAPE, 3, units=1, dropout=0.0)
    first = heads.init('gap_linear', SHAPE, 3, jax.random.key(0), units=1, dropout=0.0)
    found = trained.train(static, first, x, training.label, rows, 0.05)['logits']
    pooled = x.astype(np.float64).mean((1, 2))
    params = [np.zeros((6, 3)), np.zeros(3)]
    moments = [[np.zeros_like(p) for p in params] for _ in range(2)]
    for step, batch in enumerate(rows):
        error = softmax(pooled[batch] @ params[0] + params[1], axis=1)
        error -= np.eye(3)[training.label[batch]]
        grads = [pooled[batch].T @ error / 8, error.mean(0)]
        rate = one_cycle(step, 40, 0.05)
        for k, grad in enumerate(grads):
            moments[0][k] = 0.9 * moments[0][k] + 0.1 * grad
            moments[1][k] = 0.999 * moments[1][k] + 0.001 * grad**2
            first_moment = moments[0][k] / (1 - 0.9 ** (step + 1))
            second_moment = moments[1][k] / (1 - 0.999 ** (step + 1))
            update = first_moment / (np.sqrt(second_moment) + 1e-8) + 1e-2 * params[k]
            params[k] = params[k] - rate * update
    np.testing.assert_allclose(found['kernel'], params[0], atol=2e-4)
    np.testing.assert_allclose(found['bias'], params[1], atol=2e-4)


def one_cycle(step, steps, peak):
    """From a 25th of the peak to it in 30 % of the steps, then to a 250,000th, along cosines."""
    turn = int(0.3 * steps)
    if step < turn:
        low, high, part = peak / 25, peak, step / turn
    else:
        low, high, part = peak, peak / 25 / 1e4, (step - turn) / (steps - turn)
    return high + (low - high) * (1 + np.cos(np.pi * part)) / 2


def test_a_head_gives_up_against_a_much_better_rival(monkeypatch):
    monkeypatch.setattr(trained, '_STEPS', (5,))
    training = make_training()
    rival = Linear(RIDGE, (Part(0, COLUMNS, 'raw'),), '').fit(training, [])
    best = 60.0 * np.eye(3)[training.label]
    rival = rival._replace(log_probabilities=log_softmax(best, axis=1))
    found = Trained('mlp', Part(0, COLUMNS, 'raw'), SHAPE, 'map').fit(training, [rival])
    assert not found.complete
    assert found.setting == '5 steps, one fold only'
    computed = np.isfinite(found.log_probabilities).all(1)
    assert (computed == (training.fold == 0)).all()


def test_the_number_of_steps_is_the_best_by_cross_validation(monkeypatch):
    monkeypatch.setattr(trained, '_STEPS', (2, 80, 160))
    training = make_training(noise=0.3)
    found = Trained('mlp', Part(0, COLUMNS, 'raw'), SHAPE, 'map').fit(training, [])
    losses = {}
    for steps in (2, 80):
        monkeypatch.setattr(trained, '_STEPS', (steps,))
        losses[steps] = Trained('mlp', Part(0, COLUMNS, 'raw'), SHAPE, 'map').fit(training, []).loss
    assert losses[80] < losses[2]
    assert found.setting in ('80 steps', '160 steps')
    assert found.loss <= losses[80]


def test_a_fold_without_images_is_left_out(monkeypatch):
    """Few images leave some folds empty, perhaps the first."""
    monkeypatch.setattr(trained, '_STEPS', (20,))
    full = make_training()
    training = Training(full.features, full.label, 3, np.where(full.fold == 0, 1, full.fold))
    for candidate in (CANDIDATES[0], CANDIDATES[1], CANDIDATES[3], CANDIDATES[5]):
        found = candidate.fit(training, [])
        computed = np.isfinite(found.log_probabilities).all(1)
        assert (computed == (training.fold >= 0)).all()

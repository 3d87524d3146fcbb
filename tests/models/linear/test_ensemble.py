"""Greedy selection of an ensemble."""

import numpy as np
import pytest
from scipy.special import log_softmax

from tlflax.models.linear import ensemble
from tlflax.models.linear.ensemble import select


def make_models(m=6, n=40, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, n)
    scores = rng.normal(size=(m, n, 3)) + rng.uniform(0, 2, size=(m, 1, 1)) * np.eye(3)[label]
    return np.exp(scores) / np.exp(scores).sum(-1, keepdims=True), label


def loss(probabilities, label):
    return -np.log(probabilities[np.arange(len(label)), label]).mean()


def test_each_round_adds_the_best():
    models, label = make_models()
    bag = []
    losses = []
    for _ in range(10):
        trials = [loss(models[[*bag, i]].mean(0), label) for i in range(len(models))]
        bag.append(int(np.argmin(trials)))
        losses.append(min(trials))
    bag = bag[: int(np.argmin(losses)) + 1]
    chosen = select(models, label, np.ones(6), 10)
    assert chosen.tolist() == np.bincount(bag, minlength=6).tolist()
    assert loss(np.average(models, 0, chosen), label) <= min(loss(m, label) for m in models)


def test_ties_go_to_the_cheaper():
    models, label = make_models(2)
    copies = models[[0, 0, 0]]
    assert select(copies, label, np.array([3.0, 1.0, 2.0]), 5).tolist() == [0, 1, 0]


def test_certain_errors_do_not_break_it():
    label = np.array([0, 1])
    wrong = np.eye(2)[None, 1 - label]
    assert select(wrong, label, np.ones(1), 3).tolist() == [1]


def test_sharpening_is_the_best_common_factor():
    """Three models that each know a third of the columns: their mean is too careful."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 400)
    logits = 2 * np.eye(3)[label] + rng.normal(size=(3, 400, 3))
    scores, counts = log_softmax(logits, axis=2), np.array([2, 0, 3])
    factor = ensemble.sharpening(scores, counts, label)
    share = counts / 5

    def loss(factor):
        mean = np.einsum('m,mnc->nc', share, np.exp(log_softmax(factor * scores, axis=2)))
        return -np.log(mean[np.arange(400), label]).mean()

    grid = np.exp(np.linspace(-1.5, 1.5, 301))
    losses = [400 * loss(one) + (np.log(one) / 0.5) ** 2 / 2 for one in grid]
    assert factor == pytest.approx(grid[np.argmin(losses)], rel=0.02)
    assert factor > 1.1
    assert loss(factor) < loss(1.0)


def test_a_mean_without_mistakes_is_not_made_sure_of_everything():
    label = np.arange(30) % 3
    scores = log_softmax(4 * np.eye(3)[label], axis=1)[None]
    assert 1 < ensemble.sharpening(scores, np.array([1]), label) < 1.6


def test_nothing_is_sharpened_without_need():
    label = np.array([0, 1, 0, 1])
    scores = np.log(np.full((1, 4, 2), 0.5))
    assert ensemble.sharpening(scores, np.array([1]), label) == 1

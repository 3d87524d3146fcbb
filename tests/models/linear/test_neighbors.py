"""Nearest class mean and nearest neighbors by cosine similarity, against NumPy and scikit-learn."""

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

from tlflax.models.linear import neighbors


def make_features(n=70, d=9, seed=0):
    rng = np.random.default_rng(seed)
    label = (np.arange(n) % 3).astype(np.int32)
    return (rng.normal(size=(n, d)) + 2 * np.eye(3, d)[label]).astype(np.float32), label


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_class_means():
    x, label = make_features()
    means = neighbors.class_means(x, label, 4)
    expected = unit(np.stack([unit(x)[label == c].mean(0) for c in range(3)]))
    np.testing.assert_allclose(means[:3], expected, atol=1e-6)
    assert not means[3].any()


def test_class_means_without_each_fold():
    x, label = make_features()
    fold = np.arange(70) // 3 % 5 - 1
    scores = neighbors.class_mean_scores(x, label, 3, fold)
    assert np.isnan(scores[fold < 0]).all()
    for held in range(4):
        out = fold == held
        expected = unit(x[out]) @ neighbors.class_means(x[~out], label[~out], 3).T
        np.testing.assert_allclose(scores[out], expected, atol=1e-6)


def test_neighbors_are_those_of_scikit_learn(monkeypatch):
    monkeypatch.setattr(neighbors, '_CHUNK', 32)
    x, label = make_features()
    fold = np.arange(70) // 3 % 5
    scores = neighbors.neighbor_scores(x, x, label, 3, 7, fold, fold)
    for held in range(5):
        out = fold == held
        model = KNeighborsClassifier(
            7, metric='cosine', algorithm='brute', weights=lambda d: np.exp((1 - d) / 0.07)
        )
        expected = model.fit(x[~out], label[~out]).predict_proba(x[out])
        np.testing.assert_allclose(np.exp(scores[out]), expected, atol=1e-4)


def test_all_rows_vote_where_there_are_few():
    x, label = make_features(5)
    scores = neighbors.neighbor_scores(x[:2], x, label, 3, 20)
    np.testing.assert_allclose(np.exp(scores).sum(1), 1, rtol=1e-5)
    assert scores.argmax(1).tolist() == label[:2].tolist()
    assert neighbors.neighbor_scores(x[:0], x, label, 3, 20).shape == (0, 3)

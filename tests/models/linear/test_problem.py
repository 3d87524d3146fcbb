"""Linear models on standardized rows: moments without the fold, and kernels of raw rows."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from tlflax.models.linear import logistic_regression, ridge
from tlflax.models.linear.problem import prepare
from tlflax.models.linear.representations import Part


def make_features(n=60, d=11, seed=0):
    rng = np.random.default_rng(seed)
    label = (np.arange(n) % 3).astype(np.int32)
    x = rng.normal(size=(n, d)) * np.logspace(-1, 2, d) + 5
    x[:, :3] += 2 * np.eye(3)[label] * np.logspace(-1, 2, d)[:3]
    x[:, 4] = 7  # constant: its deviation counts as one
    return x.astype(np.float32), label, np.arange(n) // 3 % 4


@pytest.mark.parametrize('d', [11, 200])  # more rows than columns, and fewer
def test_ridge_on_standardized_rows_is_that_of_scikit_learn(d):
    x, label, fold = make_features(d=d)
    x = np.concatenate([x, x], 1)  # the part is not all of the features
    problem = prepare((Part(0, d, 'standard', 0.5),), x, label, 3, fold)
    (found,) = problem.cross_validate(ridge.cross_validate, [0.1])
    for held in range(4):
        out = fold == held
        scaler = StandardScaler().fit(x[~out, :d].astype(np.float64))
        rows = 0.5 * scaler.transform(x[:, :d].astype(np.float64))
        square = (rows[~out] ** 2).sum() + (rows[out] ** 2).sum()
        scale = square / len(x)  # strengths are relative to all rows, as normalized here
        model = Ridge(alpha=0.1 * scale * len(x)).fit(rows[~out], np.eye(3)[label[~out]])
        np.testing.assert_allclose(found.held_out[out], model.predict(rows[out]), atol=2e-3)
    kernel, bias = problem.linear(x, found)
    scaler = StandardScaler().fit(x[:, :d].astype(np.float64))
    rows = 0.5 * scaler.transform(x[:, :d].astype(np.float64))
    scale = (rows**2).sum() / len(x)
    model = Ridge(alpha=0.1 * scale * len(x)).fit(rows, np.eye(3)[label])
    np.testing.assert_allclose(0.5 * x[:, :d] @ kernel + bias, model.predict(rows), atol=2e-3)


def test_logistic_regression_on_standardized_rows_is_that_of_scikit_learn():
    x, label, fold = make_features()
    problem = prepare((Part(0, 11, 'standard'),), x, label, 3, fold)
    (found,) = problem.cross_validate(logistic_regression.cross_validate, [0.01])
    for held in range(4):
        out = fold == held
        rows = StandardScaler().fit(x[~out].astype(np.float64)).transform(x.astype(np.float64))
        scale = (rows**2).sum() / len(x)
        model = LogisticRegression(C=1 / (0.01 * scale * (~out).sum()), tol=1e-8, max_iter=5000)
        expected = model.fit(rows[~out], label[~out]).decision_function(rows[out])
        scores = found.held_out[out]
        scores = scores - scores.mean(1, keepdims=True)
        np.testing.assert_allclose(scores, expected - expected.mean(1, keepdims=True), atol=5e-2)

"""Classification metrics against scikit-learn."""

import numpy as np
import pytest
import sklearn.metrics

from tlflax import metrics


@pytest.mark.parametrize('seed', range(5))
def test_metrics_are_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    labels = rng.choice(4, 60, p=[0.6, 0.3, 0.1, 0.0])  # one class without examples
    probabilities = rng.dirichlet(np.ones(4), 60)
    predicted = probabilities.argmax(-1)
    names = list('abcd')
    result = metrics.summary(labels, probabilities, names)
    matrix = sklearn.metrics.confusion_matrix(labels, predicted, labels=range(4))
    np.testing.assert_array_equal(result['confusion_matrix'], matrix)
    theirs = sklearn.metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(4), zero_division=0
    )
    for i, name in enumerate(names):
        row = result['per_class'][name]
        ours = [row['precision'], row['recall'], row['f1'], row['num_examples']]
        np.testing.assert_allclose(ours, [column[i] for column in theirs])
    present = sorted(set(labels))
    assert result['balanced_accuracy'] == pytest.approx(
        sklearn.metrics.recall_score(labels, predicted, labels=present, average='macro')
    )
    assert result['macro_f1'] == pytest.approx(
        sklearn.metrics.f1_score(labels, predicted, labels=present, average='macro')
    )

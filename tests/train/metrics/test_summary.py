"""Classification metrics against scikit-learn, SciPy and definitions written out."""

import collections
import json
import math
import tracemalloc
import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from tlflax.train.metrics.counts import ClassCounts, by_class
from tlflax.train.metrics.proportions import wilson_interval
from tlflax.train.metrics.scores import calibration_error, in_top
from tlflax.train.metrics.summary import summary
from tlflax.train.metrics.table import format_table


def random_case(seed):
    """Labels and probabilities: rare and missing classes, ties, certainty, one class alone."""
    rng = np.random.default_rng(seed)
    classes, n = int(rng.integers(2, 9)), int(rng.integers(1, 80))
    prior = rng.dirichlet(np.full(classes, 0.5)) * (rng.random(classes) < 0.8)
    prior = prior / prior.sum() if prior.sum() else np.eye(classes)[0]
    labels = rng.choice(classes, n, p=prior)
    probabilities = rng.dirichlet(np.ones(classes), n)
    if seed % 3 == 1:  # ties of every kind
        probabilities = np.round(probabilities * 4) / 4
    if seed % 3 == 2:  # certain, and all the same in half of the examples
        probabilities = np.eye(classes)[rng.integers(0, classes, n)]
        probabilities[::2] = 1 / classes
    return labels, probabilities.astype(np.float32), [f'c{i}' for i in range(classes)]


@pytest.mark.parametrize('seed', range(30))
def test_metrics_are_scikit_learns(seed):
    labels, probabilities, names = random_case(seed)
    predicted, every = probabilities.argmax(-1), range(len(names))
    result = summary(labels, probabilities, names)
    matrix = sklearn.metrics.confusion_matrix(labels, predicted, labels=every)
    np.testing.assert_array_equal(result['confusion_matrix'], matrix)
    theirs = sklearn.metrics.precision_recall_fscore_support(
        labels, predicted, labels=every, zero_division=0
    )
    for i, name in enumerate(names):
        row = result['per_class'][name]
        ours = [row['precision'], row['recall'], row['f1'], row['num_examples']]
        np.testing.assert_allclose(ours, [column[i] for column in theirs])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of classes that are predicted and have no examples
        balanced = sklearn.metrics.balanced_accuracy_score(labels, predicted)
    assert result['balanced_accuracy'] == pytest.approx(balanced)
    present = sorted(set(labels))
    assert result['macro_f1'] == pytest.approx(
        sklearn.metrics.f1_score(labels, predicted, labels=present, average='macro')
    )
    recalls = sklearn.metrics.recall_score(labels, predicted, labels=present, average=None)
    assert result['worst_recall'] == pytest.approx(recalls.min())


@pytest.mark.parametrize('seed', range(30))
def test_areas_are_scikit_learns(seed):
    """Classes without examples, or with all of them, are left out."""
    labels, probabilities, names = random_case(seed)
    result, areas = summary(labels, probabilities, names), []
    for i, name in enumerate(names):
        ours, positive = result['per_class'][name]['auroc'], labels == i
        if positive.any() and not positive.all():
            areas.append(sklearn.metrics.roc_auc_score(positive, probabilities[:, i]))
            assert ours == pytest.approx(areas[-1], abs=1e-12)
        else:
            assert ours is None
    assert result['macro_auroc'] == (pytest.approx(np.mean(areas)) if areas else None)


def test_macro_area_is_scikit_learns_one_against_rest():
    rng = np.random.default_rng(0)
    labels, probabilities = rng.integers(0, 5, 200), rng.dirichlet(np.ones(5), 200)
    theirs = sklearn.metrics.roc_auc_score(labels, probabilities, multi_class='ovr')
    ours = summary(labels, probabilities, list('abcde'))['macro_auroc']
    assert ours == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize('seed', range(30))
def test_calibration_error_is_its_definition(seed):
    labels, probabilities, _ = random_case(seed)
    confidence = probabilities.max(1).astype(float)
    right = probabilities.argmax(1) == labels
    expected = 0.0
    for m in range(1, 16):
        inside = (confidence > (m - 1) / 15) & (confidence <= m / 15)
        if inside.any():
            gap = abs(right[inside].mean() - confidence[inside].mean())
            expected += inside.mean() * gap
    assert calibration_error(labels, probabilities) == pytest.approx(expected, abs=1e-9)


def test_calibration_error_of_known_cases():
    certain = np.eye(2)[[0, 1, 0, 1]]
    assert calibration_error(np.array([0, 1, 0, 1]), certain) == 0
    assert calibration_error(np.array([1, 0, 1, 0]), certain) == 1
    half = np.full((4, 2), 0.5)
    assert calibration_error(np.array([0, 0, 1, 1]), half) == 0
    assert math.isnan(calibration_error(np.array([0]), np.full((1, 2), math.nan)))


@pytest.mark.parametrize('seed', range(30))
@pytest.mark.parametrize('k', [1, 2, 5])
def test_top_accuracy_is_scikit_learns(seed, k):
    labels, probabilities, names = random_case(seed)
    k = min(k, len(names) - 1)
    # scikit-learn lets ties go to higher labels: turn the classes round.
    flipped = len(names) - 1 - labels, probabilities[:, ::-1]
    flipped_scores = flipped[1] if len(names) > 2 else flipped[1][:, 1] > 0.5
    ours = in_top(labels, probabilities, k).mean()
    if len(names) > 2:
        theirs = sklearn.metrics.top_k_accuracy_score(
            flipped[0], flipped_scores, k=k, labels=range(len(names))
        )
        assert ours == pytest.approx(theirs)
    if k == 1:
        assert ours == pytest.approx(np.mean(probabilities.argmax(1) == labels))


def test_top_5_is_for_more_than_5_classes():
    for classes in (5, 6):
        probabilities = np.full((3, classes), 1 / classes)
        result = summary(np.array([0, 1, 4]), probabilities, list('abcdef')[:classes])
        assert ('top5_accuracy' in result) == (classes > 5)


@pytest.mark.parametrize(('right', 'n'), [(0, 1), (1, 1), (0, 50), (50, 50), (7, 9), (290, 297)])
def test_interval_is_scipys(right, n):
    theirs = scipy.stats.binomtest(right, n).proportion_ci(method='wilson')
    np.testing.assert_allclose(wilson_interval(right, n), theirs, rtol=0, atol=1e-12)


def test_without_examples_means_are_nan():
    none = np.zeros(3, int)
    assert all(math.isnan(value) for value in by_class(ClassCounts(none, none, none)).values())


def test_nothing_to_evaluate():
    result = summary(np.zeros(0, int), np.zeros((0, 6), np.float32), list('abcdef'))
    assert math.isnan(result['balanced_accuracy'])
    assert math.isnan(result['expected_calibration_error'])
    assert math.isnan(result['top5_accuracy'])
    assert result['macro_auroc'] is None
    assert result['accuracy_interval'] == [0, 1]
    format_table({**result, 'accuracy': math.nan, 'loss': math.nan, 'num_examples': 0})


def test_table_shows_every_class_of_a_few():
    labels, probabilities = np.array([0, 0, 1]), np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
    result = summary(labels, probabilities, ['red', 'yellow', 'green'][:2])
    table = format_table({**result, 'accuracy': 2 / 3, 'loss': 0.5, 'num_examples': 3})
    lines = table.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ['class', 'red', 'yellow']
    assert lines[1].endswith('1.0000  0.5000 (0.0945 to 0.9055)  0.6667  0.5000         2')
    assert lines[3] == 'most confused: 1 red as yellow'
    assert lines[4].split()[:2] == ['3', 'images']
    assert lines[5] == 'accuracy           0.6667 (0.2077 to 0.9385)'
    assert lines[6].startswith('loss               0.5000 (')
    assert lines[7].startswith('balanced accuracy  0.7500 (')
    assert lines[-1].startswith('calibration error  ')


def confusion_pairs(labels, predicted):
    """The mistakes as (count, true, predicted), the most frequent first, then by class."""
    found = collections.Counter(zip(labels.tolist(), predicted.tolist(), strict=True))
    pairs = [(count, *pair) for pair, count in found.items() if pair[0] != pair[1]]
    return sorted(pairs, key=lambda pair: (-pair[0], *pair[1:]))


def test_the_most_frequent_mistakes_come_first():
    rng = np.random.default_rng(3)
    labels, predicted = rng.integers(0, 4, (2, 300))
    result = summary(labels, np.eye(4)[predicted], list('abcd'))
    (line,) = [
        line
        for line in format_table(
            {**result, 'accuracy': 0.3, 'loss': 1.0, 'num_examples': 300}
        ).splitlines()
        if line.startswith('most confused')
    ]
    expected = confusion_pairs(labels, predicted)[:5]
    assert line == 'most confused: ' + ', '.join(
        f'{count} {"abcd"[true]} as {"abcd"[other]}' for count, true, other in expected
    )
    right = summary(labels, np.eye(4)[labels], list('abcd'))
    assert 'confused' not in format_table(
        {**right, 'accuracy': 1.0, 'loss': 0.0, 'num_examples': 300}
    )


def test_ten_thousand_classes():
    """Little memory beyond the probabilities, all classes in JSON, the worst 20 in the table."""
    rng = np.random.default_rng(0)
    classes, n = 10_000, 400
    labels = np.repeat(rng.permutation(classes)[: n // 2], 2)
    probabilities = rng.random((n, classes), np.float32)
    probabilities[np.arange(n), labels] += np.where(np.arange(n) < 360, 1, 0)
    probabilities /= probabilities.sum(1, keepdims=True)
    names = [f'class {i}' for i in range(classes)]
    tracemalloc.start()
    result = summary(labels, probabilities, names)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80e6  # the full matrix would be 800 MB
    assert result['top5_accuracy'] >= 0.9
    assert result['worst_recall'] == 0
    assert len(json.loads(json.dumps(result))['per_class']) == classes
    cells = result['confusion_matrix']
    predicted = probabilities.argmax(1)
    assert sum(cells['count']) == n
    assert set(zip(cells['true'], cells['predicted'], strict=True)) == set(
        zip(labels.tolist(), predicted.tolist(), strict=True)
    )
    table = format_table({**result, 'accuracy': 0.9, 'loss': 0.5, 'num_examples': n})
    lines = table.splitlines()
    assert len(lines) == 30
    worst = confusion_pairs(labels, predicted)
    assert lines[21] == 'most confused: ' + ', '.join(
        f'{count} class {true} as class {other}' for count, true, other in worst[:5]
    )
    assert '20 of lowest recall, of 10000' in lines[0]
    shown = [float(line.split()[3]) for line in lines[1:21]]
    assert shown == [0.0] * 20

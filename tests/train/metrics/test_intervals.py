"""Intervals of metrics against bootstraps written out, SciPy's, and known coverage."""

import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from tlflax.train.metrics import areas, bootstrap, resampling
from tlflax.train.metrics.counts import ClassCounts, by_class
from tlflax.train.metrics.intervals import class_intervals, intervals
from tlflax.train.metrics.proportions import share_intervals, wilson_interval
from tlflax.train.metrics.scores import calibration_error, cross_entropies
from tlflax.train.metrics.summary import summary

NAMES = ('loss', 'expected_calibration_error', 'balanced_accuracy', 'macro_f1', 'macro_auroc')


def case(n, classes, seed=0, sharpness=1.0):
    """Labels, of which later ones are rarer, and probabilities that know something of them."""
    rng = np.random.default_rng(seed)
    labels = (classes * rng.random(n) ** 1.5).astype(int)
    scores = sharpness * (rng.normal(size=(n, classes)) + 1.5 * np.eye(classes)[labels])
    probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    return labels, np.round(probabilities, 3).astype(np.float32)  # with ties


def area(own, scores):
    """The share of pairs in which the example of the class has the higher score."""
    ours, others = scores[own][:, None], scores[~own]
    return ((ours > others) + 0.5 * (ours == others)).mean()


def written_out(labels, probabilities):
    """The metrics of one resample."""
    predicted, classes = probabilities.argmax(1), probabilities.shape[1]
    counted = (labels[labels == predicted], labels, predicted)
    means = by_class(ClassCounts(*(np.bincount(of, minlength=classes) for of in counted)))
    found = [
        area(labels == label, probabilities[:, label])
        for label in set(labels)
        if not (labels == label).all()
    ]
    return [
        cross_entropies(labels, probabilities).mean(),
        calibration_error(labels, probabilities),
        means['balanced_accuracy'],
        means['macro_f1'],
        np.mean(found) if found else math.nan,
    ]


@pytest.mark.parametrize(('n', 'classes'), [(1, 2), (4, 3), (40, 3), (60, 9), (300, 2)])
def test_metrics_of_resamples_are_those_of_images_drawn(n, classes):
    labels, probabilities = case(n, classes)
    times = next(resampling.resamples(np.arange(n)))[:25]
    statistics = [
        bootstrap._loss_and_calibration(labels, probabilities),
        bootstrap._class_means(labels, probabilities.argmax(1)),
        areas.resampled_macro_auroc(labels, probabilities),
    ]
    ours = np.concatenate([statistic(times) for statistic in statistics], axis=1)
    for row, one in zip(ours, times, strict=True):
        drawn = np.repeat(np.arange(n), one.astype(int))
        assert len(drawn) == n
        np.testing.assert_allclose(row, written_out(labels[drawn], probabilities[drawn]), atol=1e-5)


def test_intervals_are_those_of_a_bootstrap_written_out():
    labels, probabilities = case(150, 3, seed=1)
    rng = np.random.default_rng(5)
    drawn = rng.integers(0, 150, (1500, 150))
    values = np.array([written_out(labels[rows], probabilities[rows]) for rows in drawn])
    bias = values[:, 1].mean() - calibration_error(labels, probabilities)
    values[:, 1] -= 2 * bias
    ours = intervals(labels, probabilities, np.arange(150))
    for name, column in zip(NAMES, values.T, strict=True):
        theirs = np.quantile(column, [0.025, 0.975])
        np.testing.assert_allclose(ours[name], theirs, atol=0.08 * (theirs[1] - theirs[0]))


def test_loss_has_scipys_interval():
    labels, probabilities = case(200, 4, seed=2)
    losses = cross_entropies(labels, probabilities)
    theirs = scipy.stats.bootstrap(
        (losses,), np.mean, method='percentile', n_resamples=10_000, rng=np.random.default_rng(1)
    ).confidence_interval
    ours = intervals(labels, probabilities, np.arange(200))['loss']
    np.testing.assert_allclose(ours, theirs, atol=0.03 * (theirs.high - theirs.low))


@pytest.mark.parametrize('sharpness', [0.3, 2.0])
def test_first_order_areas_are_the_exact_ones_for_many_images(sharpness, monkeypatch):
    labels, probabilities = case(600, 4, sharpness=sharpness)
    times = next(resampling.resamples(np.arange(600)))
    first_order = areas.resampled_macro_auroc(labels, probabilities)(times)[:, 0]
    monkeypatch.setattr(areas, '_EXACT', 600)
    exact = areas.resampled_macro_auroc(labels, probabilities)(times)[:, 0]
    assert np.abs(first_order - exact).max() < 0.6 * exact.std()
    np.testing.assert_allclose(first_order.std(), exact.std(), rtol=0.05)
    assert np.corrcoef(first_order, exact)[0, 1] > 0.99


def test_first_order_area_has_the_variance_of_delong():
    labels, probabilities = case(80, 2, sharpness=0.7)
    ours, influences = areas._influences(labels, probabilities)
    scores, own = probabilities[:, 1].astype(float), labels == 1
    wins = (scores[own][:, None] > scores[~own]) + 0.5 * (scores[own][:, None] == scores[~own])
    delong = np.var(wins.mean(1)) / own.sum() + np.var(wins.mean(0)) / (~own).sum()
    assert ours == pytest.approx(sklearn.metrics.roc_auc_score(own, scores))
    assert influences.mean() == pytest.approx(0, abs=1e-12)
    assert (influences**2).mean() / 80 == pytest.approx(delong)  # of both classes: one area


def test_classes_have_wilsons_intervals_and_f1_follows():
    labels, probabilities = case(120, 4, seed=3)
    predicted = probabilities.argmax(1)
    ours = class_intervals(labels, predicted, np.arange(120), 5)
    for label in range(4):
        both = int(((labels == label) & (predicted == label)).sum())
        true, named = int((labels == label).sum()), int((predicted == label).sum())
        assert ours['recall'][label].tolist() == pytest.approx(wilson_interval(both, true))
        assert ours['precision'][label].tolist() == pytest.approx(wilson_interval(both, named))
        shares = np.array(wilson_interval(both, true + named - both))
        np.testing.assert_allclose(ours['f1'][label], 2 * shares / (1 + shares))
    for bounds in ours.values():
        assert bounds[4].tolist() == [0, 1]  # nothing is known of a class without images


def test_f1_has_about_the_interval_of_its_bootstrap():
    labels, probabilities = case(600, 3, seed=4)
    predicted, rng = probabilities.argmax(1), np.random.default_rng(0)
    drawn = rng.integers(0, 600, (2000, 600))
    either = ((labels == 1).astype(int) + (predicted == 1))[drawn].sum(1)
    values = 2 * ((labels == 1) & (predicted == 1))[drawn].sum(1) / either
    theirs = np.quantile(values, [0.025, 0.975])
    ours = class_intervals(labels, predicted, np.arange(600), 3)['f1'][1]
    np.testing.assert_allclose(ours, theirs, atol=0.15 * (theirs[1] - theirs[0]))


def test_shares_of_units_cover_as_often_as_they_say():
    """20 units of 10 cases that agree for the most part: Wilson's own interval covers half."""
    rng = np.random.default_rng(0)
    unit, kind = np.repeat(np.arange(20), 10), np.zeros(200, int)
    covered = naive = 0
    for _ in range(300):
        chance = rng.choice([0.3, 0.95], 20, p=[0.3, 0.7])  # 0.755 in the mean
        right = rng.random(200) < chance[unit]
        low, high = share_intervals(right, kind, unit, 1)[0]
        covered += low <= 0.755 <= high
        low, high = wilson_interval(int(right.sum()), 200)
        naive += low <= 0.755 <= high
    assert covered >= 0.92 * 300
    assert naive <= 0.75 * 300


def test_units_that_are_all_right_count_once():
    right, kind, unit = np.ones(12, bool), np.zeros(12, int), np.repeat(np.arange(4), 3)
    assert share_intervals(right, kind, unit, 1)[0].tolist() == list(wilson_interval(4, 4))
    alone = share_intervals(right, kind, np.arange(12), 1)[0].tolist()
    assert alone == list(wilson_interval(12, 12))


def test_copies_say_nothing_new():
    """Every image three times in its unit: the intervals of one copy of each."""
    labels, probabilities = case(60, 3, seed=6)
    names = list('abc')
    thrice = [np.repeat(array, 3, axis=0) for array in (labels, probabilities)]
    copies = summary(*thrice, names, np.repeat(np.arange(60), 3).astype(str))
    apart = summary(*thrice, names)
    numbers = resampling.unit_numbers(np.arange(60).astype(str))
    order = np.argsort(numbers)
    once = summary(labels[order], probabilities[order], names)
    for name, interval in once['intervals'].items():
        np.testing.assert_allclose(copies['intervals'][name], interval, atol=0.02)
        low, high = apart['intervals'][name]
        assert high - low < 0.75 * (interval[1] - interval[0])


def test_names_of_files_and_the_order_of_images_change_nothing():
    labels, probabilities = case(50, 7, seed=7)
    digests = np.array([f'{hash((i, 3)):x}' for i in range(50)], object)
    order = np.random.default_rng(0).permutation(50)
    one = summary(labels, probabilities, list('abcdefg'), digests)
    other = summary(labels[order], probabilities[order], list('abcdefg'), digests[order])
    assert one['intervals'] == other['intervals']
    assert len({tuple(bounds) for bounds in one['intervals'].values()}) == 7
    for name, row in one['per_class'].items():
        assert row['intervals'] == other['per_class'][name]['intervals']


def test_without_images_nothing_is_known():
    found = intervals(np.zeros(0, int), np.zeros((0, 3), np.float32), np.zeros(0, int))
    assert found == {'accuracy': [0, 1], **dict.fromkeys(NAMES)}


def test_one_class_has_no_area():
    labels, probabilities = np.zeros(5, int), np.full((5, 2), 0.5, np.float32)
    found = intervals(labels, probabilities, np.arange(5))
    assert found['macro_auroc'] is None
    assert found['loss'] == pytest.approx([math.log(2)] * 2)


def test_many_images_take_fewer_resamples(monkeypatch):
    monkeypatch.setattr(resampling, '_DRAWS', 200_000)
    count = {n: sum(map(len, resampling.resamples(np.arange(n)))) for n in (10, 100, 1000)}
    assert count == {10: 10_000, 100: 2_000, 1000: 1_000}

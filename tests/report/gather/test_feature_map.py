"""The map of features: which images it shows, where it puts them, and that it never changes."""

import dataclasses

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from tlflax.data.table import ImageTable
from tlflax.report.gather import feature_map
from tlflax.report.gather.feature_map import Images


def images(split, counts, *, seed=0, width=20, wrong=(), names=''):
    """Clusters of vectors, one for each class."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    n = len(labels)
    digests = np.array([f'{rng.integers(2**62):064x}' for _ in range(n)], object)
    table = ImageTable(
        root='/x',
        paths=np.array([f'/x/{names}{row:04}.png' for row in range(n)], object),
        labels=labels,
        class_names=tuple('abcdefgh'[: len(counts)]),
        digests=digests,
        plain_jpeg=np.ones(n, bool),
    )
    centers = np.random.default_rng(9).normal(0, 5, (len(counts), width))
    vectors = (centers[labels] + rng.normal(size=(n, width))).astype(np.float32)
    return Images(split, table, vectors, np.isin(np.arange(n), wrong))


@pytest.fixture(scope='module')
def splits():
    return [images('train', (50, 30, 3)), images('validation', (20, 9, 4), seed=1, wrong=(3, 25))]


def test_classes_are_clusters(splits):
    points, note = feature_map.feature_map(splits)
    assert note == (
        't-SNE (van der Maaten & Hinton 2008) of all 116 images, from 20 principal components of '
        'their features, which hold 100% of the variance.'
    )
    places = np.array([(point.x, point.y) for point in points])
    assert 0 <= places.min() <= places.max() <= 1
    assert (places.max(0) - places.min(0)).max() == pytest.approx(1)
    labels = [point.label for point in points]
    near = KNeighborsClassifier(2).fit(places, labels)  # itself and another
    assert near.score(places, labels) > 0.95
    assert {(p.split, p.path) for p in points if p.wrong} == {
        ('validation', '0003.png'),
        ('validation', '0025.png'),
    }
    for one in splits:
        shown = {point.path: point.label for point in points if point.split == one.split}
        paths = [path.removeprefix('/x/') for path in one.table.paths]
        assert shown == dict(zip(paths, one.table.labels.tolist(), strict=True))


def test_a_part_shows_all_classes_and_all_mistakes(splits):
    points, note = feature_map.feature_map(splits, most=30)
    assert len(points) == 30
    assert 'of 30 of 116 images' in note
    assert sum(point.wrong for point in points) == 2
    counts = {}
    for point in points:
        key = point.split, point.label
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 6
    assert counts['train', 0] == pytest.approx(50 * 28 / 116, abs=2)
    assert counts['train', 2] == 1


def test_the_same_input_makes_the_same_map(splits, monkeypatch):
    first = feature_map.feature_map(splits, most=60)
    with threadpool_limits(2):
        assert feature_map.feature_map(splits, most=60) == first
    with threadpool_limits(1):
        assert feature_map.feature_map(splits, most=60) == first


def test_names_of_files_change_nothing(splits):
    before, _ = feature_map.feature_map(splits, most=60)
    renamed = []
    for one in splits:
        order = np.random.default_rng(4).permutation(len(one.table))  # as other names would sort
        order = order[np.argsort(one.table.labels[order], kind='stable')]
        table = one.table.select(order)
        paths = np.array([f'/x/new{n:04}.png' for n in range(len(order))], object)
        table = dataclasses.replace(table, paths=paths)
        renamed.append(Images(one.split, table, one.vectors[order], one.wrong[order]))
    after, _ = feature_map.feature_map(renamed, most=60)
    assert [dataclasses.replace(point, path='') for point in after] == [
        dataclasses.replace(point, path='') for point in before
    ]
    assert {point.path for point in before}.isdisjoint(point.path for point in after)


@pytest.mark.parametrize('shape', [(60, 12), (30, 400)], ids=['tall', 'wide'])
def test_components_are_those_of_scikit_learn(shape):
    x = np.random.default_rng(0).normal(size=shape) * np.linspace(1, 3, shape[1])
    model = PCA(8, svd_solver='full').fit(x)
    theirs = model.transform(x)
    theirs *= np.sign(np.take_along_axis(theirs, np.abs(theirs).argmax(0)[None], 0))
    values, shares = feature_map.principal_components(x, 8)
    np.testing.assert_allclose(values, theirs, atol=1e-8)
    np.testing.assert_allclose(shares, model.explained_variance_ratio_, rtol=1e-9)


def test_few_images_are_placed_by_their_components():
    one = images('train', (4, 4), width=5)
    points, note = feature_map.feature_map([one])
    share = PCA(2).fit(one.vectors.astype(float)).explained_variance_ratio_.sum()
    assert note == (
        'The first two principal components of the features of all 8 images, which hold '
        f'{share:.0%} of their variance.'
    )
    places = np.array([(point.x, point.y) for point in points])
    order = np.lexsort((one.table.digests.astype(str), one.table.labels))
    expected = PCA(2).fit_transform(one.vectors.astype(float))[order]
    distances = [np.linalg.norm(x[:, None] - x, axis=-1) for x in (places, expected)]
    scale = distances[1].max() / distances[0].max()
    np.testing.assert_allclose(distances[0] * scale, distances[1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('n', [0, 1, 2, 25])
def test_images_without_differences(n):
    one = images('train', (n,))
    one = one._replace(vectors=np.ones((n, 4), np.float32))
    points, note = feature_map.feature_map([one])
    assert [(point.x, point.y) for point in points] == [(0.5, 0.5)] * n
    assert ('no images' in note) == (n == 0)


def test_vectors_of_one_direction():
    one = images('train', (12,), width=1)
    points, note = feature_map.feature_map([one])
    assert 'from 1 principal components' in note
    assert all(0 <= point.x <= 1 and 0 <= point.y <= 1 for point in points)

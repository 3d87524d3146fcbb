"""The nearest images: against NumPy and scikit-learn, and the commands that print and save them."""

import csv
import io
import json

import numpy as np
import pytest
from helpers import make_folders, run_module, toy_config
from sklearn.neighbors import NearestNeighbors

import tlflax
from tlflax.inference import embeddings, nearest
from tlflax.train import train_and_evaluate
from tlflax.utils.errors import UserError


@pytest.mark.parametrize('block', [2**22, 600, 1])
@pytest.mark.parametrize(('n', 'k'), [(301, 7), (5, 9), (40, 40)])
def test_nearest_are_those_of_numpy_and_scikit_learn(monkeypatch, block, n, k):
    monkeypatch.setattr(nearest, '_BLOCK', block)
    rng = np.random.default_rng(n)
    vectors = rng.lognormal(size=(n, 12)).astype(np.float32) * rng.uniform(1e-3, 1e3, (n, 1))
    queries = rng.lognormal(size=(23, 12)).astype(np.float32)
    found = nearest.nearest(queries, vectors.astype(np.float32), k)
    x, y = queries.astype(np.float64), vectors.astype(np.float32).astype(np.float64)
    cosine = x @ y.T / np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1))
    order = np.argsort(-cosine, axis=1)[:, :k]
    np.testing.assert_array_equal(found.rows, order)
    expected = np.take_along_axis(cosine, order, 1)
    np.testing.assert_allclose(found.similarities, expected, rtol=1e-12)
    theirs = NearestNeighbors(n_neighbors=min(n, k), metric='cosine').fit(y).kneighbors(x)
    np.testing.assert_allclose(1 - found.similarities, theirs[0], atol=1e-12)
    np.testing.assert_array_equal(found.rows, theirs[1])


def test_memory_is_bounded_by_blocks(monkeypatch):
    monkeypatch.setattr(nearest, '_BLOCK', 1000)
    largest, real = [0], np.take_along_axis

    def watched(array, *rest):
        largest[0] = max(largest[0], array.size)
        return real(array, *rest)

    monkeypatch.setattr(np, 'take_along_axis', watched)
    rng = np.random.default_rng(0)
    found = nearest.nearest(rng.random((90, 10)), rng.random((3000, 10)), 2)
    assert found.rows.shape == (90, 2)
    assert 0 < largest[0] <= 1000 + 2 * 90


def test_zeros_and_copies():
    vectors = np.array([[0, 0], [3, 0], [1, 0], [0, 2], [5, 0]], np.float32)
    found = nearest.nearest(np.array([[2, 0], [0, 0]], np.float32), vectors, 5)
    assert found.rows.tolist() == [[1, 2, 4, 0, 3], [0, 1, 2, 3, 4]]  # equal ones by their rows
    assert found.similarities.tolist() == [[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]]
    assert nearest.nearest(np.zeros((0, 2)), vectors, 3).rows.shape == (0, 3)
    assert nearest.nearest(np.zeros((1, 2)), vectors[:0], 3).rows.shape == (1, 0)


# The commands


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder with images, a cache of its own and a finished run."""
    root = tmp_path_factory.mktemp('nearest')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TLFLAX_CACHE', str(root / 'cache'))
        make_folders(root / 'Train', 6, seed=1)
        make_folders(root / 'Test', 2, seed=2)
        train_and_evaluate(toy_config(root), root / 'run')
    return root


def features(place, *arguments):
    return run_module('features', *map(str, arguments), TLFLAX_CACHE=str(place / 'cache'))


@pytest.fixture(scope='module')
def expected(place):
    """The neighbors of each validation image, by NumPy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TLFLAX_CACHE', str(place / 'cache'))
        trained = tlflax.load(place / 'run')
        paths = {name: sorted((place / name).glob('*/*.jpg')) for name in ('Train', 'Test')}
        vectors = {
            name: np.stack([vector for _, vector in embeddings.of_images(trained, of)])
            for name, of in paths.items()
        }
    unit = {name: x / np.linalg.norm(x, axis=1, keepdims=True) for name, x in vectors.items()}
    cosine = unit['Test'] @ unit['Train'].T
    return [
        (str(path), [(paths['Train'][n], row[n]) for n in np.argsort(-row)[:3]])
        for path, row in zip(paths['Test'], cosine, strict=True)
    ]


@pytest.mark.parametrize('form', nearest.FORMATS)
def test_nearest_prints_paths_classes_and_similarities(place, expected, form, tmp_path):
    broken = tmp_path / 'broken.jpg'
    broken.write_bytes(b'<html>')
    done = features(
        place,
        'nearest',
        f'--workdir={place / "run"}',
        '--k=3',
        place / 'Test',
        broken,
        f'--format={form}',
    )
    assert done.returncode == 2
    assert f'error: {broken}: is an HTML page' in done.stderr
    assert '1 of 7 files could not be read' in done.stderr.splitlines()[-1]
    found = parsed(done.stdout, form)
    assert [path for path, _ in found] == [path for path, _ in expected]
    for (_, ours), (_, theirs) in zip(found, expected, strict=True):
        assert [(path, label) for path, label, _ in ours] == [
            (str(path), path.parent.name) for path, _ in theirs
        ]
        similarities = [similarity for *_, similarity in ours]
        tolerance = 6e-5 if form == 'text' else 1e-6
        np.testing.assert_allclose(similarities, [s for _, s in theirs], atol=tolerance)


def parsed(text, form):
    """Returns what was printed: the path of each image and its (path, class, similarity)."""
    if form == 'json':
        found = map(json.loads, text.splitlines())
        return [
            (one['path'], [(n['path'], n['class'], n['similarity']) for n in one['nearest']])
            for one in found
        ]
    images = {}
    if form == 'csv':
        for line in csv.DictReader(io.StringIO(text)):
            own = images.setdefault(line['path'], [])
            own.append((line['nearest'], line['class'], float(line['similarity'])))
            assert line['rank'] == str(len(own))
        return list(images.items())
    for line in text.splitlines():
        if not line.startswith('  '):
            path = line
            images[path] = []
        else:
            near, label, similarity = line.split()
            images[path].append((near, label, float(similarity)))
    return list(images.items())


def test_save_writes_and_says_so(place, tmp_path):
    path = tmp_path / 'x.npz'
    done = features(
        place, 'save', f'--workdir={place / "run"}', '--split=validation', f'--output={path}'
    )
    assert (done.returncode, done.stdout) == (0, f'{path} has 16 features of each of 6 images\n')
    with np.load(path, allow_pickle=False) as file:
        assert file['features'].shape == (6, 16)
    whole = [f'--workdir={place / "run"}', '--full', f'--data={place / "Train"}']
    done = features(place, 'save', *whole, f'--output={tmp_path / "y"}', '--format=parquet')
    assert done.stdout == f'{tmp_path}/y has 1024 features of each of 18 images\n'


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['nearest'], 'no --workdir is given'),
        (['nearest', 'x.jpg'], 'no --workdir is given'),
        (['nearest', '--workdir=/nowhere'], 'no image is given'),
        (['save', '--workdir=/nowhere'], '--output: no file is named'),
        (['save', 'x.jpg', '--workdir=/nowhere'], "'save x.jpg' is not an action"),
        (['save', '--workdir=/nowhere', '--output=/nowhere/x.npz'], 'there is no folder'),
        (['nearest', 'x.jpg', '--workdir=/nowhere', '--k=none'], "'none' is not a number from 1"),
        (['nearest', 'x.jpg', '--workdir=/nowhere', '--format=npz'], "'npz' is not a format"),
        (['nearest', 'x.jpg', '--workdir=/nowhere'], '/nowhere'),
        (['forget'], "'forget' is not an action"),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else '',
)
def test_mistakes_are_one_sentence(place, arguments, words):
    done = features(place, *arguments)
    assert (done.returncode, done.stdout) == (2, '')
    assert words in done.stderr.splitlines()[-1]
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize('count', ['0', '-1', '1.5', '', '²', '9999999999999'])
def test_a_count_is_a_positive_integer(count):
    with pytest.raises(UserError, match='is not a number from 1'):
        nearest.check(count, 'text')
    assert nearest.check('12', '') == (12, 'text')

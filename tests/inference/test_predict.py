"""Whatever people hand to a classifier: the same answer for the same pixels, from files or not."""

import csv
import gc
import json
import os
import subprocess
import sys
import threading
import time
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fork_server import server
from helpers import ROOT, make_folders, picture, run_module, scan_folder, small_config
from PIL import Image

import tlflax
from tlflax.config.schema import AugmentConfig
from tlflax.data.augment import sampling
from tlflax.data.images import decode
from tlflax.data.images import given as images_given
from tlflax.data.images.decode import read_image
from tlflax.data.images.format import ImageFormat
from tlflax.data.inputs import loose_images
from tlflax.data.pipeline import one_image, tf_data, without_tensorflow
from tlflax.features import programs
from tlflax.train import train_and_evaluate
from tlflax.utils.errors import UserError


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder with images, a cache of its own and two finished runs, 'cached' and 'live'."""
    root = tmp_path_factory.mktemp('predict')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TLFLAX_CACHE', str(root / 'cache'))
        make_folders(root / 'Train', 6, seed=1)
        make_folders(root / 'Test', 3, seed=2, noise=90.0)
        for name, changes in {'cached': {}, 'live': {'features__cache': 'False'}}.items():
            config = small_config(root, train__epochs=2, augment__horizontal_flip=True, **changes)
            train_and_evaluate(config, root / name)
        config = small_config(root, train__epochs=1)
        config.optim.labels = (('.*', 'all'),)
        train_and_evaluate(config, root / 'unfrozen')
    return root


@pytest.fixture(autouse=True)
def _cache(place, monkeypatch):
    monkeypatch.setenv('TLFLAX_CACHE', str(place / 'cache'))


@pytest.fixture(scope='module')
def classifier(place):
    return tlflax.load(place / 'cached')


@pytest.fixture
def photo(place):
    return place / 'Test' / 'yellow' / '001.jpg'


def numbers(predictions):
    return np.array([list(one.probabilities.values()) for one in predictions])


def test_everything_that_holds_the_pixels_of_a_photo_gives_its_answer(classifier, photo):
    expected = classifier.predict(photo)
    assert (expected[0].path, expected[0].true_class) == (str(photo), 'yellow')
    assert expected[0].probability == max(expected[0].probabilities.values())
    pixels = read_image(photo)
    given = {
        'str': str(photo),
        'list': [photo],
        'generator': (path for path in [photo]),
        'bytes': photo.read_bytes(),
        'bytearray': bytearray(photo.read_bytes()),
        'Pillow': Image.open(photo),
        'array': pixels,
        'jax': jnp.asarray(pixels),
        'batch': pixels[None],
        'list of arrays': [pixels],
        'RGBA': np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)]),
    }
    for name, value in given.items():
        found = classifier.predict(value)
        assert len(found) == 1, name
        np.testing.assert_allclose(numbers(found), numbers(expected), atol=1e-6, err_msg=name)
    floats = pixels / 255
    np.testing.assert_allclose(
        numbers(classifier.predict(floats, scale=1.0)), numbers(expected), atol=1e-6
    )
    wide = pixels.astype(np.uint16) * 257
    np.testing.assert_allclose(
        numbers(classifier.predict(wide, scale=65535)), numbers(expected), atol=1e-6
    )


def test_gray_and_transparent_images_are_those_of_files(classifier, tmp_path):
    rng = np.random.default_rng(0)
    gray, rgba = rng.integers(0, 256, (40, 30), np.uint8), rng.integers(0, 256, (40, 30, 4))
    for name, pixels in {'gray': gray, 'rgba': rgba.astype(np.uint8)}.items():
        path = tmp_path / f'{name}.png'
        Image.fromarray(pixels).save(path)
        expected = numbers(classifier.predict(path))
        for value in (pixels, Image.fromarray(pixels), Image.open(path)):
            np.testing.assert_allclose(numbers(classifier.predict(value)), expected, atol=1e-6)
    one_channel = numbers(classifier.predict(gray[..., None]))
    np.testing.assert_array_equal(one_channel, numbers(classifier.predict(gray)))


def test_orientation_of_a_pillow_image_is_applied(classifier, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture((40, 60))).save(tmp_path / 'x.jpg', exif=exif)
    from_file, opened = tmp_path / 'x.jpg', Image.open(tmp_path / 'x.jpg')
    np.testing.assert_allclose(
        numbers(classifier.predict(opened)), numbers(classifier.predict(from_file)), atol=1e-6
    )


def test_many_at_once_and_mixed_in_their_order(classifier, place, photo):
    paths = sorted((place / 'Test').rglob('*.jpg'))
    mixed = [paths[0], paths[1].read_bytes(), read_image(paths[2]), Image.open(paths[3]), *paths]
    alone = [classifier.predict(path)[0] for path in [*paths[:4], *paths]]
    found = classifier.predict(mixed)
    assert [one.path for one in found] == [str(paths[0]), '', '', '', *map(str, paths)]
    np.testing.assert_allclose(numbers(found), numbers(alone), atol=1e-5)
    batch = np.stack([read_image(path) for path in paths])
    np.testing.assert_allclose(numbers(classifier.predict(batch)), numbers(alone[4:]), atol=1e-5)
    folder = classifier.predict(place / 'Test')
    assert [one.path for one in folder] == list(map(str, paths))
    np.testing.assert_allclose(numbers(folder), numbers(alone[4:]), atol=1e-5)


@pytest.mark.parametrize(
    'empty',
    [[], (), np.zeros((0, 32, 32, 3), np.uint8), iter([])],
    ids=['list', 'tuple', 'batch', 'iterator'],
)
def test_nothing_gives_nothing(classifier, empty):
    assert classifier.predict(empty) == []


@pytest.mark.parametrize(
    ('value', 'words'),
    [
        (np.zeros((8, 8, 3)), r'image 1: an array of float64.*scale=1\.0'),
        (np.zeros((8, 8, 3), np.int64), 'image 1: an array of int64.*scale='),
        (np.zeros((8, 8, 3), bool), 'image 1: an array of bool'),
        (np.zeros((3, 8, 8), np.uint8), 'move the channels to the last axis'),
        (np.zeros((8, 8, 2), np.uint8), r'shape \[8, 8, 2\].*give \[h, w, 3\]'),
        (np.zeros((0, 8, 3), np.uint8), r'shape \[0, 8, 3\]'),
        (np.zeros(8, np.uint8), r'shape \[8\]'),
        (np.zeros((2, 8, 8, 3), np.float32), 'image 1, number 1: an array of float32'),
        (b'no image', 'image 1: is '),
        (b'', 'image 1: is empty'),
        ('/nowhere/x.jpg', '/nowhere/x.jpg: no such file or folder'),
        (Image.new('F', (8, 8)), 'image 1: cannot be decoded: pixels of mode F.*mode RGB'),
    ],
)
def test_what_is_no_image_is_one_sentence(classifier, value, words):
    with pytest.raises(UserError, match=words):
        classifier.predict(value)


@pytest.mark.parametrize(
    ('value', 'words'),
    [
        (3, '3 is neither an image nor a list of them'),
        (None, 'None is neither an image nor a list of them'),
        ([[1, 2]], 'image 1: [1, 2] is not an image'),
        (['/nowhere', 5], 'image 2: 5 is not an image'),
    ],
    ids=str,
)
def test_what_no_annotation_allows_is_one_sentence_too(value, words):
    try:
        *_, error = loose_images.find(value)
    except UserError as raised:
        error = raised
    assert words in str(error)


@pytest.mark.parametrize('scale', [1.0, 255])
def test_values_outside_of_the_scale_are_refused(classifier, scale):
    for value in (-0.1, scale * 1.01, np.nan, np.inf):
        with pytest.raises(UserError, match=r'image 1: values from .* outside of 0\.\.'):
            classifier.predict(np.full((8, 8, 3), value), scale=scale)


def test_large_images_are_refused(place):
    config_limit = tlflax.load(place / 'live').config.data.max_pixels
    side = int(config_limit**0.5) + 1
    with pytest.raises(UserError, match='more than the limit of'):
        tlflax.load(place / 'live').predict(Image.new('1', (side, side)))


def test_errors_do_not_hold_up_the_rest(classifier, photo):
    found = list(classifier.predict_each([photo, b'x', '/nowhere', read_image(photo)]))
    kinds = [type(one).__name__ for one in found]
    assert kinds == ['Prediction', 'UserError', 'UserError', 'Prediction']
    np.testing.assert_allclose(numbers(found[:1]), numbers(found[3:]), atol=1e-6)


def test_results_come_before_the_images_end(classifier, photo):
    drawn = []

    def endless():
        while True:
            drawn.append(1)
            yield photo

    stream = classifier.predict_each(endless())
    assert next(stream).path == str(photo)
    assert len(drawn) <= 2 * 32
    stream.close()


def test_a_view_is_that_of_the_pipeline(tmp_path):
    (tmp_path / 'i' / 'a').mkdir(parents=True)
    (tmp_path / 'i' / 'b').mkdir()
    Image.fromarray(picture((50, 31))).save(tmp_path / 'i' / 'a' / 'x.png')
    Image.fromarray(picture((12, 20), 1)).save(tmp_path / 'i' / 'b' / 'y.png')
    table = scan_folder(tmp_path / 'i')
    cases = [
        ('pad', AugmentConfig(vertical_flip=True)),
        ('crop', AugmentConfig(right_angles=True)),
        ('stretch', AugmentConfig(crops='five', crop_fraction=0.8)),
    ]
    for resize, augment in cases:
        form = ImageFormat((16, 24) if resize != 'crop' else (16, 16), resize=resize)
        for view in sampling.test_views(augment):
            (batch,) = tf_data.eval_epoch(
                table, augment=augment, view=view, image_format=form, batch_size=2
            )
            for path, expected in zip(table.paths, batch['image'], strict=True):
                shown = one_image.show(read_image(path), view, form, augment)
                np.testing.assert_array_equal(shown, expected)


@pytest.mark.parametrize('tta', [False, True])
@pytest.mark.parametrize('run', ['cached', 'live', 'unfrozen'])
def test_predictions_are_what_evaluation_counts(place, run, tta):
    restored = tlflax.load(place / run)
    paths = sorted((place / 'Test').rglob('*.jpg'))
    found = restored.predict(paths, tta=tta)
    labels = [path.parent.name for path in paths]
    right = [one.probabilities[label] for one, label in zip(found, labels, strict=True)]
    result = restored.evaluate(tta=tta)
    assert -np.log(right).mean() == pytest.approx(result['loss'], abs=1e-5)
    assert np.mean([one.label == one.true_class for one in found]) == result['accuracy']


# What is computed


@pytest.fixture
def counting(place):
    """A classifier, and the sizes of the batches that its backbone computes from now on."""
    restored = tlflax.load(place / 'cached')
    program, calls = restored.sources.program(), []
    restored.sources._programs[0] = lambda images: calls.append(len(images)) or program(images)
    return restored, calls


def test_features_in_the_cache_are_not_computed(counting, place, tmp_path):
    restored, calls = counting
    known = sorted((place / 'Test').rglob('*.jpg'))
    restored.predict(known)
    restored.predict([known[0].read_bytes()])
    assert calls == []
    Image.fromarray(picture((30, 30))).save(tmp_path / 'new.png')
    expected = restored.predict([*known, tmp_path / 'new.png'])
    restored.predict(tmp_path / 'new.png')
    assert calls == [1, 1]
    np.testing.assert_allclose(numbers(expected[:-1]), numbers(restored.predict(known)), atol=1e-6)


def test_features_are_kept_where_wanted(counting, tmp_path):
    restored, calls = counting
    Image.fromarray(picture((30, 31), 5)).save(tmp_path / 'new.png')
    computed = restored.predict(tmp_path / 'new.png', keep_features=True)
    assert calls == [1]
    kept = restored.predict(tmp_path / 'new.png')
    assert calls == [1]
    np.testing.assert_allclose(numbers(kept), numbers(computed), atol=1e-7)
    restored.predict(tmp_path / 'new.png', tta=True, keep_features=True)
    assert calls == [1, 1]  # the mirror image alone


def test_features_are_rounded_as_they_are_stored(place, tmp_path):
    config = small_config(place, train__epochs=2, features__dtype='float16')
    train_and_evaluate(config, tmp_path / 'w')
    restored = tlflax.load(tmp_path / 'w')
    Image.fromarray(picture((30, 31), 6)).save(tmp_path / 'new.png')
    before = restored.predict(tmp_path / 'new.png', keep_features=True)
    np.testing.assert_array_equal(numbers(restored.predict(tmp_path / 'new.png')), numbers(before))


def test_one_block_is_computed_while_the_next_is_read_and_decoded(counting, photo, monkeypatch):
    restored, _ = counting
    program, computing, decoded = restored.sources._programs[0], threading.Event(), []
    read, show = decode.read_bytes, without_tensorflow.show
    waited = []

    def shown(*given):
        decoded.append(1)
        return show(*given)

    def read_bytes(path):
        if '/later/' in str(path):  # the first block is computed without waiting for these
            waited.append(computing.wait(20))
        return read(photo)

    def compute(images):
        computing.set()
        patience = time.monotonic() + 20
        while len(decoded) < 64 and time.monotonic() < patience:
            time.sleep(0.01)
        return program(images)

    monkeypatch.setattr(decode, 'read_bytes', read_bytes)
    monkeypatch.setattr(without_tensorflow, 'show', shown)
    restored.sources._programs[0] = compute
    monkeypatch.setattr(sampling, 'describe', lambda *_: 'of no cached feature')
    paths = [photo] * 32 + [photo.parent / '..' / 'later' / photo.name] * 32
    given = [images_given.file(str(path)) for path in paths]
    outputs = restored._predictor.outputs(given, [sampling.plain(restored.config.augment)])
    assert not isinstance(next(outputs), UserError)
    assert (waited, len(decoded)) == ([True] * 32, 64)
    assert len(list(outputs)) == 63


@pytest.mark.parametrize('full', [32, 256])
def test_sizes_of_batches(full):
    for n in range(600):
        sizes = list(programs.batch_sizes(n, full))
        assert set(sizes) <= {1, 8, 32, full}
        assert sizes == sorted(sizes, reverse=True)
        spare = sum(sizes) - n
        assert 0 <= spare <= max(sizes[-1] // 2 if sizes else 0, 0)
        assert sizes[:1] != [full] or 2 * n > full


def test_nothing_is_compiled_twice_and_memory_is_flat(place, tmp_path):
    restored = tlflax.load(place / 'cached')
    photos = [picture((20 + n, 30), n) for n in range(5)]

    def use(times):
        for n in range(times):
            restored.predict(photos[n % 5])

    use(10)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if 'compile' in event else None
    )
    tracemalloc.start()
    use(20)
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    use(100)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    jax.monitoring.clear_event_listeners()
    assert compiled == []
    assert grown < 100_000


# The commands


def classify(place, *arguments, **environment):
    return run_module(
        'predict', f'--workdir={place / "cached"}', *map(str, arguments), **environment
    )


@pytest.fixture
def album(place, tmp_path):
    """Folders as they are found: links, hidden and junk folders, strays, broken images."""
    root = tmp_path / 'album'
    make_folders(root, 1, seed=7)
    for name in ('.hidden', '@eaDir', 'red/__MACOSX'):
        (root / name).mkdir()
        Image.fromarray(picture((9, 9))).save(root / name / 'x.png')
    (root / 'red' / '.x.png').write_bytes(b'')
    (root / 'red' / 'notes.txt').write_text('no image')
    (root / 'red' / 'without ending').write_bytes((root / 'red' / '000.jpg').read_bytes())
    (root / 'broken.jpg').write_bytes(b'<html>')
    (root / 'green' / 'dangling.png').symlink_to('nowhere.png')
    (root / 'loop').symlink_to(root)
    (tmp_path / 'outside').mkdir()
    Image.fromarray(picture((9, 9))).save(tmp_path / 'outside' / 'linked.png')
    (root / 'more').symlink_to(tmp_path / 'outside')
    os.mkfifo(root / 'pipe.jpg')
    return root


def test_folders_are_walked_as_in_training(place, album):
    done = classify(place, album)
    assert done.returncode == 2
    shown = [line.split('  ')[0] for line in done.stdout.splitlines()]
    expected = ['green/000.jpg', 'more/linked.png', 'red/000.jpg', 'red/without ending',
                'yellow/000.jpg']  # fmt: skip
    assert shown == [str(album / path) for path in expected]
    errors = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert f'{album}/broken.jpg: is an HTML page' in errors[0]
    assert f'{album}/green/dangling.png: cannot be read' in errors[1]
    assert '2 of 7 files could not be classified' in errors[2]


def test_what_does_not_exist_or_holds_no_image_is_named_and_the_rest_is_done(
    place, photo, tmp_path
):
    (tmp_path / 'empty').mkdir()
    done = classify(place, '/nowhere.jpg', tmp_path / 'empty', photo)
    assert done.returncode == 2
    assert done.stdout.startswith(f'{photo}  ')
    assert 'error: /nowhere.jpg: no such file or folder' in done.stderr
    assert f'error: {tmp_path}/empty: no image is in this folder' in done.stderr
    assert '2 of 3 files could not be classified' in done.stderr


def test_patterns_and_lines_of_standard_input(place, photo, tmp_path):
    photos = sorted((place / 'Test').rglob('*.jpg'))
    done = classify(place, f'{place}/Test/**/00[0-1].*', '--format=csv', '--top_k=2')
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [row['path'] for row in rows] == [str(one) for one in photos if one.stem != '002']
    assert all(row['probability'] >= row['probability2'] for row in rows)
    (tmp_path / 'list').write_text(''.join(f'{one}\n' for one in photos[::-1]) + '/nowhere\n')
    with (tmp_path / 'list').open() as lines:
        arguments = [f'--workdir={place / "cached"}', '--threshold=1.0', '-']
        done = server().run('module', 'tlflax.predict', *arguments, stdin=lines, timeout=120)
    shown = [line.split('  ')[:2] for line in done.stdout.splitlines()]
    assert shown == [[str(one), 'unsure'] for one in photos[::-1]]
    assert done.returncode == 2
    assert 'error: /nowhere: no such file or folder' in done.stderr


def test_a_flag_with_a_dash_is_suggested_as_it_is_spelled(place, photo):
    done = classify(place, '--top-k=3', photo)
    assert (done.returncode, done.stdout) == (2, '')
    assert "did you mean '--top_k'?" in done.stderr
    done = classify(place, '--top_k=none', photo)
    assert (done.returncode, done.stdout) == (2, '')
    assert "--top_k: 'none' is not a whole number from 1" in done.stderr


def test_the_true_class_is_that_of_the_nearest_folder(place, photo, tmp_path):
    inner = tmp_path / 'red' / 'green' / 'night'
    inner.mkdir(parents=True)
    for path in (inner / 'x.jpg', tmp_path / 'y.jpg'):
        path.write_bytes(photo.read_bytes())
    done = classify(place, '--format=csv', photo, inner, tmp_path / 'y.jpg')
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert list(rows[0]) == ['path', 'class', 'probability', 'true_class', 'green', 'red', 'yellow']
    assert [row['true_class'] for row in rows] == ['yellow', 'green', '']
    done = classify(place, '--format=json', photo, tmp_path / 'y.jpg')
    assert [json.loads(line)['true_class'] for line in done.stdout.splitlines()] == ['yellow', None]


def test_features_are_kept_by_the_command_too(place, tmp_path):
    Image.fromarray(picture((30, 31), 8)).save(tmp_path / 'new.png')
    assert classify(place, '--keep_features', tmp_path / 'new.png').returncode == 0
    restored = tlflax.load(place / 'cached')
    restored.sources._programs[:] = [lambda images: pytest.fail('computed')]
    restored.predict(tmp_path / 'new.png')


def in_shell(command, place, **environment):
    """Runs a shell pipeline in which $PREDICT is the command; returns exit codes and output."""
    command_line = f'{sys.executable} -m tlflax.predict --workdir={place / "cached"}'
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'PREDICT': command_line, **environment}
    return subprocess.run(
        ['bash', '-c', command], capture_output=True, check=False, env=env, timeout=120
    )


def test_output_that_nobody_reads_any_more_ends_the_command(place):
    many = f'{place}/Test ' * 30
    done = in_shell(f'$PREDICT {many} | head -1; echo ${{PIPESTATUS[0]}}', place)
    lines = done.stdout.decode().splitlines()
    assert (len(lines), lines[1]) == (2, '141')
    assert done.stderr == b''


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
def test_a_full_disk_under_the_output_is_one_sentence(place):
    done = in_shell(f'$PREDICT {place}/Test > /dev/full', place)
    assert done.returncode == 2
    assert done.stderr.decode() == (
        'error: standard output cannot be written: No space left on device; give it another\n'
    )


@pytest.mark.parametrize('encoding', ['utf-8', 'latin-1', 'ascii'])
def test_names_that_the_output_cannot_encode(place, photo, tmp_path, encoding):
    for name in (b'caf\xe9.jpg', 'é→.jpg'.encode()):
        with open(os.path.join(os.fsencode(tmp_path), name), 'wb') as file:
            file.write(photo.read_bytes())
    done = in_shell(f'$PREDICT {tmp_path}', place, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b'')
    names = [line.split(b'  ')[0].rsplit(b'/', 1)[1] for line in done.stdout.splitlines()]
    escaped = {
        'utf-8': 'é→.jpg'.encode(),
        'latin-1': b'\xe9\\u2192.jpg',
        'ascii': b'\\xe9\\u2192.jpg',
    }
    assert sorted(names) == sorted([b'caf\xe9.jpg', escaped[encoding]])


def test_mistakes_are_listed_the_worst_first(place, tmp_path):
    (tmp_path / 'wrong').mkdir()
    for name in ('green', 'red', 'yellow'):  # of each class, one image under another's name
        (tmp_path / 'wrong' / name).mkdir()
        other = {'green': 'red', 'red': 'yellow', 'yellow': 'green'}[name]
        for source in (name, other):
            photo = place / 'Train' / source / '000.jpg'
            (tmp_path / 'wrong' / name / f'{source}.jpg').write_bytes(photo.read_bytes())
    file = tmp_path / 'mistakes.csv'
    done = run_module(
        'evaluate', f'--workdir={place / "cached"}', f'--data={tmp_path / "wrong"}',
        f'--mistakes={file}',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert list(rows[0]) == ['path', 'class', 'predicted', 'probability', 'loss']
    assert len(rows) == round(6 * (1 - result['accuracy']))
    losses = [float(row['loss']) for row in rows]
    assert losses == sorted(losses, reverse=True)
    restored = tlflax.load(place / 'cached')
    for row in rows:
        (found,) = restored.predict(row['path'])
        assert (found.true_class, found.label) == (row['class'], row['predicted'])
        assert found.probability == pytest.approx(float(row['probability']), abs=1e-5)
        assert -np.log(found.probabilities[row['class']]) == pytest.approx(
            float(row['loss']), abs=1e-4
        )
    total = sum(map(sum, result['confusion_matrix']))
    assert total - sum(result['confusion_matrix'][k][k] for k in range(3)) == len(rows)


def test_a_file_of_mistakes_that_cannot_be_written_is_found_before_anything_is_computed(place):
    done = run_module(
        'evaluate', f'--workdir={place / "cached"}', '--mistakes=/nowhere/mistakes.csv'
    )
    assert (done.returncode, done.stdout) == (2, '')
    sentence = "/nowhere/mistakes.csv: cannot be written: there is no folder '/nowhere'"
    assert sentence in done.stderr


def test_a_few_images_and_no_more_are_computed_without_preparation(place, tmp_path):
    """By the backbone as XLA compiles it: the same predictions but for rounding."""
    folder = tmp_path / 'new'
    folder.mkdir()
    for number in range(3):
        shown = picture((40, 30), number)
        Image.fromarray(shown).save(folder / f'{number}.png')
    fresh = tlflax.load(place / 'cached')
    few = list(fresh.predict_each(folder, no_more=True))
    assert fresh.sources._programs == []
    many = fresh.predict(folder)
    assert len(fresh.sources._programs) == 1
    np.testing.assert_allclose(numbers(few), numbers(many), rtol=1e-4)
    assert [one.label for one in few] == [one.label for one in many]


def test_features_that_are_kept_are_those_of_the_usual_program(place, tmp_path):
    Image.fromarray(picture((40, 30), 8)).save(tmp_path / 'kept.png')
    fresh = tlflax.load(place / 'cached')
    list(fresh.predict_each(tmp_path / 'kept.png', no_more=True, keep_features=True))
    assert len(fresh.sources._programs) == 1

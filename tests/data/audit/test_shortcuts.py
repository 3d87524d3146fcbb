"""Properties of files that tell the class: found where they do, and never in random properties."""

import hashlib
import json
import time
from collections import Counter

import numpy as np
import pytest
from helpers import run_module
from PIL import Image

from tlflax.data.audit import properties, shortcuts
from tlflax.data.audit.cross_validation import FOLDS, cross_validate, divide
from tlflax.data.audit.properties import PROPERTIES, Values
from tlflax.data.images.files import Entry, ScannedFile
from tlflax.data.inputs.listing import Listing, Scan


def file(digest, **fields):
    """A good image of a plain kind, of which some fields are given."""
    plain = {'format': 'JPEG', 'mode': 'RGB', 'width': 100, 'height': 80, 'orientation': 1}
    digest = hashlib.sha256(str(digest).encode()).hexdigest()
    return ScannedFile('JPEG', digest=digest, **plain | fields)


def scan_of(**classes):
    """A scan of classes, each a list of fields of its images; 'path' names the file."""
    entries, names, files = [], [], []
    for name, images in classes.items():
        for number, fields in enumerate(images):
            path = fields.get('path', f'{number}.jpg')
            entries.append(Entry(f'{name}/{path}', 1, 1, 1))
            names.append(name)
            files.append(file(len(files), **{k: v for k, v in fields.items() if k != 'path'}))
    return Scan(Listing('/x', '/x', entries, names, Counter()), files, Counter(), 0)


def found_in(scan):
    """The sentences about shortcuts, by property."""
    told = shortcuts.measure(scan)
    problems = list(shortcuts.problems('train', told))
    assert {(problem.code, problem.level) for problem in problems} <= {('shortcut', 'warning')}
    keys = [key for key in PROPERTIES for problem in problems if PROPERTIES[key] in problem.what]
    return dict(zip(keys, problems, strict=True))


def figures_of(scan, key):
    (told,) = (one for one in shortcuts.measure(scan) if one.key == key)
    return told.figures(classes=True)


# cross-validation


def expected(codes, labels, folds):
    """What `cross_validate` returns, row by row."""
    sizes = np.bincount(labels)
    right, own, claimed = [], [], np.zeros(len(sizes), int)
    for code, label, fold in zip(codes, labels, folds, strict=True):
        others = labels[(codes == code) & (folds != fold)]
        counts = np.bincount(others, minlength=len(sizes))
        best = max(range(len(sizes)), key=lambda c: (counts[c], sizes[c], -c))
        best = best if counts.any() else sizes.argmax()
        twice = 2 * counts
        claims = (twice > len(others)) | ((twice == len(others)) & (2 * sizes > len(labels)))
        right.append(best == label)
        own.append(claims[label])
        claimed += claims
    return right, own, claimed.tolist()


@pytest.mark.parametrize('seed', range(12))
def test_cross_validation_is_that_of_plain_loops(seed):
    rng = np.random.default_rng(seed)
    classes, values = rng.integers(1, 6), rng.integers(1, 40)
    labels = np.append(np.arange(classes), rng.integers(0, classes, 90) // rng.integers(1, 4))
    codes, folds = rng.integers(0, values, len(labels)), rng.integers(0, FOLDS, len(labels))
    right, own, claimed = cross_validate(codes, labels, folds)
    assert (right.tolist(), own.tolist(), claimed.tolist()) == expected(codes, labels, folds)


def test_folds_divide_each_class_evenly_whatever_the_order():
    labels = np.repeat([0, 1, 2], [53, 12, 1])
    digests = [hashlib.sha256(b'%d' % n).hexdigest() for n in range(66)]
    folds = divide(labels, digests)
    for label in range(3):
        counts = np.bincount(folds[labels == label], minlength=FOLDS)
        assert counts.max() - counts.min() <= 1
    order = np.random.default_rng(0).permutation(66)
    moved = divide(labels[order], [digests[row] for row in order])
    assert (moved == folds[order]).all()


# what tells the class


def test_one_class_of_three_given_away_by_format_and_mode():
    """The x-rays: the images of one class were converted, the others were not."""
    gray = [{'format': 'PNG', 'mode': 'L'}] * 60
    found = found_in(scan_of(covid=[{'mode': 'RGBA'}] * 30, normal=gray, pneumonia=gray))
    assert found.keys() == {'format', 'mode'}
    assert found['format'].what == (
        "train: the file format alone tells one class from all others: 'covid' (JPEG: 30 of its "
        '30 images, 0 of the 120 others; 100.0% right in cross-validation, 80.0% by guessing)'
    )
    assert "'covid' (RGBA: 30 of its 30" in found['mode'].what
    assert found['format'].count == len(found['format'].items) == 30
    assert found['format'].items[0] == {
        'split': 'train', 'path': 'covid/0.jpg', 'fault': 'has the file format JPEG',
    }  # fmt: skip


def test_all_classes_given_away():
    kinds = {'a': 'PNG', 'b': 'JPEG', 'c': 'GIF'}
    found = found_in(scan_of(**{name: [{'format': kind}] * 20 for name, kind in kinds.items()}))
    assert found.keys() == {'format'}
    assert (
        'the file format alone tells the class of 60 of 60 images (PNG: a, JPEG: b, GIF: c): '
        '100.0% in cross-validation, 33.3% by guessing the largest class'
    ) in found['format'].what


def mixed(rng, count, share, **fields):
    """Images of which a share has these fields."""
    return [fields if rng.random() < share else {} for _ in range(count)]


def test_figures_of_a_class_that_is_mostly_given_away():
    rng = np.random.default_rng(0)
    scan = scan_of(
        a=mixed(rng, 500, 0.9, format='PNG'),
        b=mixed(rng, 500, 0.05, format='PNG'),
        c=mixed(rng, 500, 0.05, format='PNG'),
    )
    assert found_in(scan).keys() == {'format'}
    figures = figures_of(scan, 'format')
    assert figures['guessing'] == 0.3333
    of_a = figures['classes']['a']
    assert of_a['guessing'] == 0.6667
    assert of_a['recall'] == pytest.approx(0.9, abs=0.03)
    assert of_a['precision'] == pytest.approx(0.9, abs=0.03)
    assert of_a['accuracy'] == pytest.approx(0.933, abs=0.02)
    assert figures['classes']['b']['recall'] == 0  # most of its images are JPEG, and most of c's
    assert figures['classes']['b']['precision'] is None


def test_a_weak_hint_is_no_shortcut():
    rng = np.random.default_rng(0)
    scan = scan_of(a=mixed(rng, 900, 0.6, mode='L'), b=mixed(rng, 900, 0.4, mode='L'))
    assert found_in(scan) == {}
    assert 0.5 < figures_of(scan, 'mode')['accuracy'] < 0.7


def test_a_camera_of_one_size_gives_its_class_away():
    rng = np.random.default_rng(0)
    cut = [{'width': int(w), 'height': int(h)} for w, h in rng.integers(200, 300, (90, 2))]
    found = found_in(scan_of(a=[{'width': 250, 'height': 250}] * 30, b=cut[:45], c=cut[45:]))
    assert found.keys() == {'size', 'aspect_ratio'}
    assert "'a' (250x250: 30 of its 30 images, 0 of the 90 others" in found['size'].what
    assert "'a' (1.00: 30 of its 30 images" in found['aspect_ratio'].what


def test_larger_pictures_of_no_common_size_give_their_class_away():
    rng = np.random.default_rng(0)

    def cut(low, high):
        return [{'width': int(w), 'height': int(h)} for w, h in rng.integers(low, high, (60, 2))]

    found = found_in(scan_of(a=cut(700, 900), b=cut(200, 400), c=cut(200, 400)))
    assert found.keys() == {'size'}
    assert "one class from all others: 'a' (" in found['size'].what
    assert 'pixels: ' in found['size'].what


def test_photographs_that_were_turned_give_their_class_away():
    turned = [{'orientation': 6}] * 15
    found = found_in(scan_of(a=[*turned, {}], b=[{}] * 16, c=[{}] * 16))
    assert found.keys() == {'exif_orientation'}
    assert "'a' (6: 15 of its 16 images, 0 of the 32 others" in found['exif_orientation'].what


def named(pattern, count=20, start=0):
    return [{'path': pattern.format(number)} for number in range(start, start + count)]


def test_names_of_one_camera_give_their_class_away():
    scan = scan_of(
        lion=named('DSC{:05}.jpg'), tiger=named('IMG_{}.JPG'), bear=named('IMG_{}.png', start=80)
    )
    found = found_in(scan)
    assert found.keys() == {'file_name'}
    assert "'lion' (DSC#: 20 of its 20 images, 0 of the 40 others" in found['file_name'].what
    assert 'nothing is wrong if files are named after their class' in found['file_name'].fix


def test_names_of_classes_and_random_names_tell_nothing():
    def random_names(seed):
        rng = np.random.default_rng(seed)
        return [{'path': f'{rng.bytes(8).hex()}-{rng.bytes(4).hex()}.jpg'} for _ in range(20)]

    scan = scan_of(Dogs=named('dog.{}.jpg'), cats=named('Cat.{}.png'))
    assert found_in(scan) == {}
    deep = scan_of(**{'n1': named('x/n1_{}.jpg'), 'n2': named('deep/er/n2_{}.jpg')})
    assert found_in(deep) == {}
    two_words = scan_of(**{'red light': named('RedLight{}.jpg'), 'green': named('green{}.jpg')})
    assert found_in(two_words) == {}
    assert found_in(scan_of(a=random_names(0), b=random_names(1))) == {}
    found = found_in(scan_of(a=random_names(0), b=named('{}.jpg'), c=named('{}.jpg')))
    assert 'a name like no other: 20 of its 20 images' in found['file_name'].what


def test_class_names_are_left_out_of_all_names_alike():
    """A class named as a letter must not change the names of its own images only."""
    values = properties.values_of(
        [file(0), file(1), file(2), file(3)], ['a/cat_1', 'b/cat_2', 'a/a_b', 'b/b_a'], ['a', 'b']
    )
    assert values['file_name'].codes.tolist() == [0, 0, 1, 1]
    assert values['file_name'].names[:2] == ['cat_#', '*_*']


# what tells nothing


def random_properties(rng):
    """Classes of random sizes, and random values of every property, independent of them."""
    classes = int(rng.choice([2, 2, 3, 5, 10, 50, 200]))
    sizes = [
        np.full(classes, rng.integers(2, 30)),
        rng.integers(1, 40, classes),
        np.append(rng.integers(50, 500), rng.integers(1, 30, classes - 1)),
    ][rng.integers(3)]
    labels = np.repeat(np.arange(classes), sizes)
    count, told = len(labels), []
    digests = [hashlib.sha256(b'%d' % n).hexdigest() for n in rng.integers(0, 2**60, count)]
    folds = divide(labels, digests)
    for key in PROPERTIES:
        kinds = int(rng.choice([2, 3, 10, max(2, count // 10), max(2, count // 3), count]))
        shares = rng.dirichlet(np.full(kinds, rng.choice([0.1, 1, 10])))
        codes = rng.choice(kinds, count, p=shares)
        values, names = Values([*map(str, range(kinds))], codes), [*map(str, range(classes))]
        paths = ['x'] * count
        outcome = cross_validate(codes, labels, folds)
        told.append(shortcuts.Told(key, values, labels, names, paths, *outcome))
    return told


def test_random_properties_raise_no_alarm():
    for seed in range(300):
        told = random_properties(np.random.default_rng(seed))
        assert not list(shortcuts.problems('train', told)), seed


def test_few_images_may_agree_by_chance():
    """10 images of 2 classes of which a property tells 9 are no evidence; 40 of 48 are."""
    five, one = [{'format': 'PNG'}] * 5, [{'format': 'PNG'}]
    assert found_in(scan_of(a=five, b=[{}] * 5)) == {}
    assert found_in(scan_of(a=five * 2 + [{}] * 2, b=one * 2 + [{}] * 10)) == {}
    assert found_in(scan_of(a=five * 8 + [{}] * 8, b=one * 8 + [{}] * 40)).keys() == {'format'}
    rare = found_in(scan_of(a=[{'format': 'PNG'}] * 4, b=[{}] * 200, c=[{}] * 200))
    assert rare == {}


@pytest.mark.parametrize('classes', [{}, {'a': 1}, {'a': 30}, {'a': 1, 'b': 1}])
def test_nothing_one_image_and_one_class(classes):
    scan = scan_of(**{name: [{}] * count for name, count in classes.items()})
    told = shortcuts.measure(scan)
    assert list(shortcuts.problems('train', told)) == []
    assert len(told) == (len(PROPERTIES) if classes else 0)
    for one in told:
        assert one.figures(classes=True)['classes'].keys() == classes.keys()


def test_bad_images_count_for_nothing():
    scan = scan_of(a=[{'format': 'PNG'}] * 20, b=[{}] * 20)
    scan.files[:20] = [ScannedFile('PNG', 'is a truncated PNG')] * 20
    assert {len(one.labels) for one in shortcuts.measure(scan)} == {20}
    assert found_in(scan) == {}


def test_a_hundred_thousand_images_take_a_moment():
    """A million take seconds; a loop over values or classes would take minutes here."""
    rng = np.random.default_rng(0)
    labels = np.sort(rng.integers(0, 1000, 100_000))
    codes, folds = rng.integers(0, 50_000, 100_000), rng.integers(0, FOLDS, 100_000)
    began = time.process_time()
    cross_validate(codes, labels, folds)
    assert time.process_time() - began < 5


# the command


@pytest.fixture
def xrays(tmp_path, monkeypatch):
    """Three classes; the images of one were converted to JPEG."""
    monkeypatch.setenv('TLFLAX_CACHE', str(tmp_path / 'cache'))
    rng = np.random.default_rng(0)
    for name, end in (('covid', 'jpg'), ('normal', 'png'), ('pneumonia', 'png')):
        (tmp_path / 'xrays' / name).mkdir(parents=True)
        for number in range(14):
            pixels = rng.integers(0, 256, (9, 8, 3), np.uint8)
            image = Image.fromarray(pixels).resize((36, 28), Image.Resampling.BICUBIC)
            image = image if name == 'covid' else image.convert('L')
            image.save(tmp_path / 'xrays' / name / f'{number}.{end}')
    return tmp_path / 'xrays'


def test_the_command_names_the_class_and_reports_the_figures(xrays, tmp_path):
    place = tmp_path / 'report.json'
    done = run_module('data', f'--train={xrays}', f'--report={place}')
    assert done.returncode == 0, done.stderr
    assert "WARNING train: the file format alone tells one class from all others: 'covid'" in (
        done.stdout
    )
    last = json.loads(done.stdout.splitlines()[-1])
    assert last['warning'] == {'shortcut': 28}
    told = last['splits']['train']['shortcuts']
    assert told.keys() == PROPERTIES.keys()
    assert told['size'] == {'accuracy': 0.3333, 'guessing': 0.3333}
    assert told['format']['accuracy'] <= 0.6667
    whole = json.loads(place.read_text())
    assert whole['shortcuts']['train']['format']['classes']['covid'] == {
        'accuracy': 1.0, 'guessing': 0.6667, 'recall': 1.0, 'precision': 1.0,
    }  # fmt: skip
    assert whole['shortcuts']['train']['format']['accuracy'] == told['format']['accuracy']

"""Images that do not belong: of a size or shape far from all others, or of a single color."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tlflax.config.parse import resolve
from tlflax.data.audit import odd_sizes, report, run
from tlflax.data.images import decode
from tlflax.data.images.files import Entry, ScannedFile
from tlflax.data.inputs.listing import Listing, Scan


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder for each test."""
    monkeypatch.setenv('TLFLAX_CACHE', str(tmp_path / 'cache'))


def odd(sizes):
    """Which of the sizes are odd, and the problem that says so."""
    entries = [Entry(f'a/{n}.jpg', 1, 1, 1) for n in range(len(sizes))]
    files = [
        ScannedFile('JPEG', digest='0' * 64, width=int(w), height=int(h), orientation=1)
        for w, h in sizes
    ]
    listing = Listing('/x', '/x', entries, ['a'] * len(entries), Counter())
    problems = list(odd_sizes.check('val', Scan(listing, files, Counter(), 0)))
    assert len(problems) <= 1
    rows = [int(i['path'][2:-4]) for problem in problems for i in problem.items]
    return rows, *problems


def test_one_large_image_among_small_ones_is_named():
    rows, problem = odd([(100, 100)] * 60 + [(3024, 3024)] + [(100, 100)] * 60)
    assert rows == [60]
    assert (problem.code, problem.level, problem.count) == ('odd_size', 'warning', 1)
    assert problem.items[0]['fault'] == 'has 3024x3024 pixels'
    assert 'whose median is 100x100 pixels' in problem.what


def test_one_small_image_and_one_long_one_are_named():
    assert odd([(640, 480)] * 200 + [(64, 48), (2400, 128)])[0] == [200, 201]
    assert odd([(640, 480)] * 200 + [(128, 1200)])[0] == [200]


def test_one_image_that_is_not_so_far_from_all_others_is_not_odd():
    for size in ((150, 150), (490, 490), (21, 21), (190, 50)):
        assert odd([(100, 100)] * 200 + [size]) == ([],)


@pytest.mark.parametrize('seed', range(30))
def test_varied_photographs_raise_nothing(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.choice([20, 50, 300, 3000]))
    areas = 3e5 * np.exp(rng.normal(0, rng.choice([0.1, 0.5, 1, 1.5]), count))
    aspects = np.exp(rng.normal(0, rng.choice([0.05, 0.3]), count))
    cut = np.stack([np.sqrt(areas * aspects), np.sqrt(areas / aspects)], axis=1) + 1
    assert odd(cut) == ([],)
    web = np.tile([500, 375], (count, 1))  # most of one size, the others cut from photographs
    assert odd(np.where(rng.random((count, 1)) < 0.6, web, np.clip(cut, 150, 1800))) == ([],)


def test_a_second_kind_of_images_is_no_outlier():
    assert odd([(4032, 3024)] * 95 + [(320, 240)] * 5) == ([],)


@pytest.mark.parametrize('sizes', [[], [(3, 3000)], [(100, 100)] * 18 + [(3000, 3000)]])
def test_few_images_have_no_usual_size(sizes):
    assert odd(sizes) == ([],)


def test_bad_images_have_no_size():
    files = [ScannedFile('JPEG', 'is a truncated JPEG')] * 30
    listing = Listing('/x', '/x', [Entry('a/1', 1, 1, 1)] * 30, ['a'] * 30, Counter())
    assert list(odd_sizes.check('val', Scan(listing, files, Counter(), 0))) == []


# placeholders


def noise(size, spread, seed=0):
    pixels = np.random.default_rng(seed).normal(128, spread, (*size[::-1], 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def with_text(text='x'):
    image = Image.new('RGB', (200, 200), 'white')
    ImageDraw.Draw(image).text((90, 90), text, fill='black')
    return image


FLAT = {
    'gray.png': lambda: Image.new('RGB', (80, 60), (128, 128, 128)),
    'red.jpg': lambda: Image.new('RGB', (500, 375), (200, 30, 30)),
    'large.jpg': lambda: Image.new('L', (3000, 2000), 255),
    'nearly.png': lambda: noise((80, 60), 1.0),
    'nothing.png': lambda: Image.new('RGBA', (80, 60), (250, 200, 0, 0)),
    'palette.gif': lambda: Image.new('P', (80, 60), 3),
    'dot.png': lambda: Image.new('RGB', (1, 1), 'white'),
}
PICTURES = {
    'texture.png': lambda: noise((600, 600), 30.0),  # its thumbnail is flat
    'texture.jpg': lambda: noise((600, 600), 30.0),
    'fine.png': lambda: Image.fromarray((np.indices((512, 512)).sum(0) % 2 * 40).astype(np.uint8)),
    'text.png': with_text,
    'slope.png': lambda: Image.linear_gradient('L'),
    'colors.png': lambda: Image.merge(
        'RGB', [Image.linear_gradient('L'), *[Image.new('L', (256, 256), 90)] * 2]
    ),
}


@pytest.mark.parametrize('name', [*FLAT, *PICTURES])
def test_pictures_of_a_single_color_are_known(tmp_path, name):
    (FLAT | PICTURES)[name]().save(tmp_path / name)
    assert decode.probe(tmp_path / name).flat == (name in FLAT)


def test_placeholders_are_named_whenever_they_were_read(tmp_path):
    for number, name in enumerate('ab'):
        (tmp_path / 'train' / name).mkdir(parents=True)
        for i in range(12):
            pixels = np.random.default_rng(100 * number + i).integers(0, 256, (9, 8, 3), np.uint8)
            image = Image.fromarray(pixels).resize((36, 28), Image.Resampling.BICUBIC)
            image.save(tmp_path / 'train' / name / f'{i}.png')
    Image.new('RGB', (36, 28), (240, 240, 240)).save(tmp_path / 'train/b/99.png')
    for files_read in (25, 0):  # what is remembered tells the same
        found = run.run(resolve({'data': {'train': str(tmp_path / 'train')}}).data)
        assert found.num_read == files_read
        assert found.figures()['warning'] == {'placeholder': 1}
        (problem,) = found.problems
        assert problem.items == [{'split': 'train', 'path': 'b/99.png'}]
        text = report.text(found.problems, found.summary)
        assert 'WARNING train: 1 images show a single color, or nearly' in text

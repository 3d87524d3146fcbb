"""The page of an audit: what it shows of each finding, and the command that writes it."""

import re
import shutil
from collections.abc import Sequence

import numpy as np
import pytest
from helpers import run_module
from PIL import Image

from tlflax.config.parse import resolve
from tlflax.data.audit import run
from tlflax.data.audit.problems import Problem
from tlflax.report.gather.audit import gather, write
from tlflax.report.page.pictures import Thumbnails
from tlflax.report.page.render import render_audit
from tlflax.utils.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder for each test."""
    monkeypatch.setenv('TLFLAX_CACHE', str(tmp_path / 'cache'))


def picture(seed, size=(48, 40)):
    """Smooth random colors, as different from seed to seed as photographs are."""
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 8, 3), np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path):
    """photos/{train,val}/{a,b} with a leak and a bad image."""
    for split, seed, count in (('train', 0, 12), ('val', 1000, 3)):
        for number, name in enumerate('ab'):
            folder = tmp_path / 'photos' / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                picture(seed + 100 * number + i).save(folder / f'{i}.png')
    train, val = tmp_path / 'photos/train', tmp_path / 'photos/val'
    shutil.copy(train / 'a/0.png', val / 'a/copy.png')
    (train / 'b/bad.png').write_bytes((train / 'b/2.png').read_bytes()[:200])
    return tmp_path / 'photos'


def source(path):
    """The address of a file's picture on the page."""
    return Thumbnails().of(str(path)).source


def test_the_command_writes_the_page(photos, tmp_path):
    page = tmp_path / 'audit.html'
    done = run_module(
        'data', f'--train={photos}/train', f'--val={photos}/val', f'--report={page}'
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    text = page.read_text()
    assert source(photos / 'val/a/copy.png') in text
    assert source(photos / 'train/a/5.png') not in text
    assert 'train a/0.png = val a/copy.png' in text
    assert f'<bdi>{photos}/train · {photos}/val</bdi>' in text


def test_a_page_that_cannot_be_written_is_one_sentence(photos):
    data = resolve({'data': {'train': str(photos / 'train')}}).data
    with pytest.raises(UserError, match='the report cannot be written: No such file'):
        write(str(photos / 'nowhere/x.html'), run.run(data), data)


def test_images_of_a_split_that_was_drawn_are_found(photos, tmp_path):
    train = photos / 'train'
    for i in range(12):
        picture(i, (24, 20)).save(train / f'a/small {i}.png')
    data = resolve({'data': {'train': str(train), 'val_fraction': 0.5}}).data
    found = run.run(data)
    (leaks,) = (problem for problem in found.problems if problem.code == 'near_leak')
    audit = gather(found.problems, found.summary, Thumbnails())
    (shown,) = (finding for finding in audit.findings if finding.what == leaks.what)
    expected = [source(train / file['path']) for file in leaks.items[0]['files']]
    assert [each.source for each in shown.items[0].pictures] == expected
    assert audit.counts['train'] == found.summary['train']['classes']


def test_a_single_file_has_its_picture_and_what_is_wrong(photos):
    items = [{'split': 'val', 'path': 'b/2.png', 'fault': 'has <odd> colors'}]
    problem = Problem('shortcut', 'warning', 1, 'colors tell the class', 'convert', items=items)
    audit = gather([problem], {'val': {'root': str(photos / 'val'), 'files': 7}}, Thumbnails())
    (shown,) = audit.findings
    assert shown.items[0].text == 'val b/2.png has <odd> colors'
    assert [each.source for each in shown.items[0].pictures] == [source(photos / 'val/b/2.png')]
    assert 'has &lt;odd&gt; colors' in render_audit(audit, 'photos')


class Many(Sequence):
    """A million items, of which only the first 200 may be looked at."""

    def __init__(self, item):
        self._item = item

    def __len__(self):
        return 1_000_000

    def __getitem__(self, place):
        if isinstance(place, slice):
            assert place.stop <= 200
            return [self._item] * place.stop
        return self._item  # one is looked at when annotations are checked

    def __iter__(self):
        raise AssertionError('all items are looked at')


def test_only_the_first_items_and_files_are_looked_at(photos):
    file = {'split': 'train', 'class': 'a', 'path': 'a/1.png'}
    missing = {'split': 'train', 'class': 'a', 'path': 'a/none.png'}
    items = Many({'files': [missing, *[file] * 20]})
    problem = Problem('repeat', 'warning', 21_000_000, 'many', items=items)
    audit = gather([problem], {'train': {'root': str(photos / 'train'), 'files': 25}}, Thumbnails())
    (shown,) = audit.findings
    assert (shown.count, len(shown.items)) == (1_000_000, 200)
    assert {len(item.pictures) for item in shown.items} == {7}  # one of the first 8 is missing
    assert (shown.level, shown.what, audit.counts) == ('warning', 'many', {})


def test_json_is_complete(photos, tmp_path):
    data = resolve({'data': {'train': str(photos / 'train'), 'val': str(photos / 'val')}}).data
    place = tmp_path / 'audit.json'
    write(str(place), run.run(data), data)
    assert re.search(r'"code": "leak".*\n.*a/copy\.png', place.read_text())

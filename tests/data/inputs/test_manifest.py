"""CSV and JSON-lines manifests: rows, splits, weights, groups, and errors by file and line."""

import csv
import json
import os

import numpy as np
import pytest
from PIL import Image

from tlflax.config.parse import resolve
from tlflax.data.images.decode import read_image
from tlflax.data.inputs import manifest
from tlflax.data.inputs.listing import scan
from tlflax.data.splits.load import load_splits, load_table, load_val
from tlflax.utils.errors import UserError


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder with a/1.png ... d/4.png, all different, and a cache of its own."""
    monkeypatch.setenv('TLFLAX_CACHE', str(tmp_path / 'cache'))
    rng = np.random.default_rng(0)
    for name in 'abcd':
        (tmp_path / 'photos' / name).mkdir(parents=True)
        for number in range(1, 5):
            pixels = rng.integers(0, 256, (6, 5, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / 'photos' / name / f'{number}.png')
    return tmp_path / 'photos'


def write(path, *lines):
    path.write_text('\n'.join(lines) + '\n', encoding='utf-8')
    return str(path)


def data(**keys):
    return resolve({'data': keys}).data


def names(table):
    return [
        (os.path.relpath(path, table.root), table.class_names[label])
        for path, label in zip(table.paths, table.labels, strict=True)
    ]


TWO = ('path,label', 'b/1.png,zebra', 'a/2.png,ant', 'a/1.png,ant', 'c/1.png,zebra')
TWO_NAMES = [('a/1.png', 'ant'), ('a/2.png', 'ant'), ('b/1.png', 'zebra'), ('c/1.png', 'zebra')]


def table_of(path, **keys):
    return load_table(path, data=data(**keys), split='train')


def test_csv_gives_a_table_sorted_by_class_and_path(photos):
    table = table_of(write(photos / 'm.csv', *TWO))
    assert table.class_names == ('ant', 'zebra')
    assert names(table) == TWO_NAMES
    assert table.root == str(photos)
    assert table.weights is None
    assert table.groups is None


@pytest.mark.parametrize(
    'lines',
    [
        [line.replace(',', ';') for line in TWO],
        ['\ufeff' + TWO[0], *TWO[1:]],  # as Excel saves it
        [
            'extra,LABEL, Path',
            *(f'"x, y",{b},{a}' for a, b in (line.split(',') for line in TWO[1:])),
        ],
        [*TWO[:2], '', *TWO[2:], ''],
    ],
    ids=['semicolons', 'byte order mark', 'other columns', 'empty lines'],
)
def test_csv_as_people_write_it(photos, lines):
    assert names(table_of(write(photos / 'm.csv', *lines))) == TWO_NAMES


def test_tabs_and_json_lines_say_the_same(photos):
    rows = [line.split(',') for line in TWO]
    tabs = write(photos / 'm.tsv', *('\t'.join(row) for row in rows))
    objects = [json.dumps(dict(zip(rows[0], row, strict=True)) | {'more': [1]}) for row in rows[1:]]
    lines = write(photos / 'm.jsonl', *objects)
    assert names(table_of(tabs)) == names(table_of(lines)) == TWO_NAMES
    assert table_of(tabs).digest == table_of(lines).digest


def test_paths_start_from_the_manifest_or_are_absolute(photos, tmp_path):
    moved = tmp_path / 'lists'
    moved.mkdir()
    lines = ['path,label', '../photos/a/1.png,x', f'{photos}/b/1.png,y', f'{photos}/a/2.png,x']
    table = table_of(write(moved / 'm.csv', *lines))
    real = [os.path.realpath(path) for path in table.paths]
    assert sorted(real) == [f'{photos}/{p}' for p in ('a/1.png', 'a/2.png', 'b/1.png')]


def test_names_with_spaces_quotes_and_other_letters(photos):
    odd = 'größe, "日本" 1.png'
    (photos / odd).write_bytes((photos / 'a/1.png').read_bytes())
    quoted = odd.replace('"', '""')
    lines = ['path,label', f'"{quoted}","wei,ß"', 'b/1.png,b']
    table = table_of(write(photos / 'm.csv', *lines))
    assert names(table) == [('b/1.png', 'b'), (odd, 'wei,ß')]
    numbers = [json.dumps({'path': odd, 'label': 10}), json.dumps({'path': 'b/1.png', 'label': 2})]
    assert table_of(write(photos / 'm.jsonl', *numbers)).class_names == ('10', '2')


def test_weights_and_groups_follow_their_rows(photos):
    lines = ['path,label,weight,group', 'b/1.png,b,2,s2', 'a/2.png,a,,s1', 'a/1.png,a,0.5,']
    table = table_of(write(photos / 'm.csv', *lines))
    assert names(table) == [('a/1.png', 'a'), ('a/2.png', 'a'), ('b/1.png', 'b')]
    np.testing.assert_array_equal(table.weights, np.array([0.5, 1, 2], np.float32))
    assert table.weights.dtype == np.float32
    assert list(table.groups) == ['', 's1', 's2']
    chosen = table.select(np.array([2, 0]))
    assert list(chosen.weights) == [2, 0.5]
    assert list(chosen.groups) == ['s2', '']
    other = [line.replace('0.5', '0.25') for line in lines]
    assert table_of(write(photos / 'n.csv', *other)).digest != table.digest


def splits_file(photos, splits=('train', 'val', 'test', 'Training')):
    lines = ['path,label,split']
    for name in 'abcd':
        lines += [f'{name}/{i}.png,{name},{split}' for i, split in enumerate(splits, 1)]
    return write(photos / 'all.csv', *lines)


def test_one_manifest_gives_all_splits(photos):
    path = splits_file(photos)
    for keys in ({}, {'val': path}, {'val': path, 'test': path}):
        splits = load_splits(data(train=path, **keys))
        for table, numbers in ((splits.train, '14'), (splits.val, '2'), (splits.test, '3')):
            wanted = [(f'{name}/{number}.png', name) for name in 'abcd' for number in numbers]
            assert names(table) == wanted
    assert names(load_val(data(train=path), tuple('abcd'))) == names(splits.val)
    assert names(load_table(f'{path}#test', data=data())) == names(splits.test)


def test_a_manifest_without_validation_lines_leaves_room_for_a_fraction(photos):
    path = splits_file(photos, ('train', 'train', 'train', 'test'))
    splits = load_splits(data(train=path, val_fraction=0.34))
    assert [len(t) for t in (splits.train, splits.val, splits.test)] == [8, 4, 4]
    only = load_splits(data(train=f'{splits_file(photos)}#train', val=str(photos)))
    assert len(only.val) == 16


@pytest.mark.parametrize(
    ('keys', 'where', 'words'),
    [
        (
            {'val_fraction': 0.2},
            'config.data.val and config.data.val_fraction',
            'more than one way',
        ),
        ({'folds': 3}, 'config.data.val and config.data.folds', 'more than one way'),
        ({'val': '.'}, 'config.data.val', "lines whose split is 'val'"),
        (
            {'train': '#tst'},
            'config.data.train',
            "no line whose split is 'tst'; did you mean 'test'",
        ),
    ],
)
def test_splits_said_twice(photos, keys, where, words):
    path = splits_file(photos)
    keys = {name: path + v if name == 'train' else v for name, v in keys.items()}
    with pytest.raises(UserError) as error:
        load_splits(data(**{'train': path, **keys}))
    assert error.value.where == where
    assert words in str(error.value)


def test_evaluation_of_several_splits_asks_which(photos):
    with pytest.raises(UserError, match=r'all\.csv holds several splits; say which: '):
        load_table(splits_file(photos), data=data())


UNFIT = {
    'empty': ([''], 'line 1', "no column 'path' (it names nothing)"),
    'column': (['file,label', 'x,y'], 'line 1', "no column 'path' (it names 'file', 'label')"),
    'spelling': (['path,lable', 'x,y'], 'line 1', "no column 'label'"),
    'hint': (['path,lable', 'x,y'], 'line 1', "rename 'lable'"),
    'twice': (['path,label,path', 'x,y,z'], 'line 1', "two columns 'path'"),
    'no rows': (['path,label'], '', 'names no image'),
    'fields': (['path,label', 'a/1.png,a', 'a/2.png'], 'line 3', '1 fields where'),
    'quote': (['path,label', 'a/1.png,a', '"a/2.png,a'], 'line 3', 'not valid CSV'),
    'no path': (['path,label', ',a'], 'line 2', 'an empty path'),
    'no label': (['path,label', 'a/1.png, '], 'line 2', 'an empty label'),
    'again': (
        ['path,label', 'a/1.png,a', 'b/1.png,b', './a/1.png,b'],
        'line 4',
        "'a/1.png' is named in line 2 too, as 'a' there and 'b' here",
    ),
    'split': (
        ['path,label,split', 'a/1.png,a,trian'],
        'line 2',
        "'trian' is not a split; did you mean 'train'?",
    ),
    'no split': (
        ['path,label,split', 'a/1.png,a,train', 'b/1.png,b,'],
        'line 3',
        "'' is not a split",
    ),
    'weight': (['path,label,weight', 'a/1.png,a,heavy'], 'line 2', "'heavy' is not a weight"),
    'negative': (['path,label,weight', 'a/1.png,a,-1'], 'line 2', "'-1' is not a weight"),
    'nan': (['path,label,weight', 'a/1.png,a,nan'], 'line 2', "'nan' is not a weight"),
    'weights': (['path,label,weight', 'a/1.png,a,0', 'b/1.png,b,0'], '', 'every weight is 0'),
}


@pytest.mark.parametrize('case', UNFIT)
def test_unfit_lines_are_named(photos, case):
    lines, where, words = UNFIT[case]
    path = write(photos / 'm.csv', *lines)
    with pytest.raises(UserError) as error:
        table_of(path)
    assert error.value.where == (f'{path}, {where}' if where else path)
    assert words in str(error.value)


JSON = {
    'json': ('{"path": 1', 'line 2', 'not valid JSON'),
    'deep': ('[' * 100_000, 'line 2', 'not valid JSON'),
    'list': ('["a/1.png", "a"]', 'line 2', 'not a JSON object'),
    'key': ('{"path": "x", "lable": "y"}', 'line 2', "no 'label'; did you mean 'lable'"),
    'type': ('{"path": "x", "label": ["y"]}', 'line 2', "'label' is a list"),
    'null': ('{"path": "x", "label": null}', 'line 2', 'an empty label'),
    'nul': ('{"path": "x\\u0000", "label": "y"}', 'line 2', 'control character'),
    'surrogate': ('{"path": "x\\ud800", "label": "y"}', 'line 2', 'control character'),
    'split': ('{"path": "x", "label": "y", "split": "val"}', 'line 1', 'no split, and other'),
}


@pytest.mark.parametrize('case', JSON)
def test_unfit_json_lines_are_named(photos, case):
    line, where, words = JSON[case]
    path = write(photos / 'm.jsonl', '{"path": "a/1.png", "label": "a"}', line)
    with pytest.raises(UserError) as error:
        table_of(path)
    assert error.value.where == f'{path}, {where}'
    assert words in str(error.value)
    str(error.value).encode()


def test_files_that_cannot_be_used_are_named_with_their_lines(photos):
    (photos / 'notes').write_text('some text')
    lines = ['path,label', 'a/1.png,a', 'b/1.png,b', 'gone.png,a', 'notes,b', 'a,a']
    path = write(photos / 'm.csv', *lines)
    with pytest.raises(UserError) as error:
        table_of(path)
    for part in (
        '3 of 5 images cannot be used',
        f'gone.png ({path}, line 4) cannot be read: No such file',
        f'notes ({path}, line 5) is text',
        f'a ({path}, line 6) cannot be read: it is a folder, not a file',
    ):
        assert part in str(error.value)
    assert len(table_of(path, on_bad_image='skip')) == 2


def test_manifest_that_cannot_be_read(photos):
    with pytest.raises(UserError, match=r"the manifest '.*gone\.csv' cannot be read: No such file"):
        table_of(str(photos / 'gone.csv'))
    (photos / 'latin.csv').write_bytes('path,label\na/1.png,größe\n'.encode('latin-1'))
    with pytest.raises(UserError, match=r'latin\.csv: the manifest is not UTF-8'):
        table_of(str(photos / 'latin.csv'))


def test_long_fields_need_no_limit_for_the_whole_process(photos):
    before = csv.field_size_limit()
    rows = [f'{path},{label},{"x" * 600_000}' for path, label in (r.split(',') for r in TWO[1:])]
    assert names(table_of(write(photos / 'm.csv', 'path,label,story', *rows))) == TWO_NAMES
    with pytest.raises(UserError, match='line 2: not valid CSV'):
        table_of(write(photos / 'n.csv', 'path,label,story', 'a/1.png,a,' + 'x' * (1 << 21)))
    assert csv.field_size_limit() == before < 600_000


def test_classes_of_a_manifest_are_checked_as_those_of_folders(photos):
    one = write(photos / 'one.csv', 'path,label', 'a/1.png,a')
    with pytest.raises(UserError, match="single class 'a'"):
        table_of(one)
    other = write(photos / 'other.csv', 'path,label', 'a/1.png,Ant')
    with pytest.raises(UserError, match="'Ant': did you mean 'ant'"):
        load_table(other, data=data(), class_names=('ant', 'bee'))


def test_a_second_reading_reads_no_image(photos, monkeypatch):
    path = splits_file(photos)
    load_splits(data(train=path))
    monkeypatch.setattr(
        'tlflax.data.images.scan.read_file', lambda *a, **k: pytest.fail('was read')
    )
    load_splits(data(train=path))
    load_val(data(train=path, val=path), tuple('abcd'))


def test_folders_that_end_like_manifests_are_folders(photos, tmp_path):
    photos.rename(tmp_path / 'photos.csv')
    assert not manifest.is_manifest(str(tmp_path / 'photos.csv'))
    assert len(table_of(str(tmp_path / 'photos.csv'))) == 16


@pytest.mark.parametrize('first', ['x' * (1 << 21), '"' + 'x' * (1 << 21)])
def test_a_first_line_that_is_too_long(tmp_path, first):
    (tmp_path / 'a.csv').write_text(f'{first}\na,b\n')
    with pytest.raises(UserError, match=r'line 1: not valid CSV .field larger than field limit'):
        manifest.read_manifest(tmp_path / 'a.csv')


def test_an_object_of_very_many_names(tmp_path):
    fields = ', '.join(f'"labe{n}": 1' for n in range(200_000))
    (tmp_path / 'a.jsonl').write_text(f'{{{fields}}}\n')
    with pytest.raises(UserError, match="line 1: no 'path'") as caught:
        manifest.read_manifest(tmp_path / 'a.jsonl')
    assert len(str(caught.value)) < 5000


def test_pipes_are_not_waited_for(photos):
    os.mkfifo(photos / 'a.csv')
    with pytest.raises(UserError, match=r"a\.csv' cannot be read: it is a pipe, not a file"):
        manifest.read_manifest(photos / 'a.csv')
    os.mkfifo(photos / 'pipe.jpg')
    path = write(photos / 'b.csv', 'path,label', 'pipe.jpg,a', '/dev/zero,b')
    found = scan(manifest.list_manifest(path, manifest.read_manifest(path)))
    assert [file.fault for file in found.files] == [
        'cannot be read: it is a pipe, not a file',
        'cannot be read: it is a device, not a file',
    ]
    with pytest.raises(UserError, match='it is a device, not a file'):
        read_image('/dev/zero')


def test_files_that_are_named_in_another_way_are_found(photos):
    """As Windows separates folders, and as Macs write letters with accents."""
    nfc, nfd = 'caf\u00e9.png', 'cafe\u0301.png'
    for name in (nfc, f'a/{nfd}'):
        os.link(photos / 'a' / '1.png', photos / name)
    lines = ['b\\1.png,b', f'{nfd},b', f'a\\{nfc},b', 'C:\\x\\1.png,b', 'none.png,b']
    path = write(photos / 'm.csv', 'path,label', 'a/2.png,a', *lines)
    with pytest.raises(UserError) as caught:
        table_of(path)
    for part in (
        "No such file or directory (did you mean 'b/1.png'?)",
        f"No such file or directory (did you mean '{nfc}' (NFC)?)",
        rb"did you mean 'a/cafe\u0301.png'?".decode('unicode_escape'),
        r'C:\x\1.png (' + f'{path}, line 6) cannot be read: No such file or directory (folders are',
        f'none.png ({path}, line 7) cannot be read: No such file or directory;',
    ):
        assert part in str(caught.value)


def test_labels_that_look_the_same_are_told_apart(photos):
    path = write(photos / 'm.csv', 'path,label', 'a/1.png,caf\u00e9', 'a/1.png,cafe\u0301')
    with pytest.raises(UserError) as caught:
        table_of(path)
    assert "as 'caf\u00e9' (NFC) there and" in str(caught.value)
    assert r"(NFD: 'cafe\u0301') here" in str(caught.value)

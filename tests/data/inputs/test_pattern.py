"""File patterns: which files match, and what their classes are."""

import glob
import os
from pathlib import Path

import pytest

from tlflax.data.inputs.pattern import is_pattern, list_pattern, split_base
from tlflax.utils.errors import UserError

FILES = """
2023/jan/cat/1.jpg 2023/jan/cat/2.png 2023/feb/dog/3.jpg 2024/mar/cat/deep/4.jpg
2024/mar/dog/5.jpg 2024/mar/dog/.hidden.jpg .git/mar/dog/6.jpg 2024/__MACOSX/dog/7.jpg
flat/cat_1.png flat/pit_bull_2.png flat/pit_bull_10.png flat/dog.png flat/readme.txt
two/cat/cat_1.jpg two/cat/dog_1.jpg two/a[1]/x.jpg two/größe 1/y.jpg
""".split('\n')


@pytest.fixture
def root(tmp_path):
    for path in '  '.join(FILES).replace('größe 1', 'größe_1').split():
        path = tmp_path / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('x')
    return tmp_path


def found(root, rest):
    listing = list_pattern(f'{root}/{rest}')
    return {
        os.path.relpath(os.path.join(listing.root, entry.path), root): name
        for entry, name in zip(listing.entries, listing.names, strict=True)
    }


@pytest.mark.parametrize(
    ('pattern', 'wanted'),
    [
        (
            '*/*/{class}/*.jpg',
            {
                '2023/jan/cat/1.jpg': 'cat',
                '2023/feb/dog/3.jpg': 'dog',
                '2024/mar/dog/5.jpg': 'dog',
            },
        ),
        ('202[!4]/*/{class}/?.p*', {'2023/jan/cat/2.png': 'cat'}),
        (
            '**/{class}/[0-9].jpg',
            {
                '2023/jan/cat/1.jpg': 'cat',
                '2023/feb/dog/3.jpg': 'dog',
                '2024/mar/cat/deep/4.jpg': 'deep',
                '2024/mar/dog/5.jpg': 'dog',
            },
        ),
        ('2024/**/mar/{class}/**', {'2024/mar/dog/5.jpg': 'dog'}),
        ('2024/mar/{class}/**/*', {'2024/mar/cat/deep/4.jpg': 'cat', '2024/mar/dog/5.jpg': 'dog'}),
        (
            'flat/{class}_*.png',
            {
                'flat/cat_1.png': 'cat',
                'flat/pit_bull_2.png': 'pit_bull',
                'flat/pit_bull_10.png': 'pit_bull',
            },
        ),
        ('two/{class}/{class}_*', {'two/cat/cat_1.jpg': 'cat'}),
        ('two/a[[]1]/{class}.jpg', {'two/a[1]/x.jpg': 'x'}),
        ('two/{class}/y.jpg', {'two/größe_1/y.jpg': 'größe_1'}),
    ],
)
def test_matches(root, pattern, wanted):
    assert found(root, pattern) == wanted
    if '{class}/{class}' not in pattern and '/**/mar' not in pattern:
        # Python's own globbing finds the same files.
        files = glob.glob(f'{root}/{pattern.replace("{class}", "*")}', recursive=True)
        files = {os.path.relpath(path, root) for path in files if os.path.isfile(path)}
        assert {f for f in files if '__MACOSX' not in f} == set(wanted)


def test_links_that_loop_end_and_folders_off_the_way_are_not_entered(root, monkeypatch):
    (root / '2024/mar/dog/up').symlink_to(root / '2024')
    (root / '2024/mar/dog/gone.jpg').symlink_to(root / 'nowhere')
    listing = list_pattern(f'{root}/2024/**/{{class}}/*.jpg')
    paths = [entry.path for entry in listing.entries]
    assert paths == ['mar/cat/deep/4.jpg', 'mar/dog/5.jpg', 'mar/dog/gone.jpg']
    assert listing.ignored['links to a folder already read'] == 1
    entered = []
    from tlflax.data.inputs import pattern

    def spy(base, folder, *rest, real=pattern.children):
        entered.append(os.path.join(base, folder))
        return real(base, folder, *rest)

    monkeypatch.setattr(pattern, 'children', spy)
    list_pattern(f'{root}/*/jan/{{class}}/*.jpg')
    inner = {os.path.relpath(folder, root) for folder in entered}
    assert inner == {'.', '2023', '2024', 'flat', 'two', '2023/jan', '2023/jan/cat'}


@pytest.mark.parametrize(
    ('rest', 'words'),
    [
        ('*/*.jpg', 'no {class} in the pattern'),
        ('{label}/*.jpg', "'{label}' is not known"),
        ('{class}/*.jpeg', 'no file matches the pattern'),
        ('nowhere/{class}/*', 'no such folder'),
    ],
)
def test_patterns_that_cannot_be_meant(root, rest, words):
    with pytest.raises(UserError) as error:
        list_pattern(f'{root}/{rest}')
    assert words in str(error.value)


def test_folders_whose_names_look_like_patterns(root, monkeypatch):
    assert not is_pattern(f'{root}/two/a[1]')
    assert is_pattern(f'{root}/two/a[2]')
    assert split_base('a/b*/{class}/x') == ('a', 'b*/{class}/x')
    assert split_base('/*/{class}') == ('/', '*/{class}')
    assert split_base('{class}_*.png') == ('.', '{class}_*.png')
    assert split_base('s3://b/c/{class}/*') == ('s3://b/c', '{class}/*')
    monkeypatch.chdir(Path(root, 'flat'))
    assert len(list_pattern('{class}_*.png').names) == 3


@pytest.mark.parametrize(
    ('rest', 'match'),
    [
        ('{class}/[z-a].jpg', 'is not a pattern: bad character range'),
        ('**/a/**/b/**/c/**/{class}', r'4 \*\* in the pattern .*, more than 3'),
        ('a*b*c*{class}', r'more than 2 \* before {class}'),
        ('{class}*' * 4, r'more than 2 \* before {class}'),
        ('{class}/' * 70, '71 folders'),
        ('{class}' + 'x' * 4100, '4107 characters'),
        ('[{class}]/x', 'no file matches'),
        ('{class}/\0', 'no file matches'),
        ('{class}\n', 'no file matches'),
    ],
)
def test_patterns_that_cannot_be_matched(root, rest, match):
    with pytest.raises(UserError, match=match) as caught:
        list_pattern(f'{root}/{rest}')
    assert '\n' not in str(caught.value)


def test_no_name_takes_forever(tmp_path):
    name = 'a' * 250 + '.jpg'
    (tmp_path / name).write_bytes(b'')
    with pytest.raises(UserError, match='no file matches'):
        list_pattern(f'{tmp_path}/{{class}}' + '*a' * 40 + 'b')
    assert found(tmp_path, '{class}' + '*a' * 40 + '*.jpg') == {name: 'a' * 210}


def test_stars_after_the_class_take_what_they_can(root):
    wanted = {'flat/pit_bull_2.png': 'pit_bull', 'flat/pit_bull_10.png': 'pit_bull'}
    assert found(root, 'flat/{class}_*[0-9]*.p*g') == wanted | {'flat/cat_1.png': 'cat'}
    assert found(root, 'f*a*/{class}_*u*_?.png') == {'flat/pit_bull_2.png': 'pit'}

"""Images named by files, folders, patterns and lines of standard input."""

import io
import os

import pytest
from helpers import picture
from PIL import Image

from tlflax.data.images.given import Given
from tlflax.data.inputs import loose_images
from tlflax.utils.errors import UserError

FILES = 'a.jpg b.png 2023/x.jpg 2024/mar/y.jpg 2024/mar/.z.jpg 2024/__MACOSX/w.jpg n[1].jpg'.split()


@pytest.fixture
def album(tmp_path, monkeypatch):
    """A folder of images, which is the current one."""
    for path in FILES:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture((8, 9))).save(tmp_path / path)
    (tmp_path / 'notes.txt').write_text('no image')
    (tmp_path / 'scan').write_bytes((tmp_path / 'b.png').read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shown(found):
    """Paths, and errors as sentences."""
    return [one.path if isinstance(one, Given) else str(one) for one in found]


@pytest.mark.parametrize(
    ('pattern', 'paths'),
    [
        ('*.jpg', ['a.jpg', 'n[1].jpg']),
        ('**/*.jpg', ['a.jpg', 'n[1].jpg', '2023/x.jpg', '2024/mar/y.jpg']),
        ('202[4-9]/**/*', ['2024/mar/y.jpg']),
        ('{class}/*/*', ['2024/mar/y.jpg']),
        ('202?/*', ['2023/x.jpg']),
        ('*', ['a.jpg', 'b.png', 'n[1].jpg', 'scan']),  # contents decide
        ('n[1].jpg', ['n[1].jpg']),  # a file comes before a pattern
    ],
)
def test_patterns_take_the_images_that_a_folder_would(album, pattern, paths):
    assert shown(loose_images.find(pattern)) == paths
    absolute = shown(loose_images.find(f'{album}/{pattern}'))
    assert absolute == [os.path.join(album, path) for path in paths]


@pytest.mark.parametrize(
    ('pattern', 'words'),
    [
        ('*.gif', r'^\*\.gif: no image matches this pattern; '),
        ('n*.txt', 'no image matches'),
        ('nowhere/*.jpg', r"^nowhere/\*\.jpg: no such folder: 'nowhere'"),
        ('*/[z-a].jpg', 'is not a pattern'),
        ('**/**/**/**/x', 'more than 3'),
    ],
)
def test_patterns_of_nothing_are_one_sentence_and_the_rest_is_found(album, pattern, words):
    fault, last = loose_images.find([pattern, 'a.jpg'])
    with pytest.raises(UserError, match=words):
        raise fault
    assert last.path == 'a.jpg'


def test_arguments_of_a_command_are_counted_unless_lines_are_read(album):
    found = loose_images.of_command(['2024', '*.png', 'nowhere', 'a.jpg'], io.BytesIO(b'b.png'))
    assert isinstance(found, list)
    assert shown(found)[::3] == ['2024/mar/y.jpg', 'a.jpg']
    assert 'nowhere: no such file' in shown(found)[2]


def test_lines_name_files_folders_and_patterns_as_they_come(album):
    (album / os.fsdecode(b'caf\xe9.jpg')).write_bytes((album / 'a.jpg').read_bytes())
    drawn = []

    def lines():
        for line in (
            b'2023\n',
            b'\n',
            b'b.png\r\n',
            b'caf\xe9.jpg\n',
            b'a\0b\n',
            b'nowhere\n',
            b'*.png',
        ):
            drawn.append(line)
            yield line

    found = loose_images.of_command(['a.jpg', '-', '2024'], lines())
    assert not isinstance(found, list)
    found = iter(found)
    assert shown([next(found), next(found)]) == ['a.jpg', '2023/x.jpg']
    assert drawn == [b'2023\n']
    rest = shown(found)
    assert rest[:2] == ['b.png', os.fsdecode(b'caf\xe9.jpg')]
    assert rest[2].startswith('standard input: a path cannot have a null character')
    assert rest[3].startswith('nowhere: no such file or folder')
    assert rest[4:] == ['b.png', '2024/mar/y.jpg']

"""Paths as users give them; files written whole or not at all; JSON without NaN."""

import json
import os
import socket
import threading
from pathlib import Path

import pytest

from tlflax.utils.errors import UserError
from tlflax.utils.files import (
    atomic_write,
    dump_json,
    expand,
    regular,
    replacing,
    replacing_folder,
    write_json,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / 'a.txt'
    atomic_write(path, 'old')

    def fail():
        with replacing(path) as partial:
            partial.write_text('half of the n')
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == 'old'
    assert os.listdir(tmp_path) == ['a.txt']


@pytest.mark.parametrize('make', [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_replaced(tmp_path, make):
    path = tmp_path / 'there'
    make(path)
    before = path.stat().st_ino
    for target in path, tmp_path / 'link':
        if target != path:
            target.symlink_to(path)
        with pytest.raises(OSError, match='not a file'):
            atomic_write(target, 'text')
    assert path.stat().st_ino == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ['link', 'there']


def test_the_new_file_has_the_mode_that_open_gives(tmp_path):
    (tmp_path / 'plain').write_text('')
    atomic_write(tmp_path / 'ours', b'\x00\xff')
    assert (tmp_path / 'ours').read_bytes() == b'\x00\xff'
    assert (tmp_path / 'ours').stat().st_mode == (tmp_path / 'plain').stat().st_mode


def test_json_is_strict(tmp_path):
    value = {'a': float('nan'), 'b': [float('inf'), (1.5, None)], 'c': {'d': -float('inf')}}
    plain = {'a': None, 'b': [None, [1.5, None]], 'c': {'d': None}}
    assert json.loads(dump_json(value)) == plain
    write_json(tmp_path / 'v.json', value)
    assert json.loads((tmp_path / 'v.json').read_text()) == plain


def test_homes_are_written_out(monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    assert expand('~/a') == '/home/me/a'
    assert expand(Path('a/~b')) == 'a/~b'


def test_the_home_of_nobody():
    with pytest.raises(UserError) as caught:
        expand('~no_such_user/a')
    text = "there is no user 'no_such_user'"
    assert str(caught.value) == f"'~no_such_user/a': {text}; write the path without ~"


def test_a_name_that_begins_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / '~no_such_user').mkdir()
    assert expand('~no_such_user') == '~no_such_user'


def make(folder, kind):
    path = folder / kind
    if kind == 'a pipe':
        os.mkfifo(path)
    elif kind == 'a socket':
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    elif kind == 'a folder':
        path.mkdir()
    else:
        path = Path('/dev/zero')
    return path


@pytest.mark.parametrize('kind', ['a pipe', 'a socket', 'a folder', 'a device'])
def test_what_is_no_file_is_not_opened(tmp_path, kind):
    with (
        pytest.raises(OSError, match=f'it is {kind}, not a file'),
        open(make(tmp_path, kind), 'rb', opener=regular),
    ):
        pass


def test_files_and_links_to_files_are_opened(tmp_path):
    (tmp_path / 'a').write_bytes(b'abc')
    (tmp_path / 'link').symlink_to('a')
    with open(tmp_path / 'link', 'rb', opener=regular) as file:
        assert file.read() == b'abc'


def put(path, text='new'):
    """Puts a folder of the kind that has the file `marker`."""
    with replacing_folder(path, 'marker', ('marker', 'other')) as partial:
        (partial / 'marker').write_text(text)


def test_a_folder_takes_the_place_of_its_like_only(tmp_path):
    path = tmp_path / 'folder'
    for _ in range(2):  # where there is none, and where there is one
        put(path)
    path.joinpath('thesis.txt').write_text('precious')
    with pytest.raises(OSError, match=r"it has 'thesis\.txt', which would be lost"):
        put(path)
    assert path.joinpath('thesis.txt').read_text() == 'precious'
    path.joinpath('marker').unlink()
    with pytest.raises(OSError, match='has no marker'):
        put(path)
    assert os.listdir(tmp_path) == ['folder']


def test_a_link_to_a_folder_stays_one(tmp_path):
    (tmp_path / 'real').mkdir()
    (tmp_path / 'link').symlink_to('real')
    put(tmp_path / 'link')
    assert (tmp_path / 'link').readlink() == Path('real')
    assert (tmp_path / 'real' / 'marker').read_text() == 'new'
    assert sorted(os.listdir(tmp_path)) == ['link', 'real']


def test_where_no_folder_can_be_put(tmp_path, monkeypatch):
    (tmp_path / 'dangling').symlink_to('nowhere')
    (tmp_path / 'file').write_text('')
    for name, what in {'dangling': 'a link to nothing', 'file': 'Not a directory'}.items():
        with pytest.raises(OSError, match=what):
            put(tmp_path / name)
    with pytest.raises(NotADirectoryError):
        put(Path(os.devnull))
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    for path in Path('.'), Path(), tmp_path / 'here':
        with pytest.raises(OSError, match='the folder in which the command runs'):
            put(path)
    assert sorted(os.listdir(tmp_path)) == ['dangling', 'file', 'here']


def test_the_old_folder_is_back_where_the_new_one_cannot_be_put(tmp_path, monkeypatch):
    path = tmp_path / 'folder'
    put(path, 'old')
    rename = Path.rename

    def interrupted(self, target):
        if self.suffix == '.new':
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, 'rename', interrupted)
    with pytest.raises(KeyboardInterrupt):
        put(path, 'new')
    assert (path / 'marker').read_text() == 'old'
    assert os.listdir(tmp_path) == ['folder']


def test_two_put_folders_at_once(tmp_path):
    failed = []

    def often(text):
        try:
            for _ in range(50):
                put(tmp_path / 'folder', text)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=often, args=(text,)) for text in 'abc']
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert (tmp_path / 'folder' / 'marker').read_text() in 'abc'
    assert os.listdir(tmp_path) == ['folder']

"""Files written whole or not at all; JSON without NaN."""

import json
import os

import pytest

from tlflax.utils.files import atomic_write, dump_json, replacing, write_json


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

"""A sweep that is stopped at any moment goes on with the settings that are left."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from helpers import make_folders, small_config

import tlflax
from tlflax.sweep import run as sweeping
from tlflax.sweep.journal import Journal
from tlflax.train import setup
from tlflax.utils.errors import UserError
from tlflax.workdir.files import Workdir

SETTINGS = [{'optim.learning_rate': rate} for rate in (1e-5, 1e-3, 1e-4, 1e-2)]
TIMES = {'epoch_seconds', 'images_per_second', 'wall_seconds', 'peak_memory_bytes', 'sha256'}


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp('images')
    make_folders(root / 'Train', 7, seed=1)
    make_folders(root / 'Test', 3, seed=2)
    return setup.configure(small_config(root, train__epochs=3, early_stopping__monitor='val_loss'))


def without_times(value):
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def sweep(config, workdir, settings=SETTINGS):
    return without_times(sweeping.run(config, settings, Workdir(workdir)))


@pytest.fixture(scope='module')
def whole(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('sweeps') / 'whole'
    return workdir, sweep(config, workdir)


@pytest.fixture
def trained(monkeypatch):
    """The settings that were trained, by their number from 0."""
    numbers, train = [], sweeping.Sweep.train

    def counting(self):
        for number in train(self):
            numbers.append(number)
            yield number

    monkeypatch.setattr(sweeping.Sweep, 'train', counting)
    return numbers


def assert_same(workdir, ranking, whole):
    assert ranking == whole[1]
    assert without_times(json.loads((workdir / 'sweep.json').read_text())) == ranking
    ours, theirs = (
        without_times(json.loads((w / 'best' / 'result.json').read_text()))
        for w in (workdir, whole[0])
    )
    assert ours == theirs
    assert tlflax.load(workdir / 'best').config == tlflax.load(whole[0] / 'best').config
    assert {path.name for path in workdir.iterdir()} == {
        'best', 'members.jsonl', 'sweep.csv', 'sweep.json'
    }  # fmt: skip


@pytest.mark.parametrize('renames', [0, 1, 2])
def test_killed_while_it_publishes_the_best(config, tmp_path, monkeypatch, whole, renames):
    """Before, between and after the two renamings that put a new `best/` into its place."""
    rename, done = os.rename, []

    def renamed(source, target):
        ours = Path(source).name == '.best.new' or Path(target).name == '.best.old'
        if ours and len(done) == 1 + renames:  # the first best replaces none, with one renaming
            os.rename = None  # nothing more is done, as after a kill
            raise RuntimeError('killed')
        rename(source, target)
        if ours:
            done.append(source)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'rename', renamed)
        with pytest.raises(RuntimeError, match='killed'):
            sweep(config, tmp_path / 'w')
    assert_same(tmp_path / 'w', sweep(config, tmp_path / 'w'), whole)


def test_finished_settings_are_not_trained_again(config, tmp_path, monkeypatch, trained, whole):
    add, added = Journal.add, []

    def interrupted(self, number, member, seconds):
        add(self, number, member, seconds)
        added.append(number)
        if len(added) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, 'add', interrupted)
        with pytest.raises(KeyboardInterrupt, match='run the same command to continue'):
            sweep(config, tmp_path / 'w')
    trained.clear()
    ranking = sweep(config, tmp_path / 'w')
    assert set(trained) == {0, 1, 2, 3} - set(added)
    assert_same(tmp_path / 'w', ranking, whole)
    trained.clear()
    assert sweep(config, tmp_path / 'w') == ranking
    assert trained == []


def test_damaged_lines_and_a_lost_best_are_trained_again(config, tmp_path, trained, whole):
    shutil.copytree(whole[0], tmp_path / 'w')
    journal = tmp_path / 'w' / 'members.jsonl'
    header, first, *lines = journal.read_text().splitlines()
    number = json.loads(first)['number']
    damaged = first.replace('"val_loss": ', '"val_loss": 1')
    assert damaged != first
    journal.write_text('\n'.join([header, damaged, *lines, lines[0][:50]]) + '\n')
    shutil.rmtree(tmp_path / 'w' / 'best')
    ranking = sweep(config, tmp_path / 'w')
    assert set(trained) == {number, ranking[0]['number'] - 1}
    assert_same(tmp_path / 'w', ranking, whole)


def test_full_disk_is_a_sentence(config, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr('tlflax.sweep.journal.atomic_write', full)
    with pytest.raises(UserError, match=r'cannot be written \(No space left on device\)'):
        sweep(config, tmp_path / 'w')


def test_another_sweep_in_the_workdir_is_refused(config, whole):
    with pytest.raises(UserError, match='a sweep of other settings'):
        sweep(config, whole[0], SETTINGS[:3])


def test_a_damaged_header_is_refused(config, tmp_path, whole):
    shutil.copytree(whole[0], tmp_path / 'w')
    journal = tmp_path / 'w' / 'members.jsonl'
    journal.write_text(journal.read_text()[1:])
    with pytest.raises(UserError, match='the first line is damaged'):
        sweep(config, tmp_path / 'w')

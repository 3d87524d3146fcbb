"""Progress on a terminal and in a pipe, as a process of its own shows it."""

import contextlib
import os
import pty
import re
import select
import subprocess
import sys
import termios

import jax.numpy as jnp
import pytest
from helpers import make_folders, run_new_python, small_config

from tlflax.train import epoch, loop, steps, train_and_evaluate

WORK = """
import sys, time
from absl import logging
from tlflax.config.libraries import set_up_logging
from tlflax.utils import progress
set_up_logging()
logging.get_absl_handler().filters.clear()  # of lines that are not of tlflax
for name in sys.argv[1:]:
    setattr(progress, name, 0.0)
asked = []
def note():
    asked.append(1)
    return f'loss {len(asked)}.5'
with progress.progress('epoch 2/9', 400, 'patience 1 of 3') as tick:
    for step in range(200):
        tick(2, note)
        time.sleep(0.005)
        if step == 150:
            logging.info('a line of the log')
logging.info('asked %d times', len(asked))
"""


def on_a_terminal(code, *arguments):
    """Runs code whose stderr is a terminal; returns everything that it wrote there."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    command = [sys.executable, '-c', code, *arguments]
    process = subprocess.Popen(command, stderr=theirs, stdin=subprocess.DEVNULL)
    os.close(theirs)
    written = b''
    while True:
        ready, _, _ = select.select([ours], [], [], 60)
        assert ready, written
        try:
            part = os.read(ours, 4096)
        except OSError:  # Linux: the other end is closed
            part = b''
        if not part:
            break
        written += part
    os.close(ours)
    assert process.wait(timeout=60) == 0, written
    return written.decode()


def screen(written):
    """The lines that a terminal shows after all was written: returns go back, others overwrite."""
    assert '\x1b' not in written
    lines = []
    for line in written.replace('\r\n', '\n').split('\n'):
        cells = []
        for text in line.split('\r'):
            cells[: len(text)] = text
        lines.append(''.join(cells).rstrip())
    return [line for line in lines if line]


@pytest.fixture(scope='module')
def terminal():
    return on_a_terminal(WORK, '_DELAY')


def test_bar_shows_speed_time_left_and_notes(terminal):
    bars = [bar for bar in re.split('[\r\n]', terminal) if 'img/s' in bar]
    assert bars
    shown = (
        r'epoch 2/9: +\d+%.* \d+/400 \[00:0\d<00:0\d, +[\d.]+img/s, loss \d+\.5, patience 1 of 3'
    )
    assert all(re.match(shown, bar) for bar in bars[1:]), bars


def test_bar_and_log_lines_do_not_mix(terminal):
    lines = screen(terminal)
    assert lines[0] == 'a line of the log'
    assert re.fullmatch(r'asked \d+ times', lines[1])
    assert len(lines) == 2  # the bar is gone


def test_note_is_asked_for_where_it_is_shown_only(terminal):
    asked = int(re.search(r'asked (\d+) times', terminal)[1])
    assert 1 < asked < 40  # of 200 steps, in about a second


def test_short_work_shows_no_bar():
    written = on_a_terminal(WORK.replace('time.sleep(0.005)', 'pass'))
    assert screen(written) == ['a line of the log', 'asked 0 times']
    assert 'epoch' not in written


def test_pipe_gets_few_plain_lines():
    done = run_new_python('-c', WORK)
    assert done.returncode == 0
    assert done.stderr.splitlines() == ['a line of the log', 'asked 0 times']
    done = run_new_python('-c', WORK, '_PLAIN_SECONDS')
    lines = done.stderr.splitlines()
    line = r'epoch 2/9: (\d+)/400 images, [\d.]+/s, \d+ s left, loss \d+\.5, patience 1 of 3'
    counts = [int(found[1]) for one in lines if (found := re.fullmatch(line, one))]
    assert counts == list(range(2, 400, 2))
    assert '\r' not in done.stderr


def test_no_thread_and_no_filter_is_left():
    code = WORK + (
        'import threading\n'
        'assert threading.active_count() == 1, threading.enumerate()\n'
        'assert len(logging.get_absl_handler().filters) == 0\n'
    )
    on_a_terminal(code, '_DELAY')


def test_hidden_progress_is_not_shown():
    code = WORK.replace('asked = []', 'asked = []; progress.hide()')
    assert screen(on_a_terminal(code, '_DELAY')) == ['a line of the log', 'asked 0 times']


class Value:
    """A value of a device, which says whether it is computed; reading it too early fails."""

    def __init__(self, value, ready):
        self.value, self.ready = value, ready

    def is_ready(self):
        return self.ready

    def __array__(self, dtype=None, copy=None):
        assert self.ready
        return jnp.asarray(self.value).__array__(dtype)


def test_loss_is_that_of_the_last_step_that_has_ended():
    sums = [
        steps.Sums(*(Value(value, number < 2) for value in (loss, 0.0, 4.0)))
        for number, loss in enumerate([2.0, 6.0, 1.0])
    ]
    assert epoch._loss(sums) == 'loss 1.5000'
    assert epoch._loss(sums[2:]) == ''
    scans = [steps.Sums(*(jnp.float32([value, value]) for value in (3.0, 0.0, 8.0)))]
    assert epoch._loss(scans) == 'loss 0.3750'


def test_training_tells_epoch_loss_best_and_patience(tmp_path, monkeypatch):
    make_folders(tmp_path / 'Train', 7, seed=1)
    make_folders(tmp_path / 'Test', 3, seed=2)
    config = small_config(tmp_path, features__cache='False', early_stopping__monitor='val_loss')
    told = []

    class Tick:
        def __init__(self, name, note):
            self.name, self.note = name, note

        def __call__(self, images, note=None):
            told.append((self.name, images, note() if note else '', self.note))

    @contextlib.contextmanager
    def progress(name, total, note=''):
        yield Tick(name, note)

    monkeypatch.setattr(loop, 'progress', progress)
    train_and_evaluate(config, tmp_path / 'w')
    train = [one for one in told if one[0].startswith('epoch')]
    assert [one[:2] for one in train[:3]] == [('epoch 1/4', n) for n in (8, 8, 5)]
    assert train[0][3] == 'patience 3 of 3'
    assert re.fullmatch(r'best val_loss \d\.\d{4} in epoch 1, patience 3 of 3', train[3][3])
    assert any(re.fullmatch(r'loss \d\.\d{4}', one[2]) for one in train)
    assert {one[2] for one in train} <= {one[2] for one in train if one[2].startswith('loss')} | {
        ''
    }

"""`evaluate --watch`: every checkpoint of a training that is under way, as it comes."""

import json
import shutil
import subprocess
import sys

import pytest
from helpers import make_folders, run_module, toy_config

import tlflax
from tlflax.inference.watch import evaluate_each
from tlflax.train import train_and_evaluate
from tlflax.utils.errors import UserError
from tlflax.workdir.checkpoints import saved_steps


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('watch')
    make_folders(root / 'Train', 4, seed=1)
    make_folders(root / 'Test', 3, seed=2)
    return root


def test_checkpoints_that_are_deleted_meanwhile_are_passed_over(root, tmp_path, monkeypatch):
    train_and_evaluate(toy_config(root, train__epochs=1), tmp_path / 'w')

    def steps(*looks):
        each = iter(looks)
        monkeypatch.setattr('tlflax.inference.watch.saved_steps', lambda folder: next(each))
        found = evaluate_each(tmp_path / 'w', lambda one: one.evaluate(), pause=0)
        return [one['step'] for one in found]

    (own,) = saved_steps(tmp_path / 'w/checkpoints')
    assert steps([own]) == [own]
    assert steps([own - 1, own], [own]) == [own]
    assert steps([own], [own]) == [own]
    with pytest.raises(UserError, match='no checkpoint of step'):
        steps([own, own + 1], [own, own + 1])


def test_a_training_is_followed_to_its_end(root, tmp_path):
    workdir = tmp_path / 'w'
    command = [sys.executable, '-m', 'tlflax.evaluate', f'--workdir={workdir}', '--watch']
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        train_and_evaluate(toy_config(root, train__epochs=40), workdir)
        out, _ = watching.communicate(timeout=120)
    assert watching.returncode == 0
    found = [json.loads(line) for line in out.splitlines()]
    steps = [one['step'] for one in found]
    assert steps == sorted(set(steps))
    last = tlflax.load(workdir, 'last').evaluate()
    assert (found[-1]['step'], found[-1]['loss']) == (last['step'], last['loss'])
    refused = run_module('evaluate', f'--workdir={workdir}', '--watch', '--step=best')
    assert refused.returncode == 2
    assert 'leave out --step and --calibrated' in refused.stderr


def test_what_will_never_have_a_checkpoint(root, tmp_path):
    def watched(workdir):
        return list(evaluate_each(workdir, lambda one: one.evaluate(), pause=0))

    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='this is a file, not a workdir'):
        watched(tmp_path / 'file')
    whole = tmp_path / 'whole'
    whole.mkdir()
    (whole / 'config.json').write_text(json.dumps({'data': {'fold': 'all'}}))
    with pytest.raises(UserError, match='this is a cross-validation'):
        watched(whole)
    train_and_evaluate(toy_config(root), tmp_path / 'w')
    shutil.rmtree(tmp_path / 'w' / 'checkpoints')
    with pytest.raises(UserError, match='no checkpoint found'):
        watched(tmp_path / 'w')

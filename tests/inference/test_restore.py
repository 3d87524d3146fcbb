"""What is restored is what was trained: the step, the images, the paths."""

import json
import shutil

import pytest
from helpers import make_folders, run_module, small_config

import tlflax
from tlflax.config.parse import resolve
from tlflax.config.paths import started_in
from tlflax.train import train_and_evaluate
from tlflax.utils.errors import UserError
from tlflax.workdir.checkpoints import Checkpoints


def make_project(folder, seed=1):
    make_folders(folder / 'Train', 7, seed=seed)
    make_folders(folder / 'Test', 3, seed=seed + 1)


def relative_config(**changes):
    config = small_config(changes.pop('root'), **changes)
    config.data.train, config.data.val = 'Train', 'Test'
    return config


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with relative paths and a finished run; the working directory is elsewhere."""
    make_project(tmp_path / 'project')
    monkeypatch.chdir(tmp_path / 'project')
    result = train_and_evaluate(relative_config(root=tmp_path, train__epochs=2), 'w')
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path / 'elsewhere')
    return tmp_path / 'project', result


def test_relative_paths_start_where_the_run_was_started(project, tmp_path):
    make_project(tmp_path / 'elsewhere', seed=5)  # other images under the same relative path
    evaluated = tlflax.load(project[0] / 'w').evaluate()
    assert evaluated['loss'] == pytest.approx(project[1]['val']['loss'], abs=1e-6)


def test_a_project_that_was_moved_is_evaluated_where_it_is(project, tmp_path, monkeypatch):
    shutil.move(project[0], tmp_path / 'moved')
    monkeypatch.chdir(tmp_path / 'moved')
    evaluated = tlflax.load('w').evaluate()
    assert evaluated['loss'] == pytest.approx(project[1]['val']['loss'], abs=1e-6)


def test_other_validation_images_are_refused(project):
    (project[0] / 'Test' / 'red' / '000.jpg').unlink()
    done = run_module('evaluate', f'--workdir={project[0] / "w"}')
    assert done.returncode == 2
    assert 'not the validation images that the run was evaluated on' in done.stderr
    named = run_module('evaluate', f'--workdir={project[0] / "w"}', f'--data={project[0]}/Test')
    assert json.loads(named.stdout.splitlines()[-1])['num_examples'] == 8


def test_validation_held_out_of_training_is_recognized(tmp_path, monkeypatch):
    make_project(tmp_path)
    config = small_config(tmp_path, train__epochs=1)
    config.data.val, config.data.val_fraction = '', 0.3
    result = train_and_evaluate(config, tmp_path / 'w')
    evaluated = tlflax.load(tmp_path / 'w').evaluate()
    assert evaluated['loss'] == pytest.approx(result['val']['loss'], abs=1e-6)
    (tmp_path / 'Train' / 'red' / '000.jpg').unlink()
    with pytest.raises(UserError, match='not the validation images'):
        tlflax.load(tmp_path / 'w').evaluate()


def test_paths_of_every_kind(tmp_path):
    for name in ('photos', 'list.csv', 'nets.py', 'w.h5'):
        (tmp_path / name).touch()
    config = resolve(
        {
            'data': {'train': 'list.csv#train', 'val': 'photos/{class}/*.jpg', 'test': 'tfds:a/b'},
            'weights': {'source': 'w.h5'},
            'model': {'backbone': 'py:nets.py:NET', 'head': 'conv'},
        }
    )
    seen = started_in(config, str(tmp_path))
    assert seen.data.train == f'{tmp_path}/list.csv#train'
    assert seen.data.val == f'{tmp_path}/photos/{{class}}/*.jpg'
    assert seen.data.test == 'tfds:a/b'
    assert seen.weights.source == f'{tmp_path}/w.h5'
    assert seen.model.backbone == f'py:{tmp_path}/nets.py:NET'
    assert seen.model.head == 'conv'
    assert started_in(config, '/nowhere') == config
    assert started_in(config, '') == config
    for text in ('/a/b', '~/a', 's3://a/b', 'demo:traffic_lights/Train', ''):
        one = resolve({'data': {'train': text}})
        assert started_in(one, str(tmp_path)) == one


STOPPING = [
    # As in Keras, the weights of the last epoch are those that count where none was monitored.
    ({'start_from_epoch': 9}, 3, 'last'),
    ({'restore_best': False}, None, 'last'),
    ({}, None, 'best'),
]


@pytest.mark.parametrize(('stopping', 'best_epoch', 'counts'), STOPPING, ids=str)
def test_result_and_load_speak_of_one_step(tmp_path, stopping, best_epoch, counts):
    make_project(tmp_path)
    config = small_config(
        tmp_path,
        train__epochs=3,
        optim__learning_rate=0.3,
        **{f'early_stopping__{key}': value for key, value in stopping.items()},
    )
    config.early_stopping.monitor, config.early_stopping.mode = 'val_loss', 'max'  # the first epoch
    result = train_and_evaluate(config, tmp_path / 'w')
    expected = best_epoch or 1
    lines = (tmp_path / 'w' / 'metrics.jsonl').read_text().splitlines()
    losses = [json.loads(line)['val_loss'] for line in lines]
    assert losses[0] == max(losses)
    assert result['best_epoch'] == expected
    assert result['best_val_loss'] == losses[expected - 1]
    assert result['step'] == (9 if counts == 'last' else 3)
    restored = tlflax.load(tmp_path / 'w')
    assert restored.step == result['step']
    assert restored.evaluate()['loss'] == pytest.approx(result['val']['loss'], abs=1e-6)
    assert tlflax.load(tmp_path / 'w', 'best').step == 3 * expected
    assert tlflax.load(tmp_path / 'w', 'last').step == 9


def test_an_unknown_preprocessing_is_one_sentence(project, monkeypatch):
    meta = Checkpoints.meta

    def changed(saved, step):
        return {**meta(saved, step), 'preprocess': 'sepia'}

    monkeypatch.setattr(Checkpoints, 'meta', changed)
    with pytest.raises(UserError, match="checkpoint 6: it names the preprocessing 'sepia'"):
        tlflax.load(project[0] / 'w')

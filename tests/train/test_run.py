"""Whole runs on generated images: contracts, resuming, interruption, bad input."""

import json
import runpy
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from fork_server import server
from helpers import (
    ROOT,
    TESTS,
    Stops,
    make_folders,
    run_module,
    small_config,
    write_config,
)

import tlflax
from tlflax.train import components, loop, train_and_evaluate
from tlflax.utils.errors import UserError
from tlflax.workdir.checkpoints import Checkpoints

RECORD = {
    'epoch', 'step', 'train_loss', 'train_accuracy', 'val_loss', 'val_accuracy',
    'val_balanced_accuracy', 'val_macro_f1', 'val_worst_recall', 'learning_rate',
    'epoch_seconds', 'images_per_second',
}  # fmt: skip
RESULT = {
    'best_epoch', 'best_val_accuracy', 'best_val_loss', 'stopped_early', 'epochs_run',
    'wall_seconds', 'peak_memory_bytes', 'weights_digest', 'data_digest', 'versions',
}  # fmt: skip
TIMES = {'epoch_seconds', 'images_per_second', 'wall_seconds', 'peak_memory_bytes'}


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('images')
    make_folders(root / 'Train', 7, seed=1)
    make_folders(root / 'Test', 3, seed=2)
    return root


def records(workdir):
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def last_params(workdir):
    restored = tlflax.load(workdir, 'last')
    return jax.device_get(restored.trainable.params)


@pytest.fixture(scope='module')
def finished(folders, tmp_path_factory):
    """A finished run, its configuration and its result."""
    workdir = tmp_path_factory.mktemp('runs') / 'finished'
    config = small_config(folders)
    return workdir, config, train_and_evaluate(config, workdir)


def test_workdir_holds_what_the_contract_says(finished):
    workdir, _, result = finished
    assert json.loads((workdir / 'result.json').read_text()) == result
    assert set(result) >= RESULT
    lines = records(workdir)
    assert [line['epoch'] for line in lines] == [1, 2, 3, 4]
    assert [line['step'] for line in lines] == [3, 6, 9, 12]  # 21 images in batches of 8
    text = (workdir / 'metrics.jsonl').read_text()
    assert all(set(json.loads(line)) == RECORD for line in text.splitlines())
    assert json.loads((workdir / 'config.json').read_text())['train']['batch_size'] == 8
    assert list((workdir / 'tensorboard').iterdir())
    assert (workdir / 'checkpoints').is_dir()
    assert result['epochs_run'] == 4
    assert result['val']['num_examples'] == 9


def test_learns(finished):
    assert finished[2]['best_val_accuracy'] > 0.8


def test_finished_run_is_not_run_again(finished):
    workdir, config, result = finished
    stamp = (workdir / 'metrics.jsonl').stat().st_mtime_ns
    assert train_and_evaluate(config, workdir) == result
    assert (workdir / 'metrics.jsonl').stat().st_mtime_ns == stamp


def test_same_seed_same_numbers(finished, tmp_path):
    workdir, config, _ = finished
    train_and_evaluate(config, tmp_path / 'again')
    assert records(tmp_path / 'again') == records(workdir)


def test_checkpoint_keeps_best_and_last_only(folders, tmp_path):
    config = small_config(folders, train__epochs=5)
    config.early_stopping.monitor = 'val_loss'
    result = train_and_evaluate(config, tmp_path / 'w')
    with Checkpoints(tmp_path / 'w' / 'checkpoints', read_only=True) as saved:
        steps = {saved.find('best'), saved.find('last')}
        on_disk = {int(p.name) for p in (tmp_path / 'w' / 'checkpoints').iterdir() if p.is_dir()}
        assert on_disk == steps
        assert saved.find('best') == result['step']
        meta = saved.meta(result['step'])
    losses = [line['val_loss'] for line in records(tmp_path / 'w')]
    assert meta['record']['val_loss'] == losses[result['best_epoch'] - 1]


@pytest.mark.parametrize(
    ('cache', 'answers', 'step'),
    [
        ('False', 4, 4),  # asked before each step: stops one step into the second epoch
        ('auto', 2, 6),  # asked before each scan, which is an epoch here: stops after the second
    ],
)
def test_interrupted_run_goes_on_exactly(folders, tmp_path, monkeypatch, cache, answers, step):
    """Stopped, in the middle of an epoch too, and resumed = never stopped, bit for bit."""
    config = small_config(folders, features__cache=cache)
    train_and_evaluate(config, tmp_path / 'whole')
    stops = iter([False] * answers + [True] + [False] * 1000)
    monkeypatch.setattr(loop.interrupts, 'deferred', lambda announce: Stops(stops))
    with pytest.raises(loop.Interrupted) as interrupted:
        train_and_evaluate(config, tmp_path / 'parts')
    assert not (tmp_path / 'parts' / 'result.json').exists()
    assert interrupted.value.step == step
    train_and_evaluate(config, tmp_path / 'parts')
    assert records(tmp_path / 'parts') == records(tmp_path / 'whole')
    jax.tree.map(
        np.testing.assert_array_equal,
        last_params(tmp_path / 'parts'),
        last_params(tmp_path / 'whole'),
    )


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_the_same_command_goes_on(folders, tmp_path, number):
    config_file = tmp_path / 'config.py'
    config_file.write_text(
        'import sys\n'
        f'sys.path.insert(0, {str(TESTS)!r})\n'
        'from pathlib import Path\n'
        'from helpers import small_config\n'
        'def get_config():\n'
        f'    return small_config(Path({str(folders)!r}), train__epochs=3000)\n'
    )
    arguments = [f'--config={config_file}', f'--workdir={tmp_path / "w"}']
    metrics = tmp_path / 'w' / 'metrics.jsonl'
    with open(tmp_path / 'stderr', 'w+') as file:
        process = server().start('module', 'tlflax.train', *arguments, stderr=file)
        while process.poll() is None and not (metrics.exists() and metrics.read_text()):
            time.sleep(0.1)
        process.send_signal(number)
        process.wait(timeout=60)
        stderr = (tmp_path / 'stderr').read_text()
    assert process.returncode == 130, stderr
    assert 'saved at step' in stderr
    assert 'run the same command to continue' in stderr
    assert 'Traceback' not in stderr
    with Checkpoints(tmp_path / 'w' / 'checkpoints', read_only=True) as saved:
        assert saved.steps()


def test_each_epoch_says_what_is_left(folders, tmp_path, caplog):
    caplog.set_level('INFO')
    config = small_config(folders, train__epochs=30, early_stopping__monitor='val_accuracy')
    config.optim.learning_rate, config.early_stopping.patience = 0.0, 2
    train_and_evaluate(config, tmp_path / 'w')
    lines = [text for text in caplog.messages if text.startswith('epoch ')]
    text = (tmp_path / 'w' / 'metrics.jsonl').read_text()
    seconds = [json.loads(line)['epoch_seconds'] for line in text.splitlines()]
    accuracy = records(tmp_path / 'w')[0]['val_accuracy']
    best = f', best val_accuracy {accuracy:.4f} in epoch 1'
    assert lines[0].endswith(f'{best}, patience 2 of 2, at most {29 * seconds[0]:.0f} s left')
    assert lines[1].endswith(f'{best}, patience 1 of 2, at most {28 * seconds[1]:.0f} s left')
    assert lines[2].endswith(f' s{best}')
    assert len(lines) == 3


def test_quiet_leaves_nothing_but_warnings_and_the_result(folders, tmp_path):
    arguments = [
        f'--config={write_config(tmp_path / "c.py", folders)}',
        f'--workdir={tmp_path / "w"}',
        '--config.train.epochs=1',
    ]
    quiet = run_module('train', *arguments, '--quiet')
    assert quiet.returncode == 0, quiet.stderr
    assert all(line.startswith('WARNING') for line in quiet.stderr.splitlines()), quiet.stderr
    again = run_module('train', *arguments)
    assert again.stdout == quiet.stdout
    assert 'is finished' in again.stderr


def test_early_stopping_ends_the_run(folders, tmp_path):
    config = small_config(folders, train__epochs=30)
    config.early_stopping.monitor = 'val_acc'  # Keras's old name
    config.early_stopping.min_delta = 0.5  # nothing improves by so much twice
    result = train_and_evaluate(config, tmp_path / 'w')
    assert result['stopped_early']
    assert result['epochs_run'] <= 8
    best = records(tmp_path / 'w')[result['best_epoch'] - 1]
    assert best['val_accuracy'] == result['best_val_accuracy'] == result['val']['accuracy']


def test_any_head_of_the_config_for_any_images(folders, tmp_path):
    """The last epoch counts, at a rate that has fallen to zero."""
    config = runpy.run_path(str(ROOT / 'configs' / 'images.py'))['get_config']()
    small = small_config(folders)
    config.data, config.weights, config.features = small.data, small.weights, small.features
    config.model.head = 'gap_linear'
    config.train.epochs = 3
    result = train_and_evaluate(config, tmp_path / 'w')
    assert result['best_epoch'] == result['epochs_run'] == 3
    assert result['step'] == 9  # 21 images in batches of 8
    rates = [line['learning_rate'] for line in records(tmp_path / 'w')]
    assert rates == pytest.approx([3e-4 * 3 / 4, 3e-4 / 4, 0], abs=1e-10)  # a cosine


def test_evaluate_reproduces_the_recorded_metrics(finished):
    workdir, _, result = finished
    done = run_module('evaluate', f'--workdir={workdir}')
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert set(last) >= {
        'accuracy', 'loss', 'num_examples', 'per_class', 'confusion_matrix', 'step'
    }  # fmt: skip
    assert abs(last['loss'] - result['best_val_loss']) < 1e-6
    assert abs(last['accuracy'] - result['best_val_accuracy']) < 1e-6
    assert np.sum(last['confusion_matrix']) == last['num_examples'] == 9
    assert done.stderr.count('\n') <= 3  # our own lines and nothing else
    four = run_module(
        'evaluate', f'--workdir={workdir}',
        XLA_FLAGS='--xla_force_host_platform_device_count=4',
    )  # fmt: skip
    assert abs(json.loads(four.stdout.splitlines()[-1])['loss'] - last['loss']) < 1e-6


def test_predict_as_text_json_and_csv(finished, folders):
    workdir, _, _ = finished
    photo = folders / 'Test' / 'red' / '000.jpg'
    done = run_module('predict', f'--workdir={workdir}', str(photo))
    assert done.returncode == 0, done.stderr
    path, label, probability = done.stdout.split()
    assert (path, label) == (str(photo), 'red')
    done = run_module('predict', f'--workdir={workdir}', '--format=json', str(folders / 'Test'))
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 9
    assert all(abs(sum(line['probabilities'].values()) - 1) < 1e-5 for line in lines)
    mine = next(line for line in lines if line['path'] == str(photo))
    assert abs(mine['probability'] - float(probability)) < 1e-4
    done = run_module('predict', f'--workdir={workdir}', '--format=csv', str(photo))
    assert done.stdout.splitlines()[0] == 'path,class,probability,true_class,green,red,yellow'


def test_predict_from_python_on_files_and_arrays(finished, folders):
    import tlflax
    from tlflax.data.images.decode import read_image

    classifier = tlflax.load(finished[0])
    photo = folders / 'Test' / 'yellow' / '001.jpg'
    one = classifier.predict([photo])[0]
    assert one.label == 'yellow'
    assert one.probability == max(one.probabilities.values())
    from PIL import Image

    resized = np.asarray(
        Image.fromarray(read_image(photo)).resize((32, 32), Image.Resampling.BILINEAR)
    )
    other = classifier.predict(resized[None])[0]
    assert abs(other.probability - one.probability) < 0.02
    with pytest.raises(UserError, match='uint8'):
        classifier.predict(resized[None].astype(np.float32))


def test_predict_names_what_is_no_image_and_does_the_rest(finished, folders, tmp_path):
    bad = tmp_path / 'bad.jpg'
    bad.write_bytes(b'no image')
    photo = folders / 'Test' / 'red' / '000.jpg'
    done = run_module('predict', f'--workdir={finished[0]}', str(bad), str(photo))
    assert done.returncode == 2
    assert str(bad) in done.stderr
    assert str(photo) in done.stdout
    assert 'Traceback' not in done.stderr


def test_include_backbone_needs_no_weights(folders, tmp_path, monkeypatch):
    config = small_config(folders, train__epochs=1)
    config.checkpoint.include_backbone = True
    result = train_and_evaluate(config, tmp_path / 'w')
    monkeypatch.setattr(
        'tlflax.train.components.load_backbone', lambda config: pytest.fail('was loaded')
    )
    restored = tlflax.load(tmp_path / 'w')
    monkeypatch.undo()
    assert abs(restored.evaluate()['loss'] - result['best_val_loss']) < 1e-6


def test_other_weights_are_refused_at_restore(finished, tmp_path, monkeypatch):
    real = components.load_backbone

    def other(config):
        import dataclasses

        return dataclasses.replace(real(config), digest='0' * 64)

    monkeypatch.setattr('tlflax.train.components.load_backbone', other)
    with pytest.raises(UserError, match='not those of the run'):
        tlflax.load(finished[0])


def test_test_split_is_evaluated_once_at_the_end(folders, tmp_path):
    config = small_config(folders, train__epochs=1)
    config.data.val, config.data.val_fraction, config.data.test = '', 0.3, str(folders / 'Test')
    result = train_and_evaluate(config, tmp_path / 'w')
    assert result['test']['num_examples'] == 9
    assert result['val']['num_examples'] == 6  # 30 % of 7 in each class
    assert not any('test' in key for key in records(tmp_path / 'w')[0])


def test_fractions_are_of_all_images(folders, tmp_path):
    from tlflax.config.parse import resolve
    from tlflax.data.splits import load

    config = small_config(folders)
    config.data.val, config.data.val_fraction, config.data.test_fraction = '', 2 / 7, 2 / 7
    splits = load.load_splits(resolve(config).data)
    assert [len(splits.train), len(splits.val), len(splits.test)] == [9, 6, 6]
    everything = {*splits.train.paths, *splits.val.paths, *splits.test.paths}
    assert len(everything) == 21


def test_split_is_stable_when_other_classes_grow(tmp_path):
    from tlflax.config.parse import resolve
    from tlflax.data.splits import load

    make_folders(tmp_path / 'Train', 10)
    config = small_config(tmp_path)
    config.data.val, config.data.val_fraction, config.data.test_fraction = '', 0.2, 0.3
    before = load.load_splits(resolve(config).data)
    make_folders(tmp_path / 'more', 9, seed=9)
    for photo in (tmp_path / 'more' / 'red').iterdir():
        photo.rename(tmp_path / 'Train' / 'red' / f'more-{photo.name}')
    after = load.load_splits(resolve(config).data)
    for name in ('val', 'test'):
        old, new = (
            {p for p in getattr(s, name).paths if '/red/' not in p} for s in (before, after)
        )
        assert old == new


def test_images_in_both_splits_are_reported(tmp_path, caplog):
    make_folders(tmp_path / 'Train', 4)
    make_folders(tmp_path / 'Test', 2, seed=3)
    leaked = tmp_path / 'Test' / 'red' / 'again.jpg'
    leaked.write_bytes((tmp_path / 'Train' / 'red' / '000.jpg').read_bytes())
    train_and_evaluate(small_config(tmp_path, train__epochs=1), tmp_path / 'w')
    assert any('again.jpg' in record.message for record in caplog.records)


BAD = [
    ({'data__val': '', 'data__val_fraction': 0.6, 'data__test_fraction': 0.5}, '_fraction', 'less'),
    ({'data__train': '/nowhere'}, 'config.data.train', 'nowhere'),
    ({'data__train': ''}, 'config.data.train', 'one sub-folder'),
    ({'data__val': ''}, 'config.data.val', 'val_fraction'),
    ({'data__val_fraction': 0.2}, 'config.data.val_fraction', 'keep one'),
    ({'train__batch_size': 1000}, 'config.train.batch_size', 'at most 21'),
    ({'model__head': 'conf'}, 'config.model.head', "did you mean 'conv'"),
    ({'early_stopping__monitor': 'val_acuracy'}, 'config.early_stopping.monitor', 'val_accuracy'),
    ({'weights__source': '/nowhere.h5'}, '/nowhere.h5', ''),
    ({'weights__preprocess': 'cafe'}, 'config.weights.preprocess', "did you mean 'caffe'"),
    (
        {'optim__labels': (('backbne/.*', 'frozen'), ('.*', 'head'))},
        'config.optim.labels',
        'backbne',
    ),
    ({'optim__weight_decay': 0.1}, 'config.optim.weight_decay', 'adamw'),
    ({'data__image_size': (16, 16)}, 'config.data.image_size', '32'),
    ({'features__layer': 'block9'}, 'config.features.layer', 'block'),
]


@pytest.mark.parametrize(('changes', 'where', 'fix'), BAD, ids=lambda x: str(x)[:40])
def test_bad_configuration_is_one_sentence(folders, tmp_path, changes, where, fix):
    with pytest.raises(UserError) as error:
        train_and_evaluate(small_config(folders, **changes), tmp_path / 'w')
    assert where in str(error.value)
    assert fix in str(error.value)
    # A fixed configuration may use the same workdir: nothing was trained.
    assert not (tmp_path / 'w' / 'config.json').exists()


def test_workdir_of_another_config(finished):
    workdir, config, _ = finished
    other = config.copy_and_resolve_references()
    other.train.seed = 7
    with pytest.raises(UserError, match=r'train\.seed was 0 and is 7'):
        train_and_evaluate(other, workdir)


def test_workdir_from_before_a_key_was_there(finished, tmp_path):
    workdir, config, result = finished
    shutil.copytree(workdir, tmp_path / 'w')
    kept = json.loads((tmp_path / 'w' / 'config.json').read_text())
    del kept['train']['balanced_sampling'], kept['loss']
    (tmp_path / 'w' / 'config.json').write_text(json.dumps(kept))
    assert train_and_evaluate(config, tmp_path / 'w') == result
    other = config.copy_and_resolve_references()
    other.loss.name = 'focal'
    with pytest.raises(UserError, match=r"loss\.name was 'cross_entropy' and is 'focal'"):
        train_and_evaluate(other, tmp_path / 'w')


def test_changed_images_are_noticed(tmp_path, monkeypatch):
    make_folders(tmp_path / 'Train', 4)
    make_folders(tmp_path / 'Test', 2, seed=3)
    config = small_config(tmp_path)
    stops = iter([False] * 3 + [True] * 1000)
    monkeypatch.setattr(loop.interrupts, 'deferred', lambda announce: Stops(stops))
    with pytest.raises(loop.Interrupted):
        train_and_evaluate(config, tmp_path / 'w')
    (tmp_path / 'Train' / 'red' / '000.jpg').unlink()
    with pytest.raises(UserError, match='images are no longer those'):
        train_and_evaluate(config, tmp_path / 'w')


def test_workdir_not_writable(folders, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='--workdir'):
        train_and_evaluate(small_config(folders), tmp_path / 'file' / 'w')


def test_divergence_is_a_sentence_and_keeps_checkpoints(folders, tmp_path):
    config = small_config(folders, optim__name='sgd', optim__learning_rate=3e38)
    with pytest.raises(UserError, match='learning_rate'):
        train_and_evaluate(config, tmp_path / 'w')


COMMANDS = [
    ('train', [], '--config'),
    ('train', ['--config=configs/none.py'], 'no such config file'),
    ('train', ['--config=configs/traffic.py', '--config.trian.epochs=3'], "did you mean 'train'"),
    ('train', ['--config=configs/traffic.py', '--config.train.epochs=many'], 'train.epochs'),
    ('train', ['--config=configs/traffic.py', '--workdr=x'], 'workdir'),
    ('evaluate', [], '--workdir'),
    ('evaluate', ['--workdir=/nowhere'], '/nowhere'),
    ('predict', ['--workdir=/nowhere', 'x.jpg'], '/nowhere'),
    ('predict', [], 'no image is given'),
]


@pytest.mark.parametrize(('module', 'arguments', 'hint'), COMMANDS, ids=str)
def test_bad_command_line_is_one_sentence(module, arguments, hint):
    done = run_module(module, *arguments)
    assert done.returncode == 2, done.stderr
    assert hint in done.stderr
    assert 'Traceback' not in done.stderr
    *usage, sentence = done.stderr.strip().splitlines()
    assert sentence.startswith('error: ')
    assert [line.split(':')[0] for line in usage] == (['usage'] if not arguments else [])


def test_feature_cache_is_shown_and_emptied(folders, tmp_path):
    config = small_config(folders, train__epochs=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TLFLAX_CACHE', str(tmp_path / 'cache'))
        train_and_evaluate(config, tmp_path / 'w')
        shown = run_module('features', 'info')
        assert '30 rows' in shown.stdout, shown.stdout + shown.stderr  # 21 views and 9 images
        assert '"block3_pool"' in shown.stdout
        assert 'GB freed' in run_module('features', 'clear').stdout
        assert '0 GB in 0 spaces' in run_module('features', 'info').stdout
    assert 'clear' in run_module('features').stderr


def test_evaluating_a_folder_of_other_classes_names_them(finished, tmp_path):
    make_folders(tmp_path / 'd', 1)
    (tmp_path / 'd' / 'red').rename(tmp_path / 'd' / 'Red')
    with pytest.raises(UserError, match='Red'):
        tlflax.load(finished[0]).evaluate(tmp_path / 'd')


def test_missing_step_lists_the_saved_ones(finished):
    with pytest.raises(UserError, match="'best', 'last' or one of"):
        tlflax.load(finished[0], '77')

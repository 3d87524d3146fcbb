"""The main job as a newcomer runs it, with the real weights and photographs, in smaller images."""

import json
import re

import pytest
from helpers import run_module

pytestmark = pytest.mark.assets

COMMAND = [
    '--config=configs/traffic.py',
    '--config.data.image_size=(128,128)',  # a third of the work, and wide enough for the head
    '--config.train.epochs=4',
]


@pytest.fixture(scope='module')
def cache(tmp_path_factory, imagenet_weights_path, traffic_lights_dir):
    """A cache with the downloads and no features."""
    folder = tmp_path_factory.mktemp('fresh')
    for asset in (imagenet_weights_path, traffic_lights_dir):
        (folder / asset.name).symlink_to(asset)
    return folder


@pytest.fixture(scope='module')
def run(cache, tmp_path_factory):
    """The training's outcome, as a process, and its workdir."""
    workdir = tmp_path_factory.mktemp('runs') / 'traffic'
    arguments = [*COMMAND, f'--workdir={workdir}']
    return run_module('train', *arguments, timeout=600, TLFLAX_CACHE=str(cache)), workdir


def test_main_job_trains_a_classifier(run):
    done, workdir = run
    assert done.returncode == 0, done.stderr
    result = json.loads((workdir / 'result.json').read_text())
    assert result['best_val_accuracy'] > 0.97
    assert result['val']['per_class']['red']['recall'] > 0.97
    assert result['val']['num_examples'] == 297
    assert 'Traceback' not in done.stderr
    # The table of the best epoch is the result, all other lines are the log.
    assert re.search(rf'accuracy +{result["val"]["accuracy"]:.4f} ', done.stdout)
    assert len(done.stdout.splitlines()) == 12
    # What the audit says of these photographs, and nothing else.
    warnings = [line for line in done.stderr.splitlines() if 'WARNING' in line]
    assert len(warnings) == 2
    assert '26 of 297 images of val look like one of an earlier split' in warnings[0]
    assert "'red' has 723 training images, 'yellow' has 35" in warnings[1]
    assert "preprocessing 'caffe'" in done.stderr
    assert re.search(r'backbone/\.\*\s+frozen\s+26\s+14,714,688\s+0', done.stderr)


def test_evaluate_and_predict_from_the_checkpoint(run, cache, traffic_lights_dir):
    _, workdir = run
    result = json.loads((workdir / 'result.json').read_text())
    done = run_module('evaluate', f'--workdir={workdir}', TLFLAX_CACHE=str(cache))
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert abs(last['accuracy'] - result['best_val_accuracy']) < 1e-6
    assert abs(last['loss'] - result['best_val_loss']) < 1e-6
    red = traffic_lights_dir / 'Test' / 'red'
    done = run_module(
        'predict', f'--workdir={workdir}', '--format=json', str(red), TLFLAX_CACHE=str(cache)
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 181
    assert sum(line['class'] == 'red' for line in lines) > 0.97 * 181


def test_second_run_computes_no_feature_again(run, cache, tmp_path):
    done = run_module(
        'train', *COMMAND, '--config.model.head=gap_linear', f'--workdir={tmp_path / "again"}',
        timeout=300, TLFLAX_CACHE=str(cache),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'computing features' in run[0].stderr
    assert 'computing features' not in done.stderr


def test_preprocessing_that_does_not_fit_warns_and_works(cache, tmp_path):
    done = run_module(
        'train', '--config=configs/traffic.py', '--config.data.image_size=(32,32)',
        '--config.model.head=mlp', '--config.train.epochs=4',
        '--config.weights.preprocess=rescale', f'--workdir={tmp_path / "w"}',
        timeout=300, TLFLAX_CACHE=str(cache),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'WRONG PREPROCESSING' in done.stderr
    assert '--config.weights.preprocess=auto' in done.stderr


def test_the_config_that_fine_tunes(cache, traffic_lights_dir, tmp_path):
    for split, count in (('Train', 20), ('Test', 7)):
        for folder in (traffic_lights_dir / split).iterdir():
            (tmp_path / split / folder.name).mkdir(parents=True)
            for path in sorted(folder.iterdir())[:count]:
                (tmp_path / split / folder.name / path.name).symlink_to(path)
    done = run_module(
        'train', '--config=configs/finetune.py', f'--config.data.train={tmp_path}/Train',
        f'--config.data.val={tmp_path}/Test', '--config.data.image_size=(32,32)',
        '--config.model.head=mlp', f'--workdir={tmp_path / "w"}',
        timeout=300, TLFLAX_CACHE=str(cache),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / 'w' / 'metrics.jsonl').read_text().splitlines()
    assert {json.loads(line)['phase'] for line in lines} == {1, 2}
    result = json.loads((tmp_path / 'w' / 'result.json').read_text())
    assert result['best_val_accuracy'] > 0.7
    # Images are decoded once: what the first phase needs follows from what the second one does.
    assert 'training: computing features of 120 of 120 views of 60 images' in done.stderr
    assert 'training: computing features of 120 of 120 views from block4_pool' in done.stderr

"""Every command with a workdir in a stand-in for S3; what it wrote is used by another machine."""

import json

import pytest
from helpers import make_folders, run_module, toy_config

SWEEP = """
from tlflax.sweep import grid
def get_sweep():
    return grid(**{'optim.learning_rate': [1e-2, 1e-3]})
"""


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    """A config file of a short training, for commands."""
    root = tmp_path_factory.mktemp('images')
    make_folders(root / 'Train', 6, seed=1)
    make_folders(root / 'Test', 3, seed=2)
    made = toy_config(root, train__report=False, train__epochs=2)
    path = root / 'config.json'
    path.write_text(json.dumps(made.to_dict()))
    return path


@pytest.fixture
def command(bucket, tmp_path):
    """Returns a function that runs a command, and gives the last line that it prints."""

    def run(module, *arguments, machine='a'):
        done = run_module(module, *map(str, arguments), TLFLAX_CACHE=str(tmp_path / machine))
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.splitlines()[-1]

    return run


def read(bucket, run):
    """Returns the objects of a run by their names in it."""
    start = f'runs/{run}/'
    found = {item.key: item.get()['Body'].read() for item in bucket.objects.all()}
    return {k.removeprefix(start): v for k, v in found.items() if k.startswith(start)}


def test_a_sweep(bucket, command, config, tmp_path):
    (tmp_path / 'rates.py').write_text(SWEEP)
    arguments = (f'--config={config}', f'--sweep={tmp_path}/rates.py')
    command('sweep', *arguments, '--workdir=s3://photos/runs/sweep')
    found = read(bucket, 'sweep')
    ranking = json.loads(found['sweep.json'])
    assert len(ranking) == 2
    assert found['sweep.csv'].count(b'\n') == 3
    best = json.loads(found['best/result.json'])['val']['loss']
    assert best == min(row['val_loss'] for row in ranking)
    said = command('evaluate', '--workdir=s3://photos/runs/sweep/best', machine='b')
    assert json.loads(said)['loss'] == pytest.approx(best, rel=1e-5)


def test_a_cross_validation(bucket, command, config):
    folds = ('--config.data.folds=2', '--config.data.fold=all', '--config.data.val=')
    command('train', f'--config={config}', *folds, '--workdir=s3://photos/runs/folds')
    found = read(bucket, 'folds')
    whole = json.loads(found['folds.json'])
    assert len(found['predictions.csv'].splitlines()) == 1 + 18
    assert {'fold0/result.json', 'fold1/result.json'} < set(found)
    for number in range(2):
        said = command('evaluate', f'--workdir=s3://photos/runs/folds/fold{number}', machine='b')
        result = json.loads(found[f'fold{number}/result.json'])
        assert json.loads(said)['loss'] == pytest.approx(result['val']['loss'], rel=1e-5)
    assert whole['images'] == 18


def test_a_probe(bucket, command, config):
    said = command('probe', f'--config={config}', '--workdir=s3://photos/runs/probe')
    result = json.loads(read(bucket, 'probe')['result.json'])
    assert json.loads(said)['val_loss'] == result['val']['loss']


def test_an_export(bucket, command, config):
    command('train', f'--config={config}', '--workdir=s3://photos/runs/one')
    arguments = ('--workdir=s3://photos/runs/one', '--format=safetensors')
    told = json.loads(command('export', *arguments, machine='b'))
    found = read(bucket, 'one')
    assert told['bytes'] == len(found['classifier.safetensors']) > 1000
    assert b'license' in found['classifier.safetensors.md']


def test_a_comparison(bucket, command, config, tmp_path):
    for seed in (1, 2):
        workdir = f'--workdir=s3://photos/runs/{seed}'
        command('train', f'--config={config}', f'--config.train.seed={seed}', workdir)
    before = {run: read(bucket, run) for run in '12'}
    runs = [f's3://photos/runs/{seed}' for seed in (1, 2)]
    page = tmp_path / 'comparison.html'
    told = json.loads(command('report', *runs, f'--output={page}', machine='b'))
    assert [one['run'] for one in told['runs']] == runs, 'not the folder of a copy'
    assert all(run in page.read_text() for run in runs)
    assert {run: read(bucket, run) for run in '12'} == before

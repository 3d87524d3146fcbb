"""The scripts for accelerators, in their short mode on the CPU, without TensorFlow or a network."""

import copy
import importlib.util
import json
import math
import sys

import pytest
from helpers import ROOT, run_new_python

SCRIPTS = ROOT / 'scripts'

# Read by every Python that starts, those that the scripts start among them.
FORBID = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('tensorflow', 'tensorflow_datasets', 'keras'):
            return None
        return self.finder.find_spec(name, path, target)

def refuse(event, arguments):
    if event in ('socket.connect', 'socket.getaddrinfo', 'socket.gethostbyname'):
        raise PermissionError(f'{event} is forbidden')

sys.meta_path[:] = map(Without, sys.meta_path)
sys.addaudithook(refuse)
"""


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    """The environment of a Python without TensorFlow and without a network."""
    folder = tmp_path_factory.mktemp('forbid')
    (folder / 'sitecustomize.py').write_text(FORBID)
    return {'PYTHONPATH': f'{folder}:{ROOT}', 'TLFLAX_CACHE': '/nonexistent'}


def load(name, monkeypatch):
    """Imports a script."""
    monkeypatch.syspath_prepend(SCRIPTS)
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_the_environment_forbids_tensorflow_and_connections(alone):
    done = run_new_python('-c', 'import tensorflow', **alone)
    assert "No module named 'tensorflow'" in done.stderr
    code = 'import socket; socket.create_connection(("127.0.0.1", 1))'
    assert 'is forbidden' in run_new_python('-c', code, **alone).stderr


# check_accelerator


def test_check_accelerator_on_a_cpu(alone, tmp_path):
    script = SCRIPTS / 'check_accelerator.py'
    done = run_new_python(
        str(script), '--quick', f'--keep={tmp_path / "kept"}', timeout=600, **alone
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert found['bit_equal_runs'] is found['bit_equal_resume'] is found['ok'] is True
    assert found['platform'] == 'cpu'
    assert found['loss_difference'] is None  # there is nothing to compare with
    assert found['versions']['jax']
    # Six steps an epoch in programs of four: the interruption falls into the second epoch.
    assert found['interrupted_at'] == {'BatchNorm last block': 10}
    assert found['tensorflow_imported'] is False
    for words in ('two runs: bit-equal', 'interrupted and a whole run: bit-equal'):
        assert words in done.stderr
    for name in ('first', 'second', 'third'):
        workdir = tmp_path / 'kept' / name / 'BatchNorm_last_block'
        lines = (workdir / 'metrics.jsonl').read_text().splitlines()
        assert [json.loads(line)['step'] for line in lines] == [6, 12]
        assert (workdir / 'checkpoints' / '12' / 'state').is_dir()  # statistics are compared too


REPORT = {
    'problems': {
        'a': {
            'last': {'digests': {'params': '12', 'opt_state': '34'}},
            'metrics': [{'train_loss': 2.0, 'val_loss': 1.0}, {'train_loss': 1.0, 'val_loss': 0.5}],
        }
    }
}


def changed(**values):
    """Returns `REPORT` with other values in the last epoch."""
    report = copy.deepcopy(REPORT)
    report['problems']['a']['metrics'][-1].update(values)
    return report


def test_every_bit_counts(monkeypatch, capsys):
    module = load('check_accelerator', monkeypatch)
    assert module.equal('two runs', REPORT, copy.deepcopy(REPORT))
    assert not module.equal('two runs', REPORT, changed(val_loss=math.nextafter(0.5, 1)))
    other = copy.deepcopy(REPORT)
    other['problems']['a']['last']['digests']['opt_state'] = '35'
    assert not module.equal('two runs', REPORT, other)
    assert '/a/last/digests/opt_state: 34 and 35' in capsys.readouterr().err
    del other['problems']['a']['metrics'][0]
    assert len(list(module.differences(REPORT, other))) == 2


def test_losses_are_compared_relatively(monkeypatch):
    module = load('check_accelerator', monkeypatch)
    assert module.loss_difference(REPORT, REPORT) == 0
    assert module.loss_difference(changed(val_loss=0.501), REPORT) == pytest.approx(2e-3)
    assert module.loss_difference(changed(train_loss=math.nan), REPORT) == math.inf


def test_a_failed_check_is_exit_code_1(monkeypatch, capsys, tmp_path):
    """Runs that differ, and losses unlike those of the CPU, are reported as such."""
    module = load('check_accelerator', monkeypatch)
    about = {'device': 'X', 'platform': 'gpu', 'versions': {}, 'tensorflow': False}
    stopped = {'problems': {'a': {'interrupted': 10}}}
    reports = {
        'first': [REPORT],
        'second': [changed(val_loss=0.4999)],
        'third': [stopped, REPORT],
        'cpu': [changed(val_loss=0.6)],
    }
    environments = {}

    def run(folder, name, *flags, environment):
        environments[name] = environment
        return {**about, **reports[name].pop(0)}

    monkeypatch.setattr(module, 'run', run)
    monkeypatch.setattr(
        sys, 'argv', ['check', '--quick', '--deterministic', f'--keep={tmp_path / "k"}']
    )
    monkeypatch.delenv('XLA_FLAGS', raising=False)
    with pytest.raises(SystemExit) as end:
        module.main()
    assert end.value.code == 1
    found = json.loads(capsys.readouterr().out)
    assert (found['bit_equal_runs'], found['bit_equal_resume']) == (False, True)
    assert found['loss_difference'] == pytest.approx(1 / 6)
    assert found['ok'] is False
    assert found['xla_flags'] == '--xla_gpu_deterministic_ops=true'
    assert environments['cpu']['JAX_PLATFORMS'] == 'cpu'
    assert 'JAX_PLATFORMS' not in environments['first']


# bench_accelerator

WORKS = ('extract from host', 'extract on device', 'train head', 'train last block')


@pytest.fixture(scope='module')
def benched(alone):
    """What the benchmark prints in its short mode."""
    script = str(SCRIPTS / 'bench_accelerator.py')
    done = run_new_python(script, '--quick', '--peer-on-cpu', timeout=600, **alone)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_bench_accelerator_runs_on_a_cpu_with_its_peer(benched):
    found = json.loads(benched.splitlines()[-1])
    assert set(found['peak']) == {'float32', 'tensorfloat32', 'bfloat16'}
    seen = {(row['work'], row['side'], row['dtype']) for row in found['rows']}
    for work in WORKS:
        assert {(work, 'tlflax', dtype) for dtype in found['peak']} < seen
    assert all(min(row['rounds']) > 0 for row in found['rows'])
    assert all(row['of_peak'] > 0 for row in found['rows'])
    if importlib.util.find_spec('torch') is None:
        assert set(found['ratios'].values()) == {None}
        return
    assert {(work, 'torch', 'bfloat16') for work in WORKS} < seen
    ours, theirs = (found['sides'][f'{name} bfloat16']['4'] for name in ('tlflax', 'torch'))
    expected = ours['images_per_second'] / theirs['images_per_second']
    assert found['ratio']['torch'] == pytest.approx(expected)
    assert found['ratios']['vgg16 extract from host'] == found['ratio']['torch']
    assert set(found['ratios']) == {f'vgg16 {work}' for work in WORKS}


def test_the_printed_table_is_that_of_the_page(benched):
    """With the same columns and rows, so that it can be pasted there."""
    page = (ROOT / 'docs/performance.md').read_text().partition('## Accelerators')[2]

    def rows(text):
        return [
            [cell.strip() for cell in line.strip('|').split('|')]
            for line in text.splitlines()
            if line.startswith('|')
        ]

    printed, written = rows(benched), rows(page)
    assert printed[:2] == written[:2]
    names = [row[:2] for row in written[2:]]
    assert [row[:2] for row in printed[2:]] == [name for name in names if name[0] == 'vgg16']
    from tlflax.models.backbones import BACKBONES

    assert names == [[backbone, work] for backbone in BACKBONES for work in WORKS]


def test_operations_are_those_of_direct_convolution(monkeypatch):
    """Without products with the zeros around an image: the others are (3s - 2)^2 of 9s^2."""
    import jax

    from tlflax.models.backbones import BACKBONES
    from tlflax.models.vgg import network

    sides = load('accelerator_sides', monkeypatch)
    for name, depths in (('vgg16', network.VGG16), ('vgg19', network.VGG19)):
        backbone = BACKBONES[name]
        shapes = backbone.shapes(backbone.layer)
        zeros = jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype), shapes)
        whole = inside = 0
        for path, shape in network.shapes(depths).items():
            if path.endswith('kernel'):
                side = 224 >> int(path[len('block')]) - 1
                whole += 2 * 9 * side**2 * shape[2] * shape[3]
                inside += 2 * (3 * side - 2) ** 2 * shape[2] * shape[3]
        if name == 'vgg16':
            assert whole == pytest.approx(2 * 15.35e9, rel=1e-3)  # the published number
        found = sides.Ours(backbone, zeros, 224, 'float32').operations()
        assert found == pytest.approx(inside, rel=3e-3)


def test_best_rates_and_their_ratio(monkeypatch):
    bench = load('bench_accelerator', monkeypatch)
    rows = [
        {'backbone': 'x', 'work': 'w', 'side': side, 'dtype': dtype, 'images_per_second': rate,
         'of_peak': rate / 1000}
        for side, dtype, rate in (
            ('tlflax', 'bfloat16', 300), ('tlflax', 'bfloat16', 200), ('tlflax', 'float32', 900),
            ('torch', 'bfloat16', 100), ('torch', 'bfloat16', 150),
        )
    ]  # fmt: skip
    assert bench.ratio(rows, 'x', 'w') == 2
    assert bench.ratio(rows[:3], 'x', 'w') is None
    assert bench.ratio(rows, 'x', 'other') is None
    cells = '900 (90.0%) | left out | 300 (30.0%) | 150 (15.0%) | 2.00'
    assert bench.table(rows).splitlines()[-1] == f'| x | w | {cells} |'

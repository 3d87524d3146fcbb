"""Exported runs: what the files hold, that they are checked, and that nothing wrong is kept."""

import ast
import dataclasses
import json
import sys
import zipfile

import jax
import numpy as np
import onnx
import pytest
import safetensors
from helpers import make_folders, run_module, run_new_python, toy_config

import tlflax
from tlflax.export import model, saved_model_file, stablehlo_file, tflite_file, verify, web_file
from tlflax.export.model import AS_PREDICT, Options
from tlflax.export.run import FORMATS, export
from tlflax.models.linear.calibration import temper
from tlflax.train import train_and_evaluate
from tlflax.utils.errors import UserError

FILES = [name for name in FORMATS if not FORMATS[name].marker]  # the others are folders


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    root = tmp_path_factory.mktemp('export')
    make_folders(root / 'Train', 6, seed=1, noise=200.0)
    make_folders(root / 'Test', 4, seed=2, noise=200.0)
    config = toy_config(
        root, model__head='conv', optim__learning_rate=0.01, train__report=False, data__resize='pad'
    )
    train_and_evaluate(config, root / 'w')
    return root / 'w'


def metadata(name, path):
    """Returns the metadata of a file."""
    if name == 'onnx':
        return {one.key: one.value for one in onnx.load(path).metadata_props}
    if name == 'stablehlo':
        with zipfile.ZipFile(path) as file:
            return json.loads(file.read(stablehlo_file.METADATA))
    if name == 'saved_model':
        return json.loads((path / saved_model_file.METADATA).read_text())
    if name == 'web':
        return json.loads((path / web_file.METADATA).read_text())
    if name == 'tflite':
        with zipfile.ZipFile(path) as file:
            return json.loads(file.read(tflite_file.METADATA))
    with safetensors.safe_open(path, 'numpy') as file:
        return file.metadata()


def size(path):
    """Returns the bytes of a file or of a folder's files."""
    files = [path, *path.rglob('*')]
    return sum(one.stat().st_size for one in files if one.is_file())


def run(name, workdir, path, images, options=AS_PREDICT):
    """Returns what a file says of images."""
    return FORMATS[name].program(model.exported(tlflax.load(workdir), options), path)(images)


@pytest.mark.parametrize('name', FILES)
def test_a_file_computes_what_predict_says(name, workdir, tmp_path):
    path, trained = tmp_path / 'file', tlflax.load(workdir)
    found = export(workdir, name, path)
    assert found['images'] == 12
    assert found['labels_differ'] == 0
    assert found['max_difference'] < 1e-5
    assert found['bytes'] == size(path)
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    expected = [list(one.probabilities.values()) for one in trained.predict(images)]
    np.testing.assert_allclose(run(name, workdir, path, images), expected, atol=1e-5)
    said = metadata(name, path)
    assert json.loads(said['classes']) == ['green', 'red', 'yellow']
    assert (said['image_height'], said['image_width'], said['resize']) == ('32', '32', 'pad')
    assert json.loads(said['temperature']) == trained.temperature
    assert said['weights_digest'] == trained.weights_digest
    assert said['calibrated'] == 'false'
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / 'file.md']


@pytest.mark.parametrize('name', [name for name in FORMATS if name != 'safetensors'])
def test_the_temperature_can_be_part_of_it(name, workdir, tmp_path):
    path, trained = tmp_path / 'file', tlflax.load(workdir)
    export(workdir, name, path, Options(calibrated=True))
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    plain = np.array([list(one.probabilities.values()) for one in trained.predict(images)])
    expected = temper(plain, trained.temperature)
    assert np.abs(expected - plain).max() > 1e-3
    found = run(name, workdir, path, images, Options(calibrated=True))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert metadata(name, path)['calibrated'] == 'true'


def test_stablehlo_is_for_all_platforms_and_any_number_of_images(workdir, tmp_path):
    export(workdir, 'stablehlo', tmp_path / 'file')
    with zipfile.ZipFile(tmp_path / 'file') as file:
        loaded = jax.export.deserialize(bytearray(file.read(stablehlo_file.MODULE)))
    assert loaded.platforms == ('cpu', 'cuda', 'tpu')
    for images in (1, 3, 17):
        assert loaded.call(np.zeros((images, 32, 32, 3), np.uint8)).shape == (images, 3)


WITH_TENSORFLOW_ALONE = """
import sys

sys.modules |= {'jax': None, 'tlflax': None}  # so that nothing can import them

import numpy as np
import tensorflow as tf

loaded = tf.saved_model.load(sys.argv[1])
names = loaded.signatures['classes']()['classes'].numpy()
print([name.decode() for name in names])
for images in (1, 3):
    found = loaded.signatures['serving_default'](image=np.full((images, 32, 32, 3), 9, np.uint8))
    print(found['probabilities'].numpy().tolist())
"""


def test_a_saved_model_needs_tensorflow_alone(workdir, tmp_path):
    export(workdir, 'saved_model', tmp_path / 'folder')
    done = run_new_python('-c', WITH_TENSORFLOW_ALONE, str(tmp_path / 'folder'))
    assert done.returncode == 0, done.stderr
    names, one, three = map(ast.literal_eval, done.stdout.splitlines())
    assert names == ['green', 'red', 'yellow']
    (expected,) = tlflax.load(workdir).predict(np.full((1, 32, 32, 3), 9, np.uint8))
    for row in (*one, *three):
        np.testing.assert_allclose(row, list(expected.probabilities.values()), atol=1e-5)


def test_a_tflite_file_is_a_zip_with_the_names_of_the_classes(workdir, tmp_path):
    export(workdir, 'tflite', tmp_path / 'file')
    with zipfile.ZipFile(tmp_path / 'file') as file:
        assert file.read(tflite_file.LABELS).decode() == 'green\nred\nyellow\n'


def test_parameters_are_stored_by_path(workdir, tmp_path):
    export(workdir, 'safetensors', tmp_path / 'file')
    with safetensors.safe_open(tmp_path / 'file', 'numpy') as file:
        kernel = file.get_tensor('params/head/conv1/kernel')
        assert 'state/backbone/block1/norm/mean' in file.keys()  # noqa: SIM118
    own = tlflax.load(workdir).params['head']['conv1']['kernel']
    np.testing.assert_array_equal(kernel, own)


def perturbed(trained, options, amount=0.05):
    what = real(trained, options)
    params = jax.tree.map(lambda leaf: leaf + amount, what.variables.params)
    return dataclasses.replace(what, variables=what.variables._replace(params=params))


real = model.exported


@pytest.mark.parametrize('name', FILES)
def test_a_file_that_computes_something_else_is_not_kept(name, workdir, tmp_path, monkeypatch):
    path = tmp_path / 'file'
    before = path
    if FORMATS[name].marker:
        path.mkdir()
        before = path / FORMATS[name].marker
    before.write_text('the one before')
    monkeypatch.setattr(model, 'exported', perturbed)
    with pytest.raises(UserError, match=r'12 validation images differ .* it is not kept') as caught:
        export(workdir, name, path)
    assert caught.value.where == str(path)
    assert before.read_text() == 'the one before'
    assert list(tmp_path.iterdir()) == [path]


def test_another_label_is_refused_however_small_the_difference():
    pixels, labels = np.zeros((1, 2, 2, 3), np.uint8), np.zeros(1, int)
    sample = verify.Sample(pixels, labels, np.array([[0.49999, 0.50001]]), 1e-4)
    with pytest.raises(UserError, match='and 1 get another class'):
        verify.check(lambda x: np.array([[0.50001, 0.49999]]), sample, 'file')
    assert verify.check(lambda x: np.array([[0.49998, 0.50002]]), sample, 'file').labels == 0
    with pytest.raises(UserError, match='not a number'):
        verify.check(lambda x: np.full((1, 2), np.nan), sample, 'file')


def test_half_a_point_of_accuracy_may_be_lost():
    labels, right = np.zeros(200, int), np.array([[0.9, 0.1]])
    pixels, own = np.zeros((200, 2, 2, 3), np.uint8), np.repeat(right, 200, 0)

    def wrong(count):
        """A program that is wrong about so many of the first images."""
        rows = iter(np.concatenate([1 - own[:count], own[count:]]))
        return lambda x: np.stack([next(rows) for _ in x])

    sample = verify.Sample(pixels, labels, own, np.inf)
    found = verify.check(wrong(1), sample, 'file')
    assert (found.labels, found.accuracy, found.classifier_accuracy) == (1, 0.995, 1)
    with pytest.raises(UserError, match=r'99\.00% of 200 .* 100\.00%, and it may lose 0\.5 points'):
        verify.check(wrong(2), sample, 'file')


def test_integers_in_the_state_stay(workdir):
    trained = tlflax.load(workdir)
    state = {**trained.frozen.state, 'head': {'count': np.arange(3, dtype=np.int32) + 2**25 + 1}}
    trained = dataclasses.replace(trained, frozen=trained.frozen._replace(state=state))
    for precision in ('float32', 'float16'):
        what = model.exported(trained, Options(precision=precision))
        assert what.variables.state['head']['count'].dtype == np.int32
        mixed = jax.tree.map(model._as_float32, what.variables)
        np.testing.assert_array_equal(mixed.state['head']['count'], state['head']['count'])
        assert mixed.params['head']['logits']['kernel'].dtype == np.float32


def test_float16_has_half_the_size(workdir, tmp_path):
    for name in FILES:
        whole, half = (
            export(workdir, name, tmp_path / f'{name}-{precision}', Options(precision=precision))
            for precision in ('float32', 'float16')
        )
        assert half['bytes'] < 0.8 * whole['bytes']  # the toy has more program than parameters
        assert 0 < half['max_difference'] < 0.01
        assert metadata(name, tmp_path / f'{name}-float16')['precision'] == 'float16'


def test_many_images_are_chosen_by_their_digests(workdir, monkeypatch):
    monkeypatch.setattr(verify, 'MOST_IMAGES', 5)
    table = tlflax.load(workdir).val_table()
    rows = verify.chosen(table)
    assert sorted(table.digests)[:5] == sorted(table.digests[rows])
    assert (np.diff(rows) > 0).all()
    sample = verify.sample(tlflax.load(workdir), Options())
    assert sample.pixels.shape == (5, 32, 32, 3)
    assert sample.probabilities.shape == (5, 3)


@pytest.mark.parametrize(
    ('name', 'package'), [('onnx', 'onnxruntime'), ('tflite', 'ai_edge_litert')]
)
def test_without_what_runs_the_file(name, package, workdir, monkeypatch):
    for module in [one for one in sys.modules if one.startswith(f'{package}.')]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"pip install 'tlflax\[export\]'"):
        export(workdir, name)
    assert not (workdir / f'classifier.{name}').exists()


@pytest.mark.parametrize('name', ['stablehlo', 'saved_model', 'safetensors'])
def test_what_has_no_int8(name, workdir, tmp_path):
    with pytest.raises(UserError, match=f'{name} has no int8') as caught:
        export(workdir, name, tmp_path / 'file', Options(precision='int8'))
    assert caught.value.where == '--precision'
    assert '(onnx, tflite, web)' in caught.value.fix
    assert not list(tmp_path.iterdir())


def test_command(workdir):
    done = run_module('export', f'--workdir={workdir}', '--format=onnx')
    assert done.returncode == 0, done.stderr
    *_, last = done.stdout.splitlines()
    path = workdir / 'classifier.onnx'
    assert json.loads(last)['file'] == str(path)
    assert json.loads(last)['bytes'] == path.stat().st_size
    path.unlink()
    (workdir / 'classifier.onnx.md').unlink()


@pytest.mark.parametrize(
    ('words', 'sentence'),
    [
        (['--workdir=nowhere'], 'nowhere'),
        (
            ['--workdir=w', '--format=onx'],
            'should be one of <onnx|stablehlo|saved_model|tflite|safetensors|web>',
        ),
        (['--workdir=w', '--output=nowhere/classifier.onnx'], "there is no folder 'nowhere'"),
    ],
)
def test_mistakes_are_one_sentence(words, sentence, tmp_path):
    (tmp_path / 'w' / 'checkpoints').mkdir(parents=True)
    done = run_module('export', *(word.replace('=w', f'={tmp_path / "w"}') for word in words))
    assert done.returncode == 2
    assert sentence in done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize('name', FORMATS)
def test_nothing_else_is_lost(name, workdir, tmp_path, monkeypatch):
    monkeypatch.setattr(verify, 'sample', lambda *_: pytest.fail('it is too late to say so'))
    path = tmp_path / 'notes'
    other = tmp_path / 'notes.md'
    if marker := FORMATS[name].marker:
        (path / marker).parent.mkdir(parents=True)
        (path / marker).write_text('')
        other = path / 'thesis.txt'
    other.write_text('precious')
    with pytest.raises(UserError, match=r'another file is there|which would be lost'):
        export(workdir, name, path)
    assert other.read_text() == 'precious'
    with pytest.raises(UserError, match='there is no folder'):
        export(workdir, name, tmp_path / 'nowhere' / 'file')


def test_a_site_is_not_the_page(workdir, tmp_path):
    (tmp_path / 'index.html').write_text('mine')
    with pytest.raises(UserError, match='cannot be written: it exists, and has no classifier'):
        export(workdir, 'web', tmp_path)
    assert (tmp_path / 'index.html').read_text() == 'mine'


AS_ON_A_FULL_DISK = """
import resource, sys

import jax, onnx, safetensors, tensorflow  # which write files of their own

from tlflax.export.run import export
from tlflax.utils.errors import UserError

resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
for name in sys.argv[3:]:
    try:
        export(sys.argv[1], name, f'{sys.argv[2]}/{name}')
    except UserError as error:
        print(error)
"""


def test_a_full_disk(workdir, tmp_path):
    names = 'safetensors', 'saved_model'  # libraries write them
    done = run_new_python('-c', AS_ON_A_FULL_DISK, str(workdir), str(tmp_path), *names)
    assert done.returncode == 0, done.stderr
    sentences = [f'{tmp_path}/{name}: File too large; name another file' for name in names]
    assert done.stdout.splitlines() == sentences
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', FILES)
def test_others_may_read_a_file(name, workdir, tmp_path):
    (tmp_path / 'plain').write_text('')
    export(workdir, name, tmp_path / 'file')
    assert (tmp_path / 'file').stat().st_mode == (tmp_path / 'plain').stat().st_mode

"""Which heavy packages each command imports: those it uses, so that it starts fast.

A package that is missing from a list, or imported though nothing needs it, fails the test.
"""

import json

import numpy as np
import pytest
from helpers import make_folders, run_module, run_new_python, write_config
from PIL import Image

HEAVY = """
    IPython PIL fastapi flax fsspec h5py jax jinja2 joblib keras matplotlib ml_collections mlflow
    numpy onnx onnxruntime openvino optax orbax pandas pyarrow safetensors scipy sklearn
    tensorboard tensorboardX tensorflow tensorflow_datasets tensorstore tlflax torch uvicorn wandb
""".split()
# Flax and Orbax import these where they are installed.
OF_LIBRARIES = {'IPython', 'fsspec', 'tensorstore'}

# Runs a command as `python -m` would, and prints its exit code and the packages that it imported.
RUN = """
import contextlib, io, json, runpy, sys
sys.argv[1:] = json.loads(sys.argv[1])
name = sys.argv.pop(1)
with contextlib.redirect_stdout(io.StringIO()):
    try:
        runpy.run_module(name, run_name='__main__', alter_sys=True)
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
print(json.dumps([code, sorted({module.partition('.')[0] for module in sys.modules})]))
"""

CONFIG = {'ml_collections', 'tlflax'}
RUNS = CONFIG | {'PIL', 'flax', 'jax', 'numpy', 'optax', 'orbax'}
REPORTS = RUNS | {'jinja2'}

COMMANDS = {
    'help': (0, ['tlflax.train', '--help'], {'tlflax'}),
    'wrong_key': (2, ['tlflax.train', '--config.train.epoch=1'], CONFIG),
    'wrong_value': (2, ['tlflax.train', 'CONFIG', '--config.train.epochs=many'], CONFIG),
    'no_images': (2, ['tlflax.data', '--train=nowhere'], CONFIG | {'PIL', 'numpy'}),
    'nothing_to_train_with': (
        2, ['tlflax.train', 'CONFIG', '--config.data.val=nowhere', '--workdir=new'],
        CONFIG | {'PIL', 'numpy'},
    ),
    'nothing_to_probe': (
        2, ['tlflax.probe', 'CONFIG', '--config.data.train=nowhere', '--workdir=new'],
        CONFIG | {'PIL', 'numpy'},
    ),
    'nothing_to_sweep': (2, ['tlflax.sweep', 'CONFIG', '--sweep=nowhere.py'], CONFIG | {'numpy'}),
    'nothing_to_serve': (2, ['tlflax.serve', '--workdir=nowhere'], CONFIG),
    'nothing_to_predict': (2, ['tlflax.predict', '--workdir=nowhere', 'photograph.png'], CONFIG),
    'nothing_to_evaluate': (2, ['tlflax.evaluate', '--workdir=nowhere'], CONFIG),
    'nothing_to_export': (2, ['tlflax.export', '--workdir=nowhere'], CONFIG),
    'nothing_to_report': (2, ['tlflax.report', 'nowhere'], CONFIG | {'numpy'}),
    'nothing_to_compare': (2, ['tlflax.report', 'run', 'nowhere'], CONFIG | {'numpy'}),
    'train': (0, ['tlflax.train', 'CONFIG', '--workdir=again'], RUNS),
    'train_and_report': (
        0, ['tlflax.train', 'CONFIG', '--workdir=more', '--config.train.report=True'], REPORTS
    ),
    'evaluate': (0, ['tlflax.evaluate', '--workdir=run'], RUNS),
    'predict': (0, ['tlflax.predict', '--workdir=run', 'photograph.png'], RUNS | {'scipy'}),
    'predict_many': (0, ['tlflax.predict', '--workdir=run', 'photographs'], RUNS | {'scipy'}),
    'report': (0, ['tlflax.report', 'run'], REPORTS),
    'sweep': (0, ['tlflax.sweep', 'CONFIG', '--sweep=rates.py', '--workdir=many'], RUNS),
    'probe': (0, ['tlflax.probe', 'CONFIG', '--workdir=probed'], RUNS),
    'features': (0, ['tlflax.features', 'info'], CONFIG | {'numpy'}),
    'audit': (0, ['tlflax.data', '--train=Train'], CONFIG | {'PIL', 'numpy'}),
}  # fmt: skip


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder with images, a photograph, a config file and the workdir of a run."""
    root = tmp_path_factory.mktemp('imports')
    make_folders(root / 'Train', 4, seed=1)
    make_folders(root / 'Test', 4, seed=2)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    Image.fromarray(pixels).save(root / 'photograph.png')
    (root / 'photographs').mkdir()
    for number in range(10):
        Image.fromarray(pixels + np.uint8(number)).save(root / 'photographs' / f'{number}.png')
    config = write_config(root / 'config.py', root)
    (root / 'rates.py').write_text(
        "def get_sweep():\n    return [{'optim.learning_rate': rate} for rate in (0.1, 0.01)]\n"
    )
    given = [f'--config={config}', '--config.train.epochs=1', '--config.model.head=flatten_linear']
    own = (f'--workdir={root / "run"}', '--config.train.report=True')  # needs all features
    done = run_module('train', *given, *own, TLFLAX_CACHE=str(root / 'cache'))
    assert done.returncode == 0, done.stderr
    return root, given


@pytest.mark.parametrize('name', COMMANDS)
def test_a_command_imports_what_it_uses(place, name):
    root, config = place
    expected, line, packages = COMMANDS[name]
    words = [word for part in line for word in (config if part == 'CONFIG' else [part])]
    arguments = [words[0]]
    for word in words[1:]:
        flag, equals, value = word.rpartition('=')
        here = (root / value).exists() or flag == '--workdir'
        arguments.append(f'{flag}{equals}{root / value}' if here else word)
    done = run_new_python(
        '-c', RUN, json.dumps(arguments), TLFLAX_CACHE=str(root / 'cache'), timeout=240
    )
    code, modules = json.loads(done.stdout.splitlines()[-1])
    assert code == expected, done.stderr
    assert {*modules} & {*HEAVY} - OF_LIBRARIES == packages


def test_importing_what_trains_leaves_orbax_alone():
    code = "import sys, tlflax.train.run; print({*sys.modules} & {'orbax.checkpoint', 'h5py'})"
    done = run_new_python('-c', code)
    assert done.stdout == 'set()\n', done.stderr

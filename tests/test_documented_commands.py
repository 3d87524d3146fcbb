"""Every command and every block of Python in README and docs is executed, on small images."""

import re
import shlex
import shutil

import documents
import numpy as np
import pytest
from fork_server import server
from helpers import ROOT, make_folders

# A network of five small blocks stands for VGG16, and a file of random weights for ImageNet's.
BACKBONE = """
from flax import nnx

from tlflax.models.backbones import from_layers


class Block(nnx.Module):
    def __init__(self, features_in, features_out, pool, rngs):
        self.conv = nnx.Conv(features_in, features_out, (3, 3), rngs=rngs)
        self.pool = pool

    def __call__(self, x):
        x = nnx.relu(self.conv(x))
        return nnx.max_pool(x, (2, 2), (2, 2)) if self.pool else x


def layers(rngs):
    widths = (3, 8, 16, 16, 16, 16)
    return {f'block{n}': Block(*widths[n - 1 : n + 1], n < 3, rngs) for n in range(1, 6)}


backbone = from_layers('small', layers)
"""

# What follows a command with one of these config files, so that it is done in seconds.
SMALL = """
    --config.model.backbone=py:small.py:backbone --config.weights.source=small.npz
    --config.weights.preprocess=torch --config.data.image_size=(32,32) --config.train.batch_size=8
""".split()
IMAGES = ['--config.data.train=photos/Train', '--config.data.val=photos/Test']
ADDED = {
    '--config=configs/traffic.py': [*SMALL, *IMAGES, '--config.train.epochs=2'],
    '--config=configs/images.py': SMALL,
    '--config=configs/finetune.py': [
        *SMALL, *IMAGES, '--config.early_stopping.min_delta=9', '--config.early_stopping.patience=0'
    ],
    '--config.data.fold=all': ['--config.model.head=gap_linear', '--config.train.epochs=2'],
    'scripts/convert_weights.py': ['--backbone=py:small.py:backbone'],
}  # fmt: skip

# What the copy of `configs/images.py` gains: its choice tries what costs next to nothing.
CHEAP = """
from tlflax.sweep import auto

auto.BUDGET = 1e8
"""

# What stands for something of the reader's own, and what these commands take in its place.
REPLACED = {
    '--config=...': '--config=configs/traffic.py',
    '...': None,
    'IN': 'small.npz',
}

# Commands that no test here runs: the beginning, and why.
NOT_RUN = {
    'python scripts/communication.py': 'tests/scripts/test_communication runs it',
    'python -m venv': 'installs',
    'pip install': 'installs; the names of extras are checked below',
    'python -m pytest': 'runs this test',
    'python -m tlflax.export --workdir=runs/traffic --format=web': 'needs npm; tests/export/web',
    'python -m http.server': 'serves until it is stopped',
    'python -m tlflax.train --config=my_config.py': 'run by test_what_extends_tlflax',
    'python -m tlflax.probe --shots': 'part of a command, which is run as a whole',
    'python -m tlflax.train --coordinator': 'waits for the other processes',
    'python -m tlflax.serve': 'runs until it is stopped; tests/serve does that',
    'python scripts/load_test.py': 'run by tests/serve/test_load.py',
    'python scripts/bench_': 'takes minutes or hours; its arguments are checked below',
    'python scripts/reproduce.py': 'takes an hour; its arguments are checked below',
}

COMMANDS = documents.commands()


def replaced(command):
    """Returns a command with files in the place of what stands for them."""
    words = [REPLACED.get(word, word) for word in shlex.split(command)]
    return shlex.join(word for word in words if word)


RUN = dict.fromkeys(replaced(one) for one in COMMANDS if not one.startswith(tuple(NOT_RUN)))


def run(words, place):
    """Runs `python -m MODULE ...` or `python SCRIPT ...` in a folder."""
    python, *words = words
    assert python == 'python'
    kind, words = ('module', words[1:]) if words[0] == '-m' else ('script', words)
    words = [*words, *(added for word in words for added in ADDED.get(word, ()))]
    target = words[0] if kind == 'module' else str(ROOT / words[0])
    return server().run(kind, target, *words[1:], cwd=place, timeout=120)


def write_weights(path):
    """Writes random weights of the small network."""
    rng, widths = np.random.default_rng(0), (3, 8, 16, 16, 16, 16)
    tensors = {}
    for n in range(1, 6):
        shape = (3, 3, *widths[n - 1 : n + 1])
        deviation = (2 / np.prod(shape[:3])) ** 0.5
        tensors[f'block{n}/conv/kernel'] = rng.normal(0, deviation, shape).astype(np.float32)
        tensors[f'block{n}/conv/bias'] = np.zeros(shape[3], np.float32)
    np.savez(path, **tensors)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A folder as the pages assume it: photographs, and finished runs of `configs/traffic.py`."""
    root = tmp_path_factory.mktemp('documents')
    make_folders(root / 'photos' / 'Train', 12, seed=1)
    make_folders(root / 'photos' / 'Test', 4, seed=2)
    make_folders(root / 'more' / 'photos', 1, seed=3)
    shutil.copy(root / 'photos' / 'Test' / 'red' / '000.jpg', root / 'photo.jpg')
    shutil.copytree(ROOT / 'configs', root / 'configs')
    (root / 'configs' / 'images.py').write_text((ROOT / 'configs/images.py').read_text() + CHEAP)
    (root / 'small.py').write_text(BACKBONE)
    write_weights(root / 'small.npz')
    command = 'python -m tlflax.train --config=configs/traffic.py'
    assert command in COMMANDS
    done = run(command.split(), root)
    assert done.returncode == 0, done.stderr
    assert (root / 'runs' / 'traffic' / 'result.json').exists()
    for name in 'ab':
        shutil.copytree(root / 'runs' / 'traffic', root / 'runs' / name)
    return root


@pytest.fixture
def place(finished, tmp_path):
    """A copy of that folder, for one command."""
    shutil.copytree(finished, tmp_path / 'place')
    return tmp_path / 'place'


def written(words):
    """Yields the files and folders that a command's arguments say it writes."""
    for word in words:
        flag, _, value = word.partition('=')
        if flag in ('--report', '--show', '--mistakes', '--differences', '--workdir'):
            yield value


@pytest.mark.parametrize('command', RUN)
def test_command(command, place):
    words = shlex.split(command)
    trains = words[2] in ('tlflax.train', 'tlflax.sweep', 'tlflax.probe')
    if trains and '--config=runs/traffic/config.json' not in words:
        shutil.rmtree(place / 'runs')  # each begins as in a folder without runs
    done = run(words, place)
    # An audit that finds something exits with 1, and generated images look alike.
    assert done.returncode in ((0, 1) if words[2] == 'tlflax.data' else (0,)), done.stderr
    assert done.stdout
    assert 'Traceback' not in done.stderr
    for name in written(words):
        assert (place / name).exists()


def test_what_is_not_run_is_documented():
    for start in NOT_RUN:
        assert any(command.startswith(start) for command in COMMANDS), start


def test_extras_exist():
    import tomllib

    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    found = set()
    for page in documents.PAGES:
        for names in re.findall(r'(?:tlflax|\.)\[([\w,]+)\]', documents.text(page)):
            found |= set(names.split(','))
    assert {'dev', 'cloud', 'torch', 'gpu'} <= found <= set(project['optional-dependencies'])


SCRIPTS = sorted({shlex.split(one)[1] for one in COMMANDS if one.startswith('python scripts/')})


@pytest.mark.parametrize('script', SCRIPTS)
def test_script_takes_the_documented_arguments(script):
    done = server().run('script', str(ROOT / script), '--help', timeout=120)
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        for word in shlex.split(command):
            if command.startswith(f'python {script} ') and word.startswith('--'):
                assert word.partition('=')[0] in done.stdout, command


# Blocks of Python

# What the fragments assume.
BEFORE = """
import sys

import numpy as np

sys.path.insert(0, 'configs')
from finetune import TAIL
from tlflax.config import default_config, resolve
from tlflax.config.phases import expand

config = default_config()
images, labels = np.arange(4 * 8 * 8 * 3, dtype=np.uint8).reshape(4, 8, 8, 3), [0, 1, 0, 1]
"""
AFTER = """
if __name__ == '__main__':
    phases = expand(resolve(get_config() if 'get_config' in globals() else config))
    if 'make' in globals():
        from tlflax.config.schema import DataConfig
        from tlflax.data.splits.load import load_table

        table = load_table('py:block.py:make', data=DataConfig())
        assert len(table) == len(images) and table.class_names == ('cat', 'dog')
    print('all of it ran')
"""
OTHERS = list(documents.blocks('docs/extend.md'))  # test_documents.py
OTHERS += documents.blocks('docs/research.md')
BLOCKS = [
    block
    for page in documents.PAGES
    for block in documents.blocks(page)
    if block.language == 'python' and block not in OTHERS
]


@pytest.mark.parametrize('block', BLOCKS, ids=lambda block: f'{block.page}:{block.line}')
def test_block_of_python(block, place):
    for name in re.findall(r'runs/traffic/classifier\.(\w+)', block.code):
        words = f'python -m tlflax.export --workdir=runs/traffic --format={name}'.split()
        assert run(words, place).returncode == 0
    (place / 'block.py').write_text(BEFORE + block.code + AFTER)
    done = server().run('script', str(place / 'block.py'), cwd=place, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith('all of it ran\n')


def test_languages_of_blocks():
    """What a reader could run is marked as such, and so is found here."""
    for page in documents.PAGES:
        for block in documents.blocks(page):
            assert block.language in ('', 'bash', 'python'), block
            if not block.language:
                assert not re.search(r'^\S*(python|pip) |^(import|from) ', block.code, re.M), block
        assert not re.search(r'^    \S*(python|pip) ', documents.prose(page), re.M), page

"""The code of README and docs is executed."""

import re
import shutil

import numpy as np
import pytest
from helpers import COLORS, ROOT, make_folders, run_code, run_module, small_config

import tlflax
from tlflax.train.run import train_and_evaluate


def blocks(path, heading=''):
    """Returns (language, code) of the fenced blocks of a document from a heading on."""
    text = (ROOT / path).read_text()
    text = text[text.index(heading) :]
    return re.findall(r'^```(\w+)\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)


def test_what_extends_tlflax(tmp_path, monkeypatch):
    """README's head, backbone, data function and label patterns, all in one run."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 3
    colors = np.array(list(COLORS.values()))[labels][:, None, None]
    images = np.clip(colors + rng.normal(0, 20, (40, 24, 24, 3)), 0, 255).astype(np.uint8)
    np.savez('arrays.npz', images=images, labels=labels)
    found = blocks('README.md', '## Extend')
    python = [code for kind, code in found if kind == 'python']
    files = {code.splitlines()[0].removeprefix('# '): code for code in python}
    assert set(files) == {'my_head.py', 'my_backbone.py', 'my_data.py', 'my_config.py'}
    for name, code in files.items():
        (tmp_path / name).write_text(code)
    (command,) = (code for kind, code in found if kind == 'bash')
    module, *arguments = command.removeprefix('python -m tlflax.').split()
    small = ['--config.data.image_size=(32,32)', '--config.train.batch_size=8']
    done = run_module(module, *arguments, *small, '--config.train.epochs=3')
    assert done.returncode == 0, done.stderr
    restored = tlflax.load('runs/own')
    assert set(restored.trainable.params['backbone']) == {'block2'}
    assert set(restored.trainable.state) == {'head'}
    assert restored.evaluate()['num_examples'] == 9  # 3 of each class


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A folder with a small finished run in runs/traffic."""
    root = tmp_path_factory.mktemp('run')
    make_folders(root / 'Train', 8)
    make_folders(root / 'Test', 3)
    train_and_evaluate(small_config(root, train__epochs=1), root / 'runs' / 'traffic')
    return root


def test_research(run, monkeypatch):
    """Every block of the page, one after another, in a new process."""
    monkeypatch.chdir(run)
    code = '\n'.join(code for kind, code in blocks('docs/research.md') if kind == 'python')
    check = """
assert logits.shape == (4, 3) and saliency.shape == images.shape and np.any(saliency != 0)
assert step == classifier.step
kernel = restored['params']['head']['logits']['kernel']
np.testing.assert_array_equal(kernel, classifier.params['head']['logits']['kernel'])
assert restored['meta']['classes'] == list(classifier.class_names)
assert maps.shape == (9, 4, 4) and found.rows.shape == (9, 5) and note.startswith('HiResCAM')
print('all of it ran')
"""
    done = run_code(code + check)
    assert done.returncode == 0, done.stderr
    assert 'head/logits/kernel' in done.stdout
    assert done.stdout.endswith('all of it ran\n')


def test_research_commands(run, monkeypatch):
    """Those of the page, on a photograph and a folder of them."""
    monkeypatch.chdir(run)
    make_folders(run / 'more' / 'photos', 1, seed=5)
    shutil.copy(run / 'Test' / 'red' / '000.jpg', 'photo.jpg')
    found = [code for kind, code in blocks('docs/research.md') if kind == 'bash']
    lines = ''.join(found).splitlines()
    assert len(lines) == 5
    for line in lines:
        module, *arguments = line.removeprefix('python -m tlflax.').split()
        done = run_module(module, *arguments)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(('photo.jpg\n', 'path,', 'features.'))
    assert {path.suffix for path in run.glob('features.*')} == {'.parquet', '.npz', '.csv'}

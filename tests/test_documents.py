"""README and docs: what they link to and name exists, and their longer code is executed.

`test_documented_commands.py` executes their commands and their other code.
"""

import dataclasses
import importlib
import re
import shlex
from urllib.parse import urlsplit

import documents
import numpy as np
import pytest
from helpers import COLORS, ROOT, make_folders, run_code, run_module, small_config

import tlflax
from tlflax.config import flags, resolve
from tlflax.config.schema import OPTIMIZERS, Config
from tlflax.train.__main__ import COMMAND
from tlflax.train.run import train_and_evaluate


def test_what_extends_tlflax(tmp_path, monkeypatch):
    """The head, backbone, data function and label patterns, all in one run."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 3
    colors = np.array(list(COLORS.values()))[labels][:, None, None]
    images = np.clip(colors + rng.normal(0, 20, (40, 24, 24, 3)), 0, 255).astype(np.uint8)
    np.savez('arrays.npz', images=images, labels=labels)
    found = documents.blocks('docs/extend.md')
    python = [block.code for block in found if block.language == 'python']
    files = {code.splitlines()[0].removeprefix('# '): code for code in python}
    assert set(files) == {'my_head.py', 'my_backbone.py', 'my_data.py', 'my_config.py'}
    for name, code in files.items():
        (tmp_path / name).write_text(code)
    (command,) = (block.code for block in found if block.language == 'bash')
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
    """Every block of Python of the page, one after another, in a new process."""
    monkeypatch.chdir(run)
    found = documents.blocks('docs/research.md')
    code = '\n'.join(block.code for block in found if block.language == 'python')
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


# What is linked to


@pytest.mark.parametrize('page', [*documents.PAGES, documents.NOTEBOOK])
def test_links(page):
    for target in documents.links(page):
        address = urlsplit(target)
        if address.scheme:
            assert address.scheme == 'https', target
            assert re.fullmatch(r'[\w-]+(\.[\w-]+)+', address.netloc), target
            continue
        path = (ROOT / page).parent / address.path if address.path else ROOT / page
        assert path.resolve().is_relative_to(ROOT), target
        assert path.exists(), target
        if address.fragment:
            other = path.resolve().relative_to(ROOT).as_posix()
            assert address.fragment in documents.headings(other), target


@pytest.mark.parametrize('page', documents.PAGES)
def test_identifiers_of_papers_are_well_formed(page):
    for found in re.findall(r'arXiv.{0,12}', documents.text(page)):
        assert re.match(r'arXiv:\d\d(0[1-9]|1[0-2])\.\d{4,5}\b', found), found


# What is named

SECTIONS = {field.name: field.default_factory for field in dataclasses.fields(Config)}
FILES = [
    path.relative_to(ROOT).as_posix()
    for folder in ('configs', 'docs', 'scripts', 'tests', 'tlflax')
    for path in (ROOT / folder).rglob('*.*')
]


def keys(section):
    """Returns the names of the keys of a section of the configuration."""
    return {field.name for field in dataclasses.fields(SECTIONS[section])}


@pytest.mark.parametrize('page', documents.PAGES)
def test_keys_exist(page):
    pattern = rf'(?:config\.)?({"|".join(SECTIONS)})\.(\w+|\*)(?![\w/.(])'
    for span in documents.spans(page):
        if found := re.match(pattern, span):
            section, key = found.groups()
            assert key == '*' or key in keys(section), span


@pytest.mark.parametrize('page', documents.PAGES)
def test_values_of_keys_are_allowed(page):
    sections = '|'.join(SECTIONS)
    for span in documents.spans(page):
        if re.search(r'\.\.\.|KEY|=N\b|FILE', span):
            continue
        if re.match(rf'({sections})\.\w+=', span):
            key, _, value = span.partition('=')
            arguments = [f'--config.{key}={value.strip(chr(39))}']
        elif re.match(r"'?--config\.", span):
            arguments = shlex.split(span)
        else:
            continue
        given = COMMAND.parse([f'--config={ROOT / "configs/traffic.py"}', *arguments])
        resolve(given.config.values)


@pytest.mark.parametrize(
    ('page', 'heading', 'section'),
    [
        ('docs/data.md', '### Every key', 'data'),
        ('docs/data.md', '### Keys of augmentation', 'augment'),
        ('docs/data.md', '### Keys of the loss', 'loss'),
        ('docs/optim.md', '## Keys', 'optim'),
    ],
)
def test_tables_of_keys_are_complete(page, heading, section):
    header, _, *rows = documents.table(page, heading)
    here = []
    for first, second, *_ in rows:
        names = [name.removeprefix(f'{section}.') for name in re.findall(r'`([\w.]+)`', first)]
        names = [name for name in names if not name.startswith('train.')]
        here += names
        if header[1] == 'default' and names:
            found = eval(second.replace('`', '').replace('178,956,970', '178956970'), {}, Words())
            defaults = (
                found if len(names) > 1 and isinstance(found, tuple) else [found] * len(names)
            )
            assert list(defaults) == [getattr(SECTIONS[section](), name) for name in names], first
    assert sorted(here) == sorted(keys(section))


class Words(dict):
    """Lets a word stand for itself."""

    def __missing__(self, word):
        return word


def test_table_of_optimizers_is_complete():
    _, _, *rows = documents.table('docs/optim.md', '## Optimizers')
    names = [name for first, _ in rows for name in re.findall(r'`(\w+)`', first)]
    assert sorted(names) == sorted(OPTIMIZERS)


@pytest.mark.parametrize('page', documents.PAGES)
def test_python_names_exist(page):
    for name in set(re.findall(r'\btlflax(?:\.\w+)+', documents.text(page))):
        parts = name.split('.')
        for n in range(len(parts), 0, -1):
            try:
                found = importlib.import_module('.'.join(parts[:n]))
            except ModuleNotFoundError:
                continue
            break
        for part in parts[n:]:
            found = getattr(found, part)


@pytest.mark.parametrize('page', documents.PAGES)
def test_files_of_the_project_exist(page):
    """Files may be named by the last parts of their path; `my_` begins those of the reader."""
    pattern = r'(?<![\w*/.{])((?:[\w-]+/)*[\w-]+\.py)\b'
    for path in set(re.findall(pattern, documents.text(page))):
        if not re.search(r'(^|/)(FILE|my_)', path):
            assert any(f'/{file}'.endswith(f'/{path}') for file in FILES), path
    for span in documents.spans(page):
        if found := re.match(r'(configs|docs|scripts|tests|tlflax)/[\w/]*', span):
            assert any(file.startswith(found[0]) for file in FILES), span


def test_functions_of_the_architecture_exist():
    """Names between a file and what it does, or after a file in inline code."""
    page = 'docs/architecture.md'
    found = re.findall(r'^ +([\w/]+\.py) +([\w.]+)  ', documents.text(page), re.MULTILINE)
    found += re.findall(r'`([\w/]+\.py) (\w+)`', documents.text(page))
    assert len(found) > 20
    for path, name in found:
        files = [file for file in FILES if f'/{file}'.endswith(f'/{path}')]
        pattern = rf'\b(def|class) {name.rpartition(".")[2]}\b'
        assert any(re.search(pattern, (ROOT / file).read_text()) for file in files), (path, name)


def described_flags():
    """Returns every flag of every command."""
    found = {'help'}
    for file in FILES:
        if re.fullmatch(r'tlflax/(\w+/__main__|evaluate|predict)\.py', file):
            module = importlib.import_module(file.removesuffix('.py').replace('/', '.'))
            found |= {argument.name for argument in flags.described(module.COMMAND.arguments)}
    return found


@pytest.mark.parametrize('page', documents.PAGES)
def test_flags_exist(page):
    known = described_flags()
    for span in documents.spans(page):
        if not re.search(r'\.py\b|^\S+=\S+ mlflow ', span):  # flags of other programs
            for flag in re.findall(r'(?<!\S)--(\w+)(?![\w.])', span):
                assert flag in known, span

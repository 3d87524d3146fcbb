"""Every command answers --help and mistakes, and what messages recommend exists."""

import ast
import dataclasses
import importlib
import json
import re
import shutil
import subprocess
import sys

import pytest
from helpers import ROOT, make_folders, run_module

from tlflax.config import flags
from tlflax.config.schema import Config

PACKAGE = ROOT / 'tlflax'
TREES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob('*.py'))}


def is_main(node):
    """Whether a statement is `if __name__ == '__main__':`."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def runnable():
    """Returns the names after `python -m` of all modules that can be run."""
    found = []
    for path, tree in TREES.items():
        if path.name == '__main__.py' or any(map(is_main, tree.body)):
            parts = path.relative_to(ROOT).with_suffix('').parts
            found.append('.'.join(parts[:-1] if parts[-1] == '__main__' else parts))
    return found


COMMANDS = runnable()


def command(name):
    """Returns the description of a command and its arguments."""
    package = (PACKAGE.parent / name.replace('.', '/')).is_dir()
    found = importlib.import_module(f'{name}.__main__' if package else name).COMMAND
    return found, flags.described(found.arguments)


# Runs command lines one after another in one process, as `python -m` would, and prints for each its
# exit code, stdout, stderr, and which heavy libraries have been imported.
RUN_ALL = """
import contextlib, io, json, runpy, sys

answers = []
for name, *arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    with contextlib.redirect_stdout(io.StringIO()) as out:
        with contextlib.redirect_stderr(io.StringIO()) as err:
            try:
                runpy.run_module(name, run_name='__main__', alter_sys=True)
                code = 0
            except SystemExit as stop:
                code = stop.code or 0
    heavy = [m for m in ('jax', 'tensorflow', 'orbax', 'torch') if m in sys.modules]
    answers.append([code, out.getvalue(), err.getvalue(), heavy])
print(json.dumps(answers))
"""

LINES = {
    'help': ['--help'],
    'h': ['-h'],
    'help_among_others': ['--config=configs/nowhere.py', '--x', '--help'],
    'nothing': [],
    'unknown': ['--wrokdir=x', '--hepl'],
    'single_dash': ['-hepl'],
}


@pytest.fixture(scope='module')
def answers():
    lines = [(name, key) for name in COMMANDS for key in LINES]
    done = subprocess.run(
        [sys.executable, '-c', RUN_ALL, json.dumps([[n, *LINES[key]] for n, key in lines])],
        capture_output=True, text=True, check=True, cwd=ROOT, timeout=300,
    )  # fmt: skip
    return dict(zip(lines, json.loads(done.stdout), strict=True))


def test_all_commands_are_found():
    expected = 'train evaluate predict sweep probe features data report'
    assert set(COMMANDS) >= {f'tlflax.{name}' for name in expected.split()}
    for name in COMMANDS:
        assert command(name)[0].name == name


@pytest.mark.parametrize('name', COMMANDS)
@pytest.mark.parametrize('line', ['help', 'h', 'help_among_others'])
def test_help(answers, name, line):
    code, out, err, heavy = answers[name, line]
    assert (code, err, heavy) == (0, '', [])
    described, arguments = command(name)
    assert out.startswith(f'usage: python -m {name} ')
    assert described.purpose.strip() in out
    assert f'python -m {name} {described.example}' in out
    assert all(f'  {argument}' in out for argument in arguments)
    unwrapped = ' '.join(out.split())
    assert all(' '.join(argument.doc.split()) in unwrapped for argument in arguments)
    if any(argument.kind == 'config' for argument in arguments):
        assert '--config.KEY=VALUE' in out
        assert 'config/schema.py' in out
    foreign = ('--verbosity', '--logtostderr', '--flagfile', '--jax')
    assert not any(flag in out for flag in foreign)


@pytest.mark.parametrize('name', COMMANDS)
def test_missing_argument(answers, name):
    code, out, err, heavy = answers[name, 'nothing']
    assert (code, out, heavy) == (2, '', [])
    usage, sentence = err.splitlines()
    assert usage.startswith(f'usage: python -m {name} ')
    assert sentence.startswith('error: ')
    assert f'for example: python -m {name} ' in sentence
    for argument in command(name)[1]:
        if argument.needed and argument.kind != 'positional':
            assert f'--{argument.name}' in usage
            assert f'no --{argument.name}' in sentence


@pytest.mark.parametrize('name', COMMANDS)
def test_unknown_flag(answers, name):
    code, out, err, heavy = answers[name, 'unknown']
    assert (code, out, heavy) == (2, '', [])
    (sentence,) = err.splitlines()
    assert sentence.startswith("error: command line: Unknown command line flag 'wrokdir'; ")
    assert sentence.endswith(f'see python -m {name} --help')
    if 'workdir' in [argument.name for argument in command(name)[1]]:
        assert "did you mean '--workdir'?" in sentence
    assert "did you mean '--help'?" in answers[name, 'single_dash'][2]


# What messages recommend


def strings(tree):
    """Returns every string constant of a module."""
    constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {value for value in constants if isinstance(value, str)}


def constants():
    """Yields every string of the package, docstrings included, with its place."""
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield f'{path.relative_to(ROOT)}:{node.lineno}', node.value


def test_recommended_commands_exist():
    found = set()
    for place, text in constants():
        for name, rest in re.findall(r'python -m (tlflax[.\w]*\w)([^`;\n]*)', text):
            assert name in COMMANDS, f'{place} recommends python -m {name}'
            found.add(name)
            known = {argument.name for argument in command(name)[1]}
            assert set(re.findall(r'--(\w+)', rest)) <= known, f'{place}: {name}{rest}'
    assert found >= {'tlflax.train', 'tlflax.data'}


def test_recommended_paths_exist():
    pattern = r'(?<![\w./~-])(?:configs|docs|scripts|tests|tlflax)/[\w./-]*\w'
    found = set()
    for place, text in constants():
        for path in re.findall(pattern, text):
            assert (ROOT / path).exists(), f'{place} names {path}'
            found.add(path)
    assert found >= {'configs/traffic.py', 'configs/sweeps/rates.py', 'docs/data.md'}


# Every key is read


def sections_in(tree):
    """Returns the expressions of a module that hold a section of the configuration.

    These are `config.data`, parameters and fields that are annotated with a section's class, and
    names that one of these is assigned to.
    """
    classes = {field.default_factory.__name__: field.name for field in dataclasses.fields(Config)}
    names = {}
    for node in ast.walk(tree):
        annotation = getattr(node, 'annotation', None)
        for class_name, section in classes.items():
            if annotation is not None and re.search(rf'\b{class_name}\b', ast.unparse(annotation)):
                target = node.arg if isinstance(node, ast.arg) else ast.unparse(node.target)
                names[target] = section
                names[f'self.{target}'] = section

    def section(node):
        if ast.unparse(node) in names:
            return names[ast.unparse(node)]
        is_section = isinstance(node, ast.Attribute) and node.attr in classes.values()
        return node.attr if is_section else None

    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pairs = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = zip(target.elts, node.value.elts, strict=True)
                for name, value in pairs:
                    if section(value):
                        names[ast.unparse(name)] = section(value)
    return section


def test_every_key_is_read():
    read = set()
    for path, tree in TREES.items():
        if path.parent.name != 'config':
            section = sections_in(tree)
            for node in ast.walk(tree):
                if isinstance(node, ast.Attribute) and section(node.value):
                    read.add(f'{section(node.value)}.{node.attr}')
                if isinstance(node, ast.Call) and ast.unparse(node.func) == 'getattr':
                    of = section(node.args[0])  # by a name that this module has as a string
                    read |= {f'{of}.{text}' for text in strings(tree)}
    keys = {
        f'{field.name}.{key.name}'
        for field in dataclasses.fields(Config)
        for key in dataclasses.fields(field.default_factory)
    }
    assert sorted(keys - read) == []


# Results go to stdout, all else to stderr


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder with images, a config file and a finished run, whose training is returned too."""
    root = tmp_path_factory.mktemp('streams')
    make_folders(root / 'Train', 10, seed=1)
    make_folders(root / 'Test', 3, seed=2)
    (root / 'few.py').write_text(
        'import sys\n'
        f'sys.path.insert(0, {str(ROOT / "tests")!r})\n'
        'from pathlib import Path\n'
        'from helpers import small_config\n'
        'def get_config():\n'
        f'    return small_config(Path({str(root)!r}), train__epochs=1)\n'
    )
    (root / 'rates.py').write_text(
        "def get_sweep():\n    return [{'optim.learning_rate': r} for r in (1e-3, 1e-2)]\n"
    )
    config = f'--config={root / "few.py"}'
    done = run_module('train', config, f'--workdir={root / "run"}', TLFLAX_CACHE=str(root / 'c'))
    shutil.copytree(root / 'run', root / 'copy')
    return root, config, done


@pytest.mark.parametrize(
    ('name', 'arguments', 'last', 'read'),
    [
        ('train', [], 'calibrated by temperature ', 'Test Train'),
        ('evaluate', ['--workdir=run'], '{"', 'Test'),
        ('predict', ['--workdir=run', 'Test'], '{root}/Test/yellow/002.jpg  ', ''),
        ('probe', ['CONFIG', '--workdir=probe'], '{"', 'Test Train'),
        (
            'sweep',
            ['CONFIG', '--sweep=rates.py', '--workdir=sweep'],
            'the best is the run in ',
            'Test Train',
        ),
        ('data', ['--train=Train', '--val=Test'], '{"', 'Test Train'),
        ('report', ['run'], '{root}/run/report.html', 'Test Train'),
        ('report', ['run', 'copy', '--output=compared.html'], '{"', 'Test'),
    ],
    ids=['train', 'evaluate', 'predict', 'probe', 'sweep', 'data', 'report', 'comparison'],
)
def test_results_go_to_stdout_and_all_else_to_stderr(place, name, arguments, last, read):
    root, config, done = place
    if name != 'train':
        given = [config if argument == 'CONFIG' else argument for argument in arguments]
        paths = [re.sub(r'(^|=)(?=[a-zA-Z])', rf'\g<1>{root}/', argument) for argument in given]
        done = run_module(name, *paths, TLFLAX_CACHE=str(root / 'c'))
    assert done.returncode in (0, 1), done.stderr  # 1: the audit has found something
    lines = done.stdout.splitlines()
    assert lines[-1].startswith(last.replace('{root}', str(root)))
    assert lines[-1] not in done.stderr
    line = re.compile(r'^(.*): \d+ images in \d+ classes \(.* files read', re.MULTILINE)
    assert sorted(line.findall(done.stderr)) == [f'{root}/{one}' for one in read.split()]
    assert 'files read' not in done.stdout

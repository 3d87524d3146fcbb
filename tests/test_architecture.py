"""Imports point down the list of rooms, and TensorFlow, Orbax and the flags have one home each."""

import ast
import graphlib

import pytest
from helpers import ROOT, run_new_python

PACKAGE = ROOT / 'tlflax'

# From the ground up: each room imports from itself and from those before it.
ROOMS = """
    utils config models data workdir features train inference sweep probe report export serve
""".split()
DATA_ROOMS = """
    _tensorflow images inputs ingest augment table splits pipeline audit __main__
""".split()
COMMANDS = {
    'evaluate', 'predict', 'train.__main__', 'sweep.__main__', 'probe.__main__',
    'features.__main__', 'data.__main__', 'report.__main__', 'export.__main__',
    'serve.__main__',
}  # fmt: skip
HOMES = {
    'tensorflow': ('data', 'export'),
    'tensorflow_datasets': ('data',),
    'orbax': ('workdir',),
    'fsspec': ('utils.storage',),
    'absl.flags': ('config.command_line', 'config.libraries'),
    'ml_collections.config_flags': ('config.command_line',),
}
TOP = 18  # most entries of the package
FOLDER = 12  # most modules of a room, but for its command


def modules():
    """Returns the syntax tree of every module by its name below the package."""
    found = {}
    for path in sorted(PACKAGE.rglob('*.py')):
        parts = path.relative_to(PACKAGE).with_suffix('').parts
        name = '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)
        found[name] = ast.parse(path.read_text())
    return found


MODULES = modules()
PACKAGES = {name for name in MODULES if any(m.startswith(f'{name}.') for m in MODULES)} | {''}


def imports(tree):
    """Every module a file imports anywhere, functions included; `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, 'imports are absolute'
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def ours(name):
    """The modules of the package that a module imports; the package itself is ''."""
    for target in imports(MODULES[name]):
        if target.split('.')[0] != 'tlflax':
            continue
        inner = target.removeprefix('tlflax').removeprefix('.')
        parts = inner.split('.')
        known = ['.'.join(parts[:n]) for n in range(len(parts), 0, -1)]
        yield next((m for m in known if m in MODULES), '')


def room(name):
    """A module's room among `ROOMS`; commands and the package itself are above all."""
    top = name.split('.')[0]
    return len(ROOMS) if name in COMMANDS or name == '' else ROOMS.index(top)


@pytest.mark.parametrize('name', sorted(MODULES))
def test_imports_point_down(name):
    for target in ours(name):
        assert room(target) <= room(name), f'{name} imports {target} from above'
        inside = name.startswith('data.') and target.startswith('data.')
        if inside and name not in COMMANDS:
            here, there = (DATA_ROOMS.index(m.split('.')[1]) for m in (name, target))
            assert there <= here, f'{name} imports {target} from above'


def test_no_circle():
    graph = {name: {m for m in ours(name) if m != name} for name in MODULES}
    list(graphlib.TopologicalSorter(graph).static_order())


def test_no_circle_of_folders():
    folder = {name: name if name in PACKAGES else name.rpartition('.')[0] for name in MODULES}
    graph = {}
    for name in MODULES:
        for target in ours(name):
            if folder[target] != folder[name] and name not in COMMANDS:
                graph.setdefault(folder[name], set()).add(folder[target])
    list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize('library', HOMES)
def test_homes_of_libraries(library):
    for name, tree in MODULES.items():
        for target in imports(tree):
            if target == library or target.startswith(f'{library}.'):
                homes = HOMES[library]
                at_home = any(name == home or name.startswith(f'{home}.') for home in homes)
                assert at_home, f'{name} imports {target}'


def test_folders_are_small():
    entries = {name.split('.')[0] for name in MODULES if name}
    assert len(entries) <= TOP
    for package in PACKAGES:
        prefix = f'{package}.' if package else ''
        inside = {m for m in MODULES if m.startswith(prefix) and m != package}
        direct = {m for m in inside if '.' not in m.removeprefix(prefix)} - PACKAGES - COMMANDS
        assert len(direct) <= FOLDER, f'{package}: {sorted(direct)}'


def test_commands_are_short():
    for name in COMMANDS:
        path = PACKAGE / f'{name.replace(".", "/")}.py'
        assert len(path.read_text().splitlines()) <= 80, name


WITHOUT_TENSORFLOW = """
import importlib, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('tensorflow', 'tensorflow_datasets'):
            raise ImportError(f'{name} is not installed here')

sys.meta_path.insert(0, Blocked())
for name in sys.argv[1:]:
    importlib.import_module(f'tlflax.{name}')
"""


def test_everything_but_reading_images_imports_without_tensorflow():
    own = ('data.', 'export.tf_graph.')
    names = [name for name in MODULES if name and not name.startswith(own)]
    names += ['data.table', 'data.splits.load', 'data.augment.sampling', 'data.audit.run']
    done = run_new_python('-c', WITHOUT_TENSORFLOW, *names)
    assert done.returncode == 0, done.stderr
    blocked = run_new_python('-c', WITHOUT_TENSORFLOW, 'data.pipeline.tf_data')
    assert 'not installed here' in blocked.stderr

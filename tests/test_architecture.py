"""Imports go one way, and TensorFlow, Orbax and absl.flags have one home each."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / 'tlflax'

# Each module may import only those before it.
ORDER = """
errors machine mirrors progress config trees stopping assets metrics
data.streams data.ranges data.geometry data.policies data.sampling data.mixing
data.sniff data.colour data.looks data.decode data.findings data.scans data.walk data.listing
data.classes data.folder data.manifest data.pattern data.split data.scenes data.files
data.near data.twins data.problems data.filechecks data.audit data.audit_report
models.preprocess models.vgg models.winograd models.frozen models.plan models.heads
models.classifier
containers layouts weights optim rows segments store quota
data._tensorflow data.resize data.crops data.warp data.colour_ops data.policy_ops
data.augment data.reading data.pipeline data.show
data.export data.tfds_export data.tfds data.function data.mirror data.inputs
data.loading auditing
losses steps logistic extraction checkpoints report runner experiment sources making loop prepare
trained training across lanes sweeping probing cli train evaluate predict features sweep probe
data.__main__
""".split()

TF_HOMES = {name for name in ORDER if name.startswith('data.')}
TF_HOMES -= {
    f'data.{name}'
    for name in """
    streams ranges geometry policies sampling mixing sniff colour looks decode findings scans walk
    listing classes folder manifest pattern split scenes files near twins problems filechecks audit
    audit_report export mirror inputs loading __main__
    """.split()
}
ENTRIES = {'cli', 'train', 'evaluate', 'predict', 'sweep', 'probe', 'features', 'data.__main__'}
HOMES = {
    'tensorflow': TF_HOMES,
    'tensorflow_datasets': TF_HOMES,
    'orbax': {'checkpoints'},
    'absl.flags': ENTRIES,
}


def modules() -> dict[str, Path]:
    paths = (path for path in PACKAGE.rglob('*.py') if path.name != '__init__.py')
    return {'.'.join(path.relative_to(PACKAGE).with_suffix('').parts): path for path in paths}


def imports(path: Path) -> set[str]:
    """Every module a file imports anywhere, functions included; `from a import b` gives a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f'{node.module}.{alias.name}' for alias in node.names}
    return found


def test_every_module_has_its_place():
    assert set(modules()) == set(ORDER)


@pytest.mark.parametrize('name', sorted(modules()))
def test_imports_only_what_stands_before(name):
    before = set(ORDER[: ORDER.index(name)])
    for target in imports(modules()[name]):
        if target.startswith('tlflax.'):
            ours = target.removeprefix('tlflax.')
            matches = [m for m in ORDER if ours == m or ours.startswith(f'{m}.')]
            assert matches, f'{name} imports {target}, which is no module'
            assert max(matches, key=len) in before, f'{name} imports {target} from above'
        for library, homes in HOMES.items():
            if target == library or target.startswith(f'{library}.'):
                assert name in homes, f'{name} imports {target}'


def test_entry_points_are_short():
    for name in ENTRIES - {'cli'}:
        assert len(modules()[name].read_text().splitlines()) <= 80, name


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
    names = [name for name in ORDER if name not in TF_HOMES]
    done = subprocess.run(
        [sys.executable, '-c', WITHOUT_TENSORFLOW, *names],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    blocked = subprocess.run(
        [sys.executable, '-c', WITHOUT_TENSORFLOW, 'data.pipeline'],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert 'not installed here' in blocked.stderr

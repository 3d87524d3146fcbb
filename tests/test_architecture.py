"""Imports go one way, and TensorFlow, Orbax and absl.flags have one home each."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / 'tlflax'

# Each module may import only those before it.
ORDER = """
utils.errors utils.cpu utils.download utils.progress config.schema config.parse utils.trees
train.early_stopping utils.assets train.metrics data.augment.random_bits data.augment.ranges
data.augment.geometry data.augment.policies data.augment.sampling data.augment.mixup
data.images.sniff data.images.color_modes data.images.perceptual_hash data.images.decode
data.images.scan_cache data.images.scan data.inputs.walk data.inputs.listing
data.inputs.class_checks data.table data.inputs.manifest data.inputs.pattern data.splits.stratify
data.splits.groups data.splits.loose_files data.audit.near_duplicates data.audit.duplicates
data.audit.problems data.audit.file_checks data.audit.checks data.audit.report models.preprocess
models.vgg.network models.vgg.winograd models.vgg.fast_cpu models.vgg.autotune models.heads
models.classifier models.weights.file_formats models.vgg.tensor_names models.weights.pretrained
train.optim features.cache.rows features.cache.segments features.cache.store features.cache.quota
data._tensorflow data.pipeline.resize data.pipeline.crops data.augment.warp data.augment.color_ops
data.augment.policy_ops data.augment.apply data.pipeline.tf_decode data.pipeline.tf_data
data.pipeline.preview data.ingest.class_folders data.ingest.tfds_writer data.ingest.tfds
data.ingest.python_function data.ingest.object_store data.splits.resolve data.splits.load
data.audit.run train.losses train.steps models.linear.logistic_regression features.extract
workdir.checkpoints workdir.files train.epoch train.experiment features.sources features.select
train.loop train.setup inference.trained train.run sweep.per_member sweep.group sweep.run probe.run
config.cli train.__main__ evaluate predict features.__main__ sweep.__main__ probe.__main__
data.__main__
""".split()

TF_HOMES = {name for name in ORDER if name.startswith('data.')}
TF_HOMES -= set(
    """
    data.augment.random_bits data.augment.ranges data.augment.geometry data.augment.policies
    data.augment.sampling data.augment.mixup data.images.sniff data.images.color_modes
    data.images.perceptual_hash data.images.decode data.images.scan_cache data.images.scan
    data.inputs.walk data.inputs.listing data.inputs.class_checks data.table data.inputs.manifest
    data.inputs.pattern data.splits.stratify data.splits.groups data.splits.loose_files
    data.audit.near_duplicates data.audit.duplicates data.audit.problems data.audit.file_checks
    data.audit.checks data.audit.report data.ingest.class_folders data.ingest.object_store
    data.splits.resolve data.splits.load data.__main__
    """.split()
)
ENTRIES = set(
    'config.cli train.__main__ evaluate predict sweep.__main__ probe.__main__ features.__main__ '
    'data.__main__'.split()
)
HOMES = {
    'tensorflow': TF_HOMES,
    'tensorflow_datasets': TF_HOMES,
    'orbax': {'workdir.checkpoints'},
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
    for name in ENTRIES - {'config.cli'}:
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
        [sys.executable, '-c', WITHOUT_TENSORFLOW, 'data.pipeline.tf_data'],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert 'not installed here' in blocked.stderr

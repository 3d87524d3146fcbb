"""The wheel: what is in it, and that it trains without the repository."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from helpers import ROOT, make_folders

# Of https://www.apache.org/licenses/LICENSE-2.0.txt
APACHE_2 = 'cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30'

CONFIG = """
from pathlib import Path

import tlflax
from tlflax.config import default_config

Path('imported_from.txt').write_text(tlflax.__file__)


def get_config():
    config = default_config()
    config.data.train, config.data.val = 'images/Train', 'images/Test'
    config.data.image_size = (32, 32)
    config.weights.source = 'random'
    config.features.layer = 'block1_pool'
    config.model.head = 'gap_linear'
    config.train.epochs = 2
    config.train.batch_size = 8
    return config
"""


def pip(*arguments, **options):
    command = [sys.executable, '-m', 'pip', *map(str, arguments)]
    command += ['--quiet', '--no-deps', '--no-index', '--disable-pip-version-check']
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr


def package_files(root):
    """Returns the files of the package below a folder, as wheels name them."""
    files = (path for path in (root / 'tlflax').rglob('*') if path.is_file())
    names = (path.relative_to(root).as_posix() for path in files)
    return {name for name in names if '__pycache__' not in name}


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """Builds the wheel from a copy: setuptools would also pack what an earlier build left."""
    source = tmp_path_factory.mktemp('source')
    for name in ('pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, source)
    ignore = shutil.ignore_patterns('__pycache__')
    shutil.copytree(ROOT / 'tlflax', source / 'tlflax', ignore=ignore)
    folder = tmp_path_factory.mktemp('wheel')
    pip('wheel', '--no-build-isolation', f'--wheel-dir={folder}', source)
    (path,) = folder.iterdir()
    return path


def test_the_wheel_holds_the_whole_package_and_the_license(wheel):
    with zipfile.ZipFile(wheel) as archive:
        inside = {name.partition('.dist-info/')[2] or name: name for name in archive.namelist()}
        text = archive.read(inside['licenses/LICENSE'])
        metadata = archive.read(inside['METADATA']).decode()
    assert hashlib.sha256(text).hexdigest() == APACHE_2
    assert 'License-Expression: Apache-2.0\n' in metadata
    assert {name for name in inside if name.startswith('tlflax/')} == package_files(ROOT)


def test_the_installed_wheel_trains_with_a_config_of_the_users_own(wheel, tmp_path):
    pip('install', f'--target={tmp_path / "installed"}', wheel)
    assert list((tmp_path / 'installed').rglob('LICENSE'))
    elsewhere = tmp_path / 'elsewhere'
    for part in ('Train', 'Test'):
        make_folders(elsewhere / 'images' / part, per_class=4)
    (elsewhere / 'my.py').write_text(CONFIG)
    done = subprocess.run(
        [sys.executable, '-m', 'tlflax.train', '--config=my.py', '--workdir=run'],
        cwd=elsewhere,
        env={**os.environ, 'PYTHONPATH': str(tmp_path / 'installed')},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    installed = tmp_path / 'installed' / 'tlflax' / '__init__.py'
    assert (elsewhere / 'imported_from.txt').read_text() == str(installed)
    assert json.loads((elsewhere / 'run' / 'result.json').read_text())['epochs_run'] == 2

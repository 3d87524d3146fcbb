"""ONNX Runtime Web from npm, from a tarball that is there, and where neither serves."""

import shutil

import pytest

from tlflax.export.web import runtime
from tlflax.utils.download import matches
from tlflax.utils.errors import UserError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A new cache folder, and no npm."""
    monkeypatch.setenv('TLFLAX_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('PATH', str(tmp_path / 'bin'))
    (tmp_path / 'bin').mkdir()
    return tmp_path / 'cache'


def add_npm(tmp_path, script):
    """Adds a program npm that does something else."""
    path = tmp_path / 'bin' / 'npm'
    path.write_text(f'#!/bin/sh\n{script}\n')
    path.chmod(0o755)


def test_without_npm(cache):
    with pytest.raises(UserError) as caught:
        runtime.runtime()
    said = str(caught.value)
    assert said.startswith('--format=web: onnxruntime-web 1.30.0 could not be fetched from')
    assert '(npm is not installed)' in said
    assert f'put {runtime.TARBALL} into {cache}: `npm pack onnxruntime-web@1.30.0`' in said


@pytest.mark.parametrize(
    ('script', 'why'),
    [
        ('echo npm error code E404 >&2; exit 1', 'npm error code E404'),
        ('exit 0', 'npm failed'),
        (f'echo x > {runtime.TARBALL}', 'not the expected contents'),
    ],
)
def test_an_npm_that_does_not_serve(cache, tmp_path, script, why):
    add_npm(tmp_path, script)
    with pytest.raises(UserError) as caught:
        runtime.runtime()
    assert why in str(caught.value)
    assert [path.name for path in cache.iterdir()] == []


def test_a_damaged_tarball_in_the_cache_is_refused(cache):
    cache.mkdir()
    (cache / runtime.TARBALL).write_bytes(b'something else')
    with pytest.raises(UserError, match=r'tgz \(not the expected .* \(npm is not'):
        runtime.runtime()


@pytest.mark.skipif(shutil.which('npm') is None, reason='npm is not installed')
def test_the_package_of_npm_serves_without_npm_later(tmp_path, monkeypatch):
    (tmp_path / 'npm').mkdir()
    tarball = runtime._pack(tmp_path / 'npm')
    cache = tmp_path / 'cache'
    cache.mkdir()
    shutil.copy(tarball, cache)
    monkeypatch.setenv('TLFLAX_CACHE', str(cache))
    monkeypatch.setenv('PATH', '')
    found = runtime.runtime()
    assert {path.name for path in found.iterdir()} == {*runtime.FILES, runtime.LICENSE}
    assert matches(found, runtime.NpmPackage().digest)
    assert 'MIT License' in (found / runtime.LICENSE).read_text()
    (cache / runtime.TARBALL).unlink()
    assert runtime.runtime() == found
    (found / runtime.FILES[0]).write_text('changed')
    with pytest.raises(UserError, match='npm is not installed'):
        runtime.runtime()

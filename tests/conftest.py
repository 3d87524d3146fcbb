"""What tests share: caches of their own, checked annotations, the real weights and images."""

import atexit
import gc
import os
import shutil
import signal
import tempfile
from pathlib import Path

import fork_server
import pytest
from absl import logging

# tlflax's own cache, so that the real weights and images are downloaded once, not in each test run
REAL_CACHE = os.environ.get('TLFLAX_CACHE')

# What one test compiled need not be compiled by the next, in this process or another: the workers
# of pytest-xdist inherit the folder of the process that started them.
if 'PYTEST_XDIST_WORKER' not in os.environ:
    PROGRAMS = tempfile.mkdtemp(prefix='tlflax-programs-')
    atexit.register(shutil.rmtree, PROGRAMS, ignore_errors=True)
    os.environ['JAX_COMPILATION_CACHE_DIR'] = PROGRAMS
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'
    # Under a limit, JAX locks the folder, so that no process reads what another still writes.
    os.environ['JAX_COMPILATION_CACHE_MAX_SIZE'] = str(4 << 30)

# As in tlflax's commands: those that tests run in this process would set them, but other processes
# have loaded TensorFlow by then.
os.environ['TF_ENABLE_ONEDNN_OPTS'] = '0'
os.environ['TF_NUM_INTRAOP_THREADS'] = '1'

MOST_MAPS = 20_000  # of memory, in a worker, between two files of tests

# A pytest in the background of a script ignores SIGINT, and every process it starts would too.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Files that take a minute or more; they start first, so that no worker ends with one of them.
SLOW = """
    test_traffic test_sweep test_campaigns test_auto test_benchmarks test_folds test_extract
    test_probe test_interruptions test_run test_phases test_runs test_results test_compare
    test_candidates test_trials test_derive test_find_lr test_trained_cpu test_documented_commands
    test_notebook test_limits test_endpoints test_load test_models test_resize test_page test_int8
    test_mirror test_several_processes test_wide_head test_accelerator
""".split()


def pytest_collection_modifyitems(items):
    """Puts the tests of slow files first."""
    items.sort(key=lambda item: SLOW.index(stem) if (stem := item.path.stem) in SLOW else len(SLOW))


def pytest_configure(config):
    """Checks annotations in forked processes too."""
    fork_server.checked = config.getoption('jaxtyping_packages')


@pytest.fixture(autouse=True, scope='session')
def _own_cache(tmp_path_factory):
    """No test reads or fills the user's cache, except for downloads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TLFLAX_CACHE', str(tmp_path_factory.mktemp('cache')))
        yield


@pytest.fixture(autouse=True, scope='module')
def _few_programs():
    """Frees compiled programs: thousands reach the limit of memory maps (65,530), a crash."""
    yield
    maps = Path('/proc/self/maps')
    if maps.exists() and maps.read_bytes().count(b'\n') > MOST_MAPS:
        import jax

        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope='session')
def real_cache() -> Path:
    """The folder in which downloads are kept between test runs."""
    from tlflax.utils import assets

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv('TLFLAX_CACHE')
        if REAL_CACHE:
            patch.setenv('TLFLAX_CACHE', REAL_CACHE)
        return assets.cache_folder()


@pytest.fixture(scope='session')
def imagenet_weights_path(real_cache) -> Path:
    """The canonical VGG16 weights, in the container they were downloaded in."""
    from tlflax.models.weights.catalogue import VGG16_IMAGENET
    from tlflax.utils.assets import fetch

    return fetch(VGG16_IMAGENET, cache=real_cache)


@pytest.fixture(scope='session')
def traffic_lights_dir(real_cache) -> Path:
    """The real photographs: Train/ and Test/, each with red/, yellow/ and green/."""
    from tlflax.data.inputs.demos import TRAFFIC_LIGHTS
    from tlflax.utils.assets import fetch

    return fetch(TRAFFIC_LIGHTS, cache=real_cache)


@pytest.fixture
def cheap_choice(monkeypatch):
    """model.head='auto' tries what costs next to nothing, and compiles little."""
    monkeypatch.setattr('tlflax.sweep.auto.BUDGET', 1e8)


@pytest.fixture
def said(monkeypatch):
    """What was logged, as 'LEVEL message'."""
    lines = []
    for level in ('info', 'warning'):
        monkeypatch.setattr(
            logging,
            level,
            lambda text, *args, level=level: lines.append(f'{level} {_formatted(text, args)}'),
        )
    return lines


def _formatted(text, args):
    """As logging does it, where one mapping gives the values by name."""
    if not args:
        return str(text)
    return text % (args[0] if len(args) == 1 and isinstance(args[0], dict) else args)


@pytest.fixture(scope='session')
def s3_server():
    """The address of a stand-in for S3 on this machine."""
    from moto.server import ThreadedMotoServer

    running = ThreadedMotoServer('127.0.0.1', port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f'http://{host}:{port}'
    running.stop()


@pytest.fixture
def bucket(s3_server, monkeypatch, tmp_path):
    """An empty bucket 'photos', as boto3 has it, and a cache of its own."""
    import boto3
    import fsspec

    monkeypatch.setenv('TLFLAX_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('AWS_ENDPOINT_URL', s3_server)
    monkeypatch.setenv('AWS_ACCESS_KEY_ID', 'id')
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'secret')
    monkeypatch.setenv('AWS_DEFAULT_REGION', 'us-east-1')
    monkeypatch.setenv('AWS_CONFIG_FILE', str(tmp_path / 'none'))
    fsspec.get_filesystem_class('s3').clear_instance_cache()
    bucket = boto3.resource('s3').create_bucket(Bucket='photos')
    yield bucket
    bucket.objects.delete()

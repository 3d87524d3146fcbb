"""tlflax leaves the process as it found it: when it is imported, and when runs have ended."""

import json

import pytest
from helpers import TESTS, run_code, run_new_python

# What a process has that a library could change, as one JSON object: after the import of the
# modules named on stdin, and what tlflax changed while it was imported, even if it undid it.
STATE = """
import sys

DEEDS = ('os.putenv', 'os.unsetenv', 'os.chdir', 'os.fork', 'resource.setrlimit')
deeds = []

def note(event, arguments):
    if event in DEEDS:
        blame(event, arguments)

def blame(event, arguments):
    frame = sys._getframe(2)
    while frame:
        module = frame.f_globals.get('__name__') or ''
        if module.split('.')[0] == 'tlflax':
            deeds.append(f'{module}: {event} {arguments[:1]}')
        if module.split('.')[0] not in sys.stdlib_module_names:
            return
        frame = frame.f_back

sys.addaudithook(note)
import builtins, contextlib, csv, faulthandler, gc, importlib, json, locale, logging
import os, resource, signal, socket, threading, warnings
from collections import Counter

real = {name: getattr(os, name) for name in ('dup2', 'umask')}
def watched(name):
    def call(*arguments, **options):
        blame(name, arguments)
        return real[name](*arguments, **options)
    return call
for name in real:
    setattr(os, name, watched(name))

names = json.load(sys.stdin)
failed = []
for name in names:
    if name == '__main__' or name.startswith('_frozen'):
        continue
    try:
        importlib.import_module(name)
    except Exception as error:
        failed.append(name)
imported = list(sys.modules)

def named(value):
    name = getattr(value, '__qualname__', None) or repr(value).split(' at 0x')[0]
    return f'{getattr(value, "__module__", "")}.{name}'

def open_files():
    for number in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd') else ():
        with contextlib.suppress(FileNotFoundError):  # the listing itself
            yield int(number), os.readlink(f'/proc/self/fd/{number}').split(':')[0]

def loggers():
    known = logging.root.manager.loggerDict
    for name in ['', *(n for n in known if n.split('.')[0] != 'tlflax')]:
        logger = logging.getLogger(name) if name else logging.root
        handlers = [(type(h).__qualname__, h.level, len(h.filters)) for h in logger.handlers]
        settings = [logger.level, logger.disabled, logger.propagate, handlers, len(logger.filters)]
        if settings != [0, False, True, [], 0]:
            yield name, settings

def tensorflow_devices():
    import tensorflow as tf
    from tensorflow.python.eager import context
    known = context.context_safe()
    chosen = known is not None and known._physical_devices is not None
    return chosen, [str(device) for device in tf.config.get_visible_devices()]

import absl.logging, jax, numpy as np, PIL.Image, PIL.ImageFile
from tensorflow_datasets.core.utils import tqdm_utils

mask = real['umask'](0)
real['umask'](mask)
limits = [name for name in dir(resource) if name.startswith('RLIMIT_')]
signals = [s for s in signal.valid_signals() if isinstance(s, signal.Signals)]
print(json.dumps({
    'absl verbosity': absl.logging.get_verbosity(),
    'builtins': sorted(vars(builtins)),
    'collector': [gc.isenabled(), gc.get_threshold()],
    'csv field size': csv.field_size_limit(),
    'cwd': os.getcwd(),
    'deeds during import': deeds,
    'environment': dict(os.environ),
    'excepthooks': [named(sys.excepthook), named(threading.excepthook), faulthandler.is_enabled()],
    'importers': [sorted(map(named, sys.meta_path)), sorted(map(named, sys.path_hooks))],
    'jax backends': sorted(jax._src.xla_bridge._backends),
    'jax config': {name: repr(value) for name, value in jax.config.values.items()},
    'limits': {name: resource.getrlimit(getattr(resource, name)) for name in limits},
    'locale': locale.setlocale(locale.LC_ALL),
    'loggers': dict(loggers()),
    'numpy errors': np.geterr(),
    'numpy printing': repr(np.get_printoptions()),
    'open files': sorted(open_files()),
    'path': sys.path,
    'pillow': [PIL.Image.MAX_IMAGE_PIXELS, PIL.ImageFile.LOAD_TRUNCATED_IMAGES],
    'signals': {s.name: named(signal.getsignal(s)) for s in signals},
    'socket timeout': socket.getdefaulttimeout(),
    'tensorflow devices': tensorflow_devices(),
    'tensorflow datasets progress bar': tqdm_utils._active,
    'threads': [thread.name for thread in threading.enumerate()],
    'umask': mask,
    'warning filters': sorted(Counter(map(str, warnings.filters)).items()),
    'imported': imported,
    'failed': failed,
}))
"""
NO_STATE = ('imported', 'failed')


@pytest.fixture(scope='module')
def states():
    """The states after importing all of tlflax, and after importing the libraries it imports."""
    from test_architecture import MODULES

    names = [f'tlflax.{name}' if name else 'tlflax' for name in MODULES]
    ours = _state(names)
    assert ours['failed'] == []
    assert set(names) <= set(ours['imported'])
    theirs = _state([name for name in ours['imported'] if name.split('.')[0] != 'tlflax'])
    missing = set(ours['imported']) - set(theirs['imported']) - set(names)
    assert not {name for name in missing if not name.startswith(('six.moves', 'tensorflow.'))}
    return ours, theirs


def _state(names):
    done = run_new_python('-c', STATE, stdin=json.dumps(names))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


KEYS = """
    absl verbosity, builtins, collector, csv field size, cwd, deeds during import, environment,
    excepthooks, importers, jax backends, jax config, limits, locale, loggers, numpy errors,
    numpy printing, open files, path, pillow, signals, socket timeout, tensorflow devices,
    tensorflow datasets progress bar, threads, umask, warning filters
"""


@pytest.mark.parametrize('key', [key.strip() for key in KEYS.split(',')])
def test_importing_tlflax_changes_nothing(states, key):
    """Compared with a process that imports only the libraries that tlflax imports."""
    ours, theirs = states
    assert ours[key] == theirs[key]


def test_all_state_is_compared(states):
    assert {*states[0]} == {key.strip() for key in KEYS.split(',')} | {*NO_STATE}


# Runs in a process of their own: `run` trains once, `after` tells what is left when all have ended.
RUNS = """
import asyncio, contextlib, ctypes, gc, os, re, sys, threading, time
from pathlib import Path
import jax
sys.path.insert(0, sys.argv[1])
from helpers import make_folders, small_config
from tlflax.train import train_and_evaluate

root = Path(sys.argv[2])
make_folders(root / 'Train', 4, seed=1)
make_folders(root / 'Test', 2, seed=2)
config = small_config(root, train__epochs=1)

def run(name):
    result = train_and_evaluate(config, root / name)
    assert result['epochs_run'] == 1
    return result['best_val_loss']

def after():
    gc.collect()
    deadline = time.monotonic() + 5
    while threading.active_count() > 1 and time.monotonic() < deadline:
        time.sleep(0.01)  # some have been told to end, and are about to
    with contextlib.suppress(OSError, AttributeError):  # glibc alone keeps what was freed
        ctypes.CDLL('libc.so.6').malloc_trim(0)
    status = Path('/proc/self/status').read_text()
    return {
        'threads': [thread.name for thread in threading.enumerate()],
        'arrays': sum(array.nbytes for array in jax.live_arrays()),
        'files': len(os.listdir('/proc/self/fd')),
        'mib': int(re.search(r'RssAnon:\\s*(\\d+) kB', status)[1]) / 1024,
    }
"""


def _runs(tmp_path, code, **environment):
    """Runs code after `RUNS` and returns what it leaves as `left`."""
    end = '\nimport json; print(json.dumps(left))\n'
    done = run_code(RUNS + code + end, str(TESTS), str(tmp_path), timeout=300, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_runs_one_after_the_other_leave_nothing(tmp_path):
    code = """
losses = [run('0'), run('1')]
left = [after()]
for number in range(2, 7):
    losses.append(run(str(number)))
left.append(after())
assert len(set(losses)) == 1, losses
"""
    first, last = _runs(tmp_path, code)
    assert last['threads'] == first['threads'] == ['MainThread']
    assert last['arrays'] <= first['arrays']
    assert last['files'] <= first['files']
    # Five runs that kept the backbone would take 280 MiB; JAX keeps the programs it compiled.
    assert last['mib'] - first['mib'] < 100


def test_two_runs_at_the_same_time(tmp_path):
    """From two threads, with the numbers of a run by itself."""
    code = """
from concurrent.futures import ThreadPoolExecutor
alone = run('alone')
left = [after()]
with ThreadPoolExecutor(2) as pool:
    assert list(pool.map(run, ['a', 'b'])) == [alone, alone]
left.append(after())
"""
    first, last = _runs(tmp_path, code)
    assert last['threads'] == ['MainThread']
    assert last['arrays'] <= first['arrays']
    assert last['files'] <= first['files']


def test_a_run_inside_a_running_event_loop(tmp_path):
    """As in a notebook, whose cells run in an event loop."""
    code = """
async def cell(name):
    return run(name)
first = asyncio.run(cell('first'))
left = [after()]
assert asyncio.run(cell('second')) == first == run('outside')
left.append(after())
"""
    first, last = _runs(tmp_path, code)
    assert last['threads'] == ['MainThread']
    assert last['arrays'] <= first['arrays']
    assert last['files'] <= first['files']

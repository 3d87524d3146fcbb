"""A forked process is what a new Python is, and the server it comes from is fit to be forked."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from fork_server import server
from helpers import run_new_python

# What a process can know of itself, as one JSON object on stdout.
STATE = """
import json, locale, os, resource, signal, sys, threading
limits = (n for n in dir(resource) if n.startswith('RLIMIT_'))
listing = os.open('/proc/self/fd', os.O_RDONLY)
files = {f for f in map(int, os.listdir(listing)) if f != listing}
mask = os.umask(0)
os.umask(mask)
print(json.dumps({
    'argv': sys.argv,
    'cwd': os.getcwd(),
    'environment': dict(os.environ),
    'files': sorted(files),
    'limits': {n: resource.getrlimit(getattr(resource, n)) for n in limits},
    'locale': locale.setlocale(locale.LC_ALL),
    'main': __name__,
    'nice': os.nice(0),
    'path': sys.path,
    'session': os.getsid(0),
    'group': os.getpgrp(),
    'signals': {s.name: str(signal.getsignal(s)).split(' at ')[0] for s in signal.valid_signals()
                if isinstance(s, signal.Signals)},
    'stdin': sys.stdin.read(),
    'terminals': [stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)],
    'threads': [thread.name for thread in threading.enumerate()],
    'umask': mask,
}))
print('a line on stderr', file=sys.stderr)
"""


@pytest.fixture
def in_text(tmp_path):
    path = tmp_path / 'stdin'
    path.write_text('what was typed\n')
    with open(path) as file:
        yield file


def test_the_server_has_no_backend_and_no_thread():
    """As seen by a process at its start, and from outside by the system."""
    code = """
import os, threading
from jax._src import xla_bridge
from tensorflow.python.eager import context
print(xla_bridge._backends, len(os.listdir('/proc/self/task')), threading.active_count())
print(context.context_safe()._initialized if context.context_safe() else False)
"""
    done = server().run('code', code)
    assert done.stdout == '{} 1 1\nFalse\n', done.stderr
    if os.path.exists('/proc'):
        assert len(os.listdir(f'/proc/{server().pid}/task')) == 1


def test_everything_is_imported():
    done = server().run('code', 'import sys; print(*sys.modules)')
    modules = set(done.stdout.split())
    assert modules > {'jax', 'flax', 'optax', 'orbax.checkpoint', 'tensorflow', 'tlflax.train.run'}
    assert not modules & {'pytest', 'tlflax.train.__main__', 'tlflax.evaluate', 'tlflax.predict'}


def test_a_forked_process_knows_of_itself_what_a_new_one_knows(tmp_path, in_text, monkeypatch):
    monkeypatch.setenv('TLFLAX_CACHE', str(tmp_path))
    monkeypatch.delenv('HOME')
    command = [sys.executable, '-c', STATE, 'one', '--two=größe']
    new = subprocess.run(
        command, capture_output=True, text=True, check=True,
        cwd=tmp_path, env=dict(os.environ), stdin=in_text,
    )  # fmt: skip
    in_text.seek(0)
    forked = server().run('code', STATE, *command[3:], cwd=tmp_path, stdin=in_text)
    assert (forked.returncode, forked.stderr) == (0, new.stderr) == (0, 'a line on stderr\n')
    assert json.loads(forked.stdout) == json.loads(new.stdout)


ENDS = {
    'the end': 'print("done")',
    'exit code': 'import sys; sys.exit(3)',
    'exit with a sentence': 'import sys; sys.exit("a sentence")',
    'exception': 'raise ValueError("a defect")',
    'interrupt': 'raise KeyboardInterrupt',
    'immediate exit': 'import os; print("lost"); os._exit(7)',
    'killed': 'import os, signal; os.kill(os.getpid(), signal.SIGKILL)',
    'terminated': 'import os, signal; os.kill(os.getpid(), signal.SIGTERM)',
    'broken memory': 'import os, signal; os.kill(os.getpid(), signal.SIGSEGV)',
    'functions at exit': 'import atexit; atexit.register(print, "at exit"); print("before")',
    'a thread at exit': """
import threading, time
threading.Thread(target=lambda: (time.sleep(0.2), print('from the thread'))).start()
""",
    'a defect at exit': 'import atexit; atexit.register(lambda: 1 / 0)',
    'flags': """
from absl import flags
flags.DEFINE_string('workdir', None, '')
flags.FLAGS(['x', '--workdir=a'])
print(flags.FLAGS.workdir)
""",
}


@pytest.mark.parametrize('code', ENDS.values(), ids=ENDS)
def test_a_forked_process_ends_as_a_new_one_does(code):
    new = run_new_python('-u', '-c', code) if 'lost' in code else run_new_python('-c', code)
    forked = server().run('code', code)
    assert (forked.returncode, forked.stdout) == (new.returncode, new.stdout)
    assert forked.stderr.splitlines()[-1:] == new.stderr.splitlines()[-1:]


def test_module_and_script_run_as_main(tmp_path):
    text = 'import sys; print(__name__, sys.argv, sys.path[0], sys.modules["__main__"].__file__)'
    (tmp_path / 'a.py').write_text(text)
    for kind, new in (('module', ['-m', 'a']), ('script', [str(tmp_path / 'a.py')])):
        command = [sys.executable, *new, 'x']
        expected = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=tmp_path
        ).stdout
        assert server().run(kind, new[-1], 'x', cwd=tmp_path).stdout == expected


def test_processes_know_nothing_of_each_other():
    code = 'import os, random, sys; print(random.random(), os.environ.get("MINE"), sys.argv)'
    first = server().run('code', f'import os; os.environ["MINE"] = "x"; {code}', 'first').stdout
    second = server().run('code', code).stdout
    assert second.split()[1:] == ['None', "['-c']"]
    assert first.split()[0] != second.split()[0]


def test_the_environment_decides_how_many_devices_there_are():
    for devices in (1, 3):
        flags = f'--xla_force_host_platform_device_count={devices}'
        env = os.environ | {'XLA_FLAGS': flags}
        done = server().run('code', 'import jax; print(jax.device_count())', env=env)
        assert done.stdout == f'{devices}\n', done.stderr


def test_what_is_read_during_imports_needs_a_new_python():
    with pytest.raises(ValueError, match='JAX_ENABLE_X64 is read during imports'):
        server().run('code', '', env=os.environ | {'JAX_ENABLE_X64': '1'})


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_reach_the_process(number, tmp_path):
    code = f"open({str(tmp_path / 'ready')!r}, 'w').close(); import time; time.sleep(60)"
    process = server().start('code', code)
    while not (tmp_path / 'ready').exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(10) == -number
    process.send_signal(number)  # it has ended: nobody else is hit


def test_time_and_resources_are_limited():
    started = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        server().run('code', 'import time; time.sleep(60)', timeout=0.5)
    assert time.monotonic() - started < 10
    code = 'import os; [os.dup(0) for _ in range(100)]'
    done = server().run('code', code, limits={'RLIMIT_NOFILE': 32})
    assert done.stderr.splitlines()[-1] == 'OSError: [Errno 24] Too many open files'


def test_processes_run_side_by_side():
    sleep = 'import time; time.sleep(1)'
    started = time.monotonic()
    processes = [server().start('code', sleep) for _ in range(4)]
    assert [process.wait(30) for process in processes] == [0] * 4
    assert time.monotonic() - started < 8

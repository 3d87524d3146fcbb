"""The long run of damaged inputs, in its shortest form, and what its watchdog does."""

import json
import subprocess
import sys
from pathlib import Path

from helpers import ROOT

SCRIPT = ROOT / 'scripts' / 'fuzz.py'

# Loaders that break every promise; the seed below reaches each of them once.
PLANTED = """
import os, time

KINDS = [b'ok', b'slow', b'memory', b'crash', b'raises']

class Fault(Exception):
    pass

class Target:
    name, share = 'planted', 1
    def seeds(self):
        return [b'ok']

def check(target, data, folder):
    if data == b'slow':
        time.sleep(60)
    elif data == b'memory':
        filled = b'x' * (2 << 30)
    elif data == b'crash':
        os.abort()
    elif data == b'raises':
        raise Fault('KeyError: planted')
    return True

TARGETS = [Target()]
BY_NAME = {'planted': TARGETS[0]}

def damaged(target, seeds, rng):
    return rng.choice(KINDS)
"""
SEED = 47


def run(script, *arguments):
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


def test_a_short_run_reaches_every_loader():
    code, found = run(SCRIPT, '--mutations=110', '--seconds=120', '--seed=7')
    assert (code, found['faults']) == (0, [])
    assert found['mutations'] == 110 == sum(found['by_loader'].values())
    assert {'images', 'weights h5', 'csv', 'config', 'scan cache'} <= set(found['by_loader'])


def test_the_watchdog_reports_every_broken_promise(tmp_path):
    for folder in ('scripts', 'tests'):
        (tmp_path / folder).mkdir()
    script = tmp_path / 'scripts' / 'fuzz.py'
    script.write_text(SCRIPT.read_text())
    (tmp_path / 'tests' / 'fuzz_targets.py').write_text(PLANTED)
    kept = tmp_path / 'kept'
    code, found = run(script, '--mutations=5', f'--seed={SEED}', f'--keep={kept}')
    assert code == 1
    assert found['by_loader'] == {'planted': 5}
    assert found['taken'] == {'planted': 1}
    with_inputs = {Path(fault['file']).read_bytes(): fault['fault'] for fault in found['faults']}
    assert with_inputs.pop(b'memory').startswith(('takes more than', 'took'))
    assert with_inputs == {
        b'slow': 'takes more than 5 s',
        b'crash': 'ends the process (exit code -6)',
        b'raises': 'KeyError: planted',
    }

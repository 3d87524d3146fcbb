"""bench_scaling.py, in its short mode."""

import json

from helpers import ROOT, run_script


def test_one_device_and_eight():
    arguments = ('--quick', '--ways=conv', '--sides=one,devices')
    done = run_script(ROOT / 'scripts/bench_scaling.py', *arguments, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found['ratios']['conv']['one'] == 1
    assert found['ratios']['conv']['devices'] > 0
    assert found['seconds']['conv'].keys() == {'one', 'devices'}

"""The load test in its shortest form: many clients, slow ones, and those that hang up."""

import json

from helpers import ROOT, run_script

SCRIPT = ROOT / 'scripts' / 'load_test.py'


def test_many_clients_at_once(workdir):
    flags = ('--clients=200', '--seconds=6', '--queue=32')
    done = run_script(SCRIPT, workdir, *flags, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found['statuses']) == {'200', '503'}
    assert found['statuses']['200'] > 200
    assert found['rss_growth_mib'] < 60
    assert 0 < found['p50_seconds'] <= found['p95_seconds'] < 60
    assert found['exit_code'] == 0
    assert 'Traceback' not in done.stderr

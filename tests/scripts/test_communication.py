"""What devices send each other in a step: what the script reads, and that it is next to nothing."""

import json
import sys

import pytest
from helpers import ROOT, run_script

SCRIPTS = ROOT / 'scripts'
BOUND = 1.05  # times the fewest bytes possible


def test_a_step_sends_what_it_must():
    done = run_script(SCRIPTS / 'communication.py', '--short', '--classes=100003', timeout=240)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    cases = found['cases']
    assert {'head', 'fine-tuning', 'split head', 'split linear head'} == set(cases)
    for name, case in cases.items():
        assert 1 <= case['ratio'] < BOUND, name
    assert found['worst_ratio'] == max(case['ratio'] for case in cases.values())
    for name in ('split head', 'split linear head'):
        assert cases[name]['memory'] < cases[name]['memory_whole'] / 7, name
        assert cases[name]['largest_gather'] == 64 * 512 * 4, name  # what the last layer reads
    assert cases['split head']['by_kind'].keys() == {
        'all-reduce', 'all-gather', 'reduce-scatter'
    }  # fmt: skip


@pytest.fixture
def communication(monkeypatch):
    """The script as a module; it sets the number of devices, which is put back."""
    for name in ('XLA_FLAGS', 'JAX_PLATFORMS'):
        monkeypatch.setenv(name, '')
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import communication

    yield communication
    sys.modules.pop('communication', None)


def test_bytes_of_a_program(communication):
    text = """
  %a = f32[64,256]{1,0} all-gather(%x), channel_id=1
  %b = (f32[64]{0}, /*index=1*/bf16[2,3]{1,0}) all-reduce(%y, %z), to_apply=%add
  %c = pred[64]{0} all-gather(%m), dimensions={0}
  %d = f32[8,64]{1,0} reduce-scatter(%g), dimensions={0}
  %e = f32[] all-reduce(%s)
  %f = f32[9]{0} add(%all-reduce.1, %b)
"""
    found = list(communication.collectives(text))
    assert found == [
        ('all-gather', 65536), ('all-reduce', 256 + 12), ('all-gather', 64),
        ('reduce-scatter', 2048), ('all-reduce', 4),
    ]  # fmt: skip
    assert communication.sent('all-reduce', 800) == 1400
    assert communication.sent('all-gather', 800) == 700
    assert communication.sent('reduce-scatter', 100) == 700
    assert communication.sent('collective-permute', 800) == 800

"""Interrupts that come where Python cannot raise them."""

import pytest
from helpers import run_new_python

CODE = """
import gc, signal, time
from tlflax.config import libraries
from tlflax.utils import interrupts

interrupts.raised()
libraries.set_up_logging()
waiting = ['one']

def callback(*_):
    if waiting:
        waiting.pop()
        signal.raise_signal(signal.{name})

gc.callbacks.append(callback)
try:
    gc.collect()
    time.sleep(20)
except KeyboardInterrupt:
    print('interrupted')
"""


@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM'])
def test_an_interrupt_during_a_collection_is_not_lost(name):
    done = run_new_python('-c', CODE.format(name=name))
    assert (done.stdout, done.stderr) == ('interrupted\n', '')


def test_other_exceptions_are_shown_as_ever():
    code = (
        'from tlflax.config import libraries\n'
        'libraries.set_up_logging()\n'
        'class Broken:\n'
        '    def __del__(self):\n'
        '        1 / 0\n'
        'Broken()\n'
    )
    assert 'ZeroDivisionError' in run_new_python('-c', code).stderr

"""Commands keep TensorFlow's notices to themselves, and nothing else."""

import os
import subprocess
import sys

from tlflax.config import tensorflow_notices


def test_only_notices_are_held_back(capfd):
    with tensorflow_notices.without_notices():
        os.write(2, b'I0000 port.cc:153] oneDNN custom operations are on.\na real error\n')
    os.write(2, b'after\n')
    assert capfd.readouterr().err == 'a real error\nafter\n'


def test_nothing_is_printed_where_a_command_loads_tensorflow():
    code = """
from tlflax.config import libraries
libraries.set_up_logging()
libraries.set_up_logging()
import tensorflow as tf
tf.constant(1) + 1
import tensorflow.io
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')

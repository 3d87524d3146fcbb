"""Where TensorFlow, which only reads images here, runs: on the CPU."""

import contextlib
import os
from collections.abc import Iterator

import tensorflow as tf


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """Runs the TensorFlow operations of the block on the CPU, without reserving GPU memory.

    With its first operation, TensorFlow reserves most of the memory of every GPU it sees, which JAX
    then lacks. If TensorFlow has not started yet, it will see no GPU in this process. If the caller
    has already used it, its devices stay as they are.
    """
    with contextlib.suppress(RuntimeError):  # TensorFlow has started
        tf.config.set_visible_devices([], 'GPU')
    with tf.device('CPU:0'):
        yield


def one_thread_an_operation() -> bool:
    """Whether TensorFlow has been told to share no operation among threads.

    Commands tell it; see `tlflax.config.libraries`.
    """
    return os.environ.get('TF_NUM_INTRAOP_THREADS') == '1'

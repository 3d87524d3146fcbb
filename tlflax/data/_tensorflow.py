"""Where TensorFlow, which only reads images here, runs: on the CPU."""

import contextlib
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

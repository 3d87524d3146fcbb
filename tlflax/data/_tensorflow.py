"""Imports TensorFlow once, quietly, and keeps it off the accelerators."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator

# Read while TensorFlow loads, and ours alone: other programs started from this one shall not
# inherit it.
_LEVEL = 'TF_CPP_MIN_LOG_LEVEL'
_NOTICES = b'oneDNN custom operations', b'absl::InitializeLog'  # of no use to the user
_STDERR = 2


@contextlib.contextmanager
def _without_notices() -> Iterator[None]:
    """Lets through all that is written to the standard error stream but TensorFlow's notices.

    No log level silences that it uses oneDNN, whose transposition is several times as fast.
    """
    try:
        stderr = os.dup(_STDERR)
    except OSError:  # there is none
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), _STDERR)
        try:
            yield
        finally:
            os.dup2(stderr, _STDERR)
            os.close(stderr)
            held.seek(0)
            for line in held:
                if not any(notice in line for notice in _NOTICES):
                    os.write(_STDERR, line)


_silent = _LEVEL not in os.environ
if _silent:
    os.environ[_LEVEL] = '3'
with _without_notices():
    import tensorflow as tf
if _silent:
    del os.environ[_LEVEL]
# Its warnings are about how graphs are traced, which concerns us, not the user.
logging.getLogger('tensorflow').setLevel(logging.ERROR)
tf.config.set_visible_devices([], 'GPU')

__all__ = ['tf']

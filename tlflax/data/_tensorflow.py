"""Imports TensorFlow once, quietly, and keeps it off the accelerators."""

import logging
import os

# Both are read while TensorFlow loads, and are ours alone: other programs started from this one
# shall not inherit them. Its convolutions, which the second concerns, are not used here.
_QUIET = {'TF_CPP_MIN_LOG_LEVEL': '3', 'TF_ENABLE_ONEDNN_OPTS': '0'}
_ADDED = _QUIET.keys() - os.environ.keys()
os.environ.update({name: _QUIET[name] for name in _ADDED})

import tensorflow as tf  # noqa: E402

for name in _ADDED:
    del os.environ[name]
# Its warnings are about how graphs are traced, which concerns us, not the user.
logging.getLogger('tensorflow').setLevel(logging.ERROR)
tf.config.set_visible_devices([], 'GPU')

__all__ = ['tf']

"""TensorFlow on the CPU, without its remarks."""

import contextlib
import logging
import warnings
from collections.abc import Iterator

from tlflax.data._tensorflow import on_cpu

_LOGGERS = (
    'tensorflow',
    'absl',
)  # the converter of TensorFlow Lite changes the level of the second


@contextlib.contextmanager
def quietly_on_cpu() -> Iterator[None]:
    """Runs the block on the CPU, without remarks on what is deprecated or has been written."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    logging.getLogger('tensorflow').setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), on_cpu():
            warnings.simplefilter('ignore')
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)

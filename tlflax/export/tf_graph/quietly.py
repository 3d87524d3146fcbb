"""TensorFlow on the CPU, without its remarks."""

import contextlib
import logging
import warnings
from collections.abc import Iterator

from tlflax.data._tensorflow import on_cpu


@contextlib.contextmanager
def quietly_on_cpu() -> Iterator[None]:
    """Runs the block on the CPU, without remarks on what is deprecated or has been written."""
    logger = logging.getLogger('tensorflow')
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), on_cpu():
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.setLevel(before)

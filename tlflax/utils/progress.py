"""The progress of long work: images per second and time left."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

import tqdm
from absl import logging

_PLAIN_SECONDS = 15.0  # between log lines


_hidden = False


def hide() -> None:
    """Shows no progress from now on in this process; for commands."""
    global _hidden
    _hidden = True


@contextlib.contextmanager
def progress(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows images per second and time left, as a bar on a terminal and as log lines elsewhere.

    Yields a function to call with the number of images that were completed since the last call.
    """
    if _hidden:
        yield lambda images: None
        return
    if sys.stderr.isatty():
        with tqdm.tqdm(total=total, desc=name, unit='img', leave=False) as bar:
            yield bar.update
        return
    began = last = time.perf_counter()
    done = 0

    def tick(images: int) -> None:
        nonlocal done, last
        done += images
        now = time.perf_counter()
        if now - last >= _PLAIN_SECONDS and done < total:
            last = now
            rate = done / (now - began)
            left = (total - done) / rate
            logging.info('%s: %d/%d images, %.1f/s, %.0f s left', name, done, total, rate, left)

    yield tick

"""Traces of the device and the host for some steps of a run, as `jax.profiler` writes them."""

import contextlib
import dataclasses
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import jax
from absl import logging

from tlflax.utils.errors import UserError, shown
from tlflax.utils.parallel.processes import is_primary

FOLDER = 'profile'


@dataclasses.dataclass(frozen=True)
class Profile:
    """The steps of a run that are traced.

    Attributes:
        first: The first one, counted from 0 over all epochs.
        last: The one after the last.
        folder: Where the trace is written.
    """

    first: int
    last: int
    folder: Path

    @classmethod
    def parse(cls, text: str, workdir: Path) -> 'Profile | None':
        """Returns what `config.train.profile` asks for; None: nothing.

        Raises:
            UserError: It is not FIRST:LAST.
        """
        if not text:
            return None
        numbers = text.split(':')
        if len(numbers) == 2 and all(_is_step(one) for one in numbers):
            first, last = map(int, numbers)
            if first < last:
                return cls(first, last, workdir / FOLDER)
        raise UserError(
            f'{shown(text)} names no steps',
            where='config.train.profile',
            fix="give the first step and the one after the last, such as '10:20'",
        )

    def parts(self, start: int, end: int) -> list[tuple[int, bool]]:
        """Returns the lengths of the parts of some steps, and whether each is traced.

        Args:
            start: The first step.
            end: The step after the last.
        """
        edges = [start, *sorted(min(max(one, start), end) for one in (self.first, self.last)), end]
        return [(b - a, self.first <= a < self.last) for a, b in pairwise(edges) if b > a]

    def check_reached(self, steps: int) -> None:
        """Warns where a run has ended before the first step that is to be traced.

        Args:
            steps: How many the run had.
        """
        if steps <= self.first:
            logging.warning(
                'WARNING: nothing was traced: config.train.profile begins with step %d, and the '
                'last one was %d',
                *(self.first, steps - 1),
            )

    @contextlib.contextmanager
    def traced(self) -> Iterator[None]:
        """Traces the block, and says where the trace is; of several processes, the primary one."""
        if not is_primary():
            yield
            return
        with jax.profiler.trace(str(self.folder)):
            yield
        logging.info('the trace of steps %d to %d is in %s', self.first, self.last - 1, self.folder)


def _is_step(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20

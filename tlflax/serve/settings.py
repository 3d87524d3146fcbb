"""What a service is told: its limits."""

import dataclasses
import math
from typing import Self

from tlflax.utils.errors import UserError, printable

_MOST = 1_000_000_000  # of any whole number here


@dataclasses.dataclass(frozen=True)
class Settings:
    """Limits of a service.

    Attributes:
        max_bytes: Of an image file.
        queue: Images that wait; more are answered with 503.
        timeout: Seconds that an image file may take to arrive.
        calibrated: Apply the temperature that fits the validation images.
        connections: Open at once; more are closed.
        head_timeout: Seconds that the first lines of a request may take to arrive.
        grace: Seconds in which a service that stops answers what is in flight.
    """

    max_bytes: int = 20_000_000
    queue: int = 64
    timeout: float = 30.0
    calibrated: bool = False
    connections: int = 512
    head_timeout: float = 10.0
    grace: float = 10.0

    @property
    def buffered(self) -> int:
        """Bytes of all image files together, arriving or waiting; more are answered with 503."""
        return max(256_000_000, 2 * self.max_bytes)

    @classmethod
    def parse(cls, max_bytes: str, queue: str, timeout: str, calibrated: bool) -> Self:
        """Returns the settings that a command line asks for.

        Raises:
            UserError: One is not a number, or out of its range.
        """
        seconds = _number(timeout)
        if not 0 < seconds <= 3600:  # NaN too
            what = f'{printable(timeout)!r} is not a number of seconds up to 3600'
            raise UserError(what, where='--timeout', fix='give 30, for example')
        return cls(
            max_bytes=whole_number(max_bytes, '--max_bytes', first=1, most=_MOST),
            queue=whole_number(queue, '--queue', first=1, most=100_000),
            timeout=seconds,
            calibrated=calibrated,
        )


def whole_number(text: str, where: str, *, first: int, most: int) -> int:
    """Returns a whole number from a command line.

    Raises:
        UserError: It is none, or not in `first`..`most`.
    """
    digits = text.isascii() and text.isdecimal() and len(text) < 20
    number = int(text) if digits else first - 1
    if not first <= number <= most:
        what = f'{printable(text)!r} is not a whole number in {first}..{most}'
        raise UserError(what, where=where, fix='give another')
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan

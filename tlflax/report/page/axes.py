"""Linear axes of charts: where a value stands, and round numbers beside it."""

import dataclasses
import math
from collections.abc import Sequence

from markupsafe import escape

_MOST_TICKS = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axes:
    """The area of a chart, and the values at its ends.

    Attributes:
        x: The values at the left and at the right end.
        y: The values at the lower and at the upper end.
        width: Of the chart in units of its `viewBox`.
        height: The same.
        left: Margin.
        right: Margin.
        top: Margin.
        bottom: Margin.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    width: int = 440
    height: int = 270
    left: int = 56
    right: int = 24
    top: int = 30
    bottom: int = 44

    def across(self, value: float) -> float:
        """Returns the horizontal position of a value."""
        share = (value - self.x[0]) / (self.x[1] - self.x[0])
        return self.left + share * (self.width - self.left - self.right)

    def up(self, value: float) -> float:
        """Returns the vertical position of a value."""
        share = (value - self.y[0]) / (self.y[1] - self.y[0])
        return self.height - self.bottom - share * (self.height - self.top - self.bottom)

    def draw(self, titles: tuple[str, str], *, whole: bool = False, shares: bool = False) -> str:
        """Returns both axes with their titles and numbers, and a grid.

        Args:
            titles: Of the horizontal and of the vertical axis; may be empty.
            whole: Whether the horizontal axis has whole numbers only.
            shares: Whether the vertical axis shows percent.
        """
        low, high, left = self.height - self.bottom, self.top, self.left
        parts = [line(left, low, self.width - self.right, low, 'axis')]
        for value in ticks(*self.x, whole=whole):
            parts.append(line(self.across(value), low, self.across(value), low + 4, 'axis'))
            parts.append(text(self.across(value), low + 17, f'{value:.6g}', 'tick-x'))
        for value in ticks(*self.y):
            shown = f'{100 * value:.6g} %' if shares else f'{value:.6g}'
            parts.append(line(left, self.up(value), self.width - self.right, self.up(value)))
            parts.append(text(left - 7, self.up(value) + 4, shown, 'tick-y'))
        parts.append(text((left + self.width - self.right) / 2, self.height - 6, titles[0], 'name'))
        if titles[1]:
            parts.append(text(0, high - 14, titles[1], 'title'))
        return ''.join(parts)


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Returns at most seven round numbers from `low` to `high`, whole ones if asked for."""
    raw = (high - low) / _MOST_TICKS
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * n for n in (1, 2, 2.5, 5, 10) if unit * n >= raw * 0.999)
    if whole:
        step = float(max(1, math.ceil(step)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(step * n, 12) for n in range(first, last + 1)]


def ends(values: Sequence[float], *, within: tuple[float, float] | None = None) -> tuple:
    """Returns ends of an axis with some room around finite values.

    Args:
        values: At least one.
        within: Values that the ends do not go beyond, as far as those that are shown do not.
    """
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    low, high = low - room, high + room
    if within is not None:
        low, high = max(low, min(within[0], *values)), min(high, max(within[1], *values))
    return (low, high) if low < high else (low - room, high + room)


def line(x1: float, y1: float, x2: float, y2: float, name: str = 'grid') -> str:
    """Returns a straight line of a class of the style sheet."""
    return f'<line class="{name}" x1="{x1:.2f}" y1="{y1:.2f}" x2="{x2:.2f}" y2="{y2:.2f}"/>'


def text(x: float, y: float, words: str, name: str) -> str:
    """Returns a text of a class of the style sheet."""
    return f'<text class="{name}" x="{x:.2f}" y="{y:.2f}">{escape(words)}</text>'


def picture(width: float, height: float, parts: Sequence[str], title: str) -> str:
    """Returns a chart of parts, with the sentence that stands for it where it is not seen."""
    return (
        f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )

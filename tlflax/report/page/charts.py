"""Charts as SVG that is part of a page: colors and fonts come from its style sheet."""

import dataclasses
from collections.abc import Sequence

from markupsafe import Markup, escape

from tlflax.report.page.axes import Axes, ends, line, picture, text, ticks
from tlflax.report.page.contents import Bin
from tlflax.report.page.numbers import between, is_number, number, percent

COLORS = 8
"""Colors of the style sheet: classes c0 to c7."""

_DOTS = 60  # points: a line of more has no dots
_ROW = 30  # height of a row of intervals
_NAME = 18  # characters of a name beside a row

Interval = Sequence[float] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a chart.

    Attributes:
        name: What it shows.
        style: Classes of the style sheet.
        x: Horizontal values.
        y: Vertical values; None and NaN are gaps.
        chosen: The horizontal value of a point that is emphasized, or None.
    """

    name: str
    style: str
    x: Sequence[float]
    y: Sequence[float | None]
    chosen: float | None = None


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    axes: tuple[str, str],
    shares: bool = False,
    mark: tuple[float, str] | None = None,
) -> Markup:
    """Returns a chart of lines over whole numbers.

    Args:
        lines: Of which at least one has a finite value.
        title: A sentence that stands for the chart.
        axes: The names of the axes.
        shares: Whether the values are shares, which are shown in percent.
        mark: A horizontal value that a vertical line marks, and its name.
    """
    across = [x for each in lines for x in each.x]
    values = [float(y) for each in lines for y in each.y if y is not None and is_number(y)]
    low, high = min(across), max(across)
    area = Axes(
        x=(low, high) if low < high else (low - 0.5, high + 0.5),
        y=ends(values, within=(0.0, 1.0) if shares else (0.0, float('inf'))),
    )
    parts = [area.draw(axes, whole=True, shares=shares)]
    if mark is not None:
        at, right = area.across(mark[0]), mark[0] > (low + high) / 2
        parts.append(line(at, area.top, at, area.height - area.bottom, 'mark'))
        where = 'mark-name end' if right else 'mark-name'
        parts.append(text(at, area.top - 8, mark[1], where))
    parts += [_line(area, each, shares) for each in lines]
    return Markup(picture(area.width, area.height, parts, title))


def _line(area: Axes, each: Line, shares: bool) -> str:
    """Returns the parts of a line between gaps, and its dots."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(each.x, each.y, strict=True):
        if y is not None and is_number(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    parts = [f'<g class="{each.style}">']
    dots = len(each.x) <= _DOTS
    for run in filter(None, runs):
        at = ' '.join(f'{area.across(x):.2f},{area.up(y):.2f}' for x, y in run)
        parts.append(f'<polyline class="line" points="{at}"/>')
        for x, y in run:
            chosen = x == each.chosen
            if dots or chosen or len(run) == 1:
                shown = percent(y) if shares else number(y)
                about = escape(f'{each.name}, epoch {x:g}: {shown}')
                center = f'cx="{area.across(x):.2f}" cy="{area.up(y):.2f}"'
                name, radius = ('chosen', 5) if chosen else ('dot', 2.4)
                parts.append(f'<circle class="{name}" {center} r="{radius}">')
                parts.append(f'<title>{about}</title></circle>')
    return ''.join([*parts, '</g>'])


def reliability(bins: Sequence[Bin], title: str) -> Markup:
    """Returns the reliability diagram, with the number of images of each bin below it.

    Args:
        bins: At least one has images.
        title: A sentence that stands for the chart.
    """
    area = Axes(x=(0, 1), y=(0, 1), height=390, bottom=120)
    parts = [area.draw(('', 'Right predictions'), shares=True)]
    parts.append(line(area.across(0), area.up(0), area.across(1), area.up(1), 'ideal'))
    floor, most = area.height - 32.0, max(each.count for each in bins)
    for each in (b for b in bins if b.count):
        left, right = area.across(each.low), area.across(each.high)
        tall = 40 * each.count / most
        parts.append(
            f'<rect class="count" x="{left + 1:.2f}" y="{floor - tall:.2f}" '
            f'width="{right - left - 2:.2f}" height="{tall:.2f}">'
            f'<title>{escape(_bin(each))}</title></rect>'
        )
        if not (is_number(each.confidence) and is_number(each.accuracy)):
            continue
        x = area.across(each.confidence)
        if each.interval is not None and between(each.interval):
            low, high = map(area.up, each.interval)
            parts += [line(x, low, x, high, 'range c0'), line(x - 4, low, x + 4, low, 'range c0')]
            parts.append(line(x - 4, high, x + 4, high, 'range c0'))
        parts.append(
            f'<circle class="dot c0" cx="{x:.2f}" cy="{area.up(each.accuracy):.2f}" r="4.5">'
            f'<title>{escape(_bin(each))}</title></circle>'
        )
    parts.append(line(area.across(0), floor, area.across(1), floor, 'axis'))
    parts.append(text(area.left - 7, floor - 32, f'{most:,}', 'tick-y'))
    parts.append(text(area.left - 7, floor, '0', 'tick-y'))
    middle = (area.across(0) + area.across(1)) / 2
    parts.append(text(0, floor - 52, 'Images', 'title'))
    parts.append(text(middle, floor + 24, 'Probability of the predicted class', 'name'))
    return Markup(picture(area.width, area.height, parts, title))


def _bin(each: Bin) -> str:
    return (
        f'{each.low:.2f} to {each.high:.2f}: {each.count:,} images, mean probability '
        f'{percent(each.confidence)}, right {percent(each.accuracy)}'
    )


def interval_chart(
    rows: Sequence[tuple[str, float | None, Interval]],
    *,
    title: str,
    axis: str,
    shares: bool = False,
) -> Markup:
    """Returns a row for each value, with its interval.

    Args:
        rows: Name, value and interval; at least one value is finite.
        title: A sentence that stands for the chart.
        axis: The name of the axis.
        shares: Whether the values are shares.
    """
    known = [v for _, value, within in rows for v in (value, *(within or ())) if is_number(v)]
    low, high = ends([float(v) for v in known if v is not None])
    if shares:
        low, high = max(0.0, low), min(1.0, high)
    height = _ROW * len(rows) + 58
    area = Axes(x=(low, high), y=(0, 1), left=160, top=8, bottom=50, height=height)
    floor = height - area.bottom
    parts = [line(area.left, floor, area.width - area.right, floor, 'axis')]
    for value in _few(low, high):
        at, shown = area.across(value), f'{100 * value:.6g} %' if shares else f'{value:.6g}'
        parts += [line(at, area.top, at, floor), text(at, floor + 17, shown, 'tick-x')]
    parts.append(text((area.left + area.width - area.right) / 2, height - 8, axis, 'name'))
    for place, (name, mean, within) in enumerate(rows):
        y = area.top + _ROW * (place + 0.5)
        short = name if len(name) <= _NAME else f'…{name[1 - _NAME :]}'
        parts.append(f'<g class="c{place % COLORS}">')
        parts.append(text(area.left - 10, y + 4, short, 'row'))
        about = f'{name}: {percent(mean) if shares else number(mean)}'
        about += f' ({between(within, share=shares)})' if within else ''
        parts.append(f'<title>{escape(about)}</title>')
        if within is not None and between(within):
            parts.append(line(area.across(within[0]), y, area.across(within[1]), y, 'range'))
        if mean is not None and is_number(mean):
            parts.append(f'<circle class="dot" cx="{area.across(mean):.2f}" cy="{y:.2f}" r="5"/>')
        parts.append('</g>')
    return Markup(picture(area.width, height, parts, title))


def _few(low: float, high: float) -> list[float]:
    """Returns round numbers that a narrow axis has room for."""
    found = ticks(low, high)
    return found[:: 2 if len(found) > 4 else 1]


def interval_bar(value: object, interval: object) -> Markup:
    """Returns a small bar from 0 to 1 with a share and its interval, for a cell of a table."""
    if not is_number(value):
        return Markup('')
    parts = [line(2, 7, 98, 7, 'track')]
    if isinstance(interval, list | tuple) and between(interval):
        low, high = (2 + 96 * float(end) for end in interval)
        parts.append(line(low, 7, high, 7, 'range c0'))
    at = 2 + 96 * float(value)  # type: ignore[arg-type]
    parts.append(f'<circle class="dot c0" cx="{at:.2f}" cy="7" r="3.5"/>')
    return Markup(
        '<svg class="bar" viewBox="0 0 100 14" width="100" height="14" aria-hidden="true">'
        f'{"".join(parts)}</svg>'
    )

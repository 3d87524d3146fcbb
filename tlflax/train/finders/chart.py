"""A line chart with a logarithmic axis as SVG, readable on light and dark pages."""

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

import numpy as np
from jaxtyping import Float

_WIDTH, _HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 50, 60  # margins
_TICKS = 5  # of the vertical axis, about

Values = Float[np.ndarray, ' n']


def log_chart(
    x: Values,
    lines: Sequence[tuple[str, Values]],
    *,
    title: str,
    axes: tuple[str, str],
    mark: float | None = None,
) -> str:
    """Returns an SVG document; text and axes have the color of the page's text.

    Args:
        x: Positive numbers, ascending.
        lines: The name of each line and its values; the first is drawn faintly.
        title: Above the chart.
        axes: The names of the horizontal and the vertical axis.
        mark: Where on the horizontal axis a marker stands; None: nowhere.
    """
    top = _ceiling(lines)
    low, high = min(0.0, min(float(values.min()) for _, values in lines)), top
    ends = math.log10(x[0]), math.log10(x[-1])

    def across(value: float) -> float:
        share = (math.log10(value) - ends[0]) / max(ends[1] - ends[0], 1e-9)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def up(value: float) -> float:
        share = (min(value, high) - low) / max(high - low, 1e-9)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_text(_WIDTH / 2, 28, title, 'font-size="17" text-anchor="middle"')]
    parts += _frame(axes)
    for power in range(math.ceil(ends[0] - 1e-9), math.floor(ends[1] + 1e-9) + 1):
        at = across(10.0**power)
        parts.append(_line(at, _HEIGHT - _BOTTOM, at, _HEIGHT - _BOTTOM + 5))
        parts.append(_text(at, _HEIGHT - _BOTTOM + 20, f'1e{power}', 'text-anchor="middle"'))
    for value in _ticks(low, high):
        parts.append(_line(_LEFT - 5, up(value), _LEFT, up(value)))
        parts.append(_text(_LEFT - 9, up(value) + 4, f'{value:g}', 'text-anchor="end"'))
    for number, (name, values) in enumerate(lines):
        points = ' '.join(
            f'{across(float(a)):.1f},{up(float(b)):.1f}' for a, b in zip(x, values, strict=True)
        )
        style = 'stroke-width="1" opacity="0.35"' if number == 0 else 'stroke-width="2.5"'
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="currentColor" {style}>'
            f'<title>{escape(name)}</title></polyline>'
        )
    if mark is not None:
        at = across(mark)
        parts.append(_line(at, _TOP, at, _HEIGHT - _BOTTOM, 'stroke-dasharray="6 4"'))
        parts.append(_text(at + 6, _TOP + 12, f'{mark:.2g}', 'font-weight="bold"'))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" font-size="13">\n'
        '<style>:root{color:#222}@media(prefers-color-scheme:dark){:root{color:#ddd}}</style>\n'
        f'<title>{escape(title)}</title>\n' + '\n'.join(parts) + '\n</svg>\n'
    )


def _ceiling(lines: Sequence[tuple[str, Values]]) -> float:
    """Returns the upper end of the vertical axis: what diverges must not flatten the rest."""
    values = lines[-1][1]
    return float(min(values.max(), 2 * values[0] if values[0] > 0 else values.max())) or 1.0


def _ticks(low: float, high: float) -> list[float]:
    """Returns round numbers from `low` to `high`."""
    raw = (high - low) / _TICKS
    unit = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
    step = next(unit * n for n in (1, 2, 5, 10) if unit * n >= raw * 0.999)
    return [step * n for n in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def _frame(axes: tuple[str, str]) -> list[str]:
    middle = (_HEIGHT + _TOP - _BOTTOM) / 2
    turned = f'text-anchor="middle" transform="rotate(-90 18 {middle})"'
    return [
        _line(_LEFT, _HEIGHT - _BOTTOM, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM),
        _line(_LEFT, _TOP, _LEFT, _HEIGHT - _BOTTOM),
        _text((_WIDTH + _LEFT - _RIGHT) / 2, _HEIGHT - 14, axes[0], 'text-anchor="middle"'),
        _text(18, middle, axes[1], turned),
    ]


def _line(x1: float, y1: float, x2: float, y2: float, style: str = '') -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="currentColor" {style}/>'


def _text(x: float, y: float, text: str, style: str = '') -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="currentColor" {style}>{escape(text)}</text>'

"""Numbers as a page shows them."""

import json

MISSING = '–'
"""Stands for what is not known."""

_LARGEST = 1e100  # beyond, sums and squares of numbers are not finite any more


def is_number(value: object) -> bool:
    """Returns whether a value is a finite number, of a magnitude that a page has room for."""
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return known and abs(value) <= _LARGEST  # type: ignore[arg-type]


def percent(value: object, unit: str = ' %') -> str:
    """Formats a share as '93.1 %'; it is 0 or 100 % only where it is exactly so."""
    if not is_number(value):
        return MISSING
    text = f'{100 * float(value):.1f}'  # type: ignore[arg-type]
    if text == '100.0' and value != 1:
        text = '> 99.9'
    if text == '0.0' and value != 0:
        text = '< 0.1'
    return f'{text}{unit}'


def number(value: object) -> str:
    """Formats a number with four digits after the point, a whole one with none."""
    if not is_number(value):
        return MISSING
    if isinstance(value, int) or value == 0:
        return f'{value or 0:,.0f}'  # -0.0 is 0
    small = 0 < abs(value) < 5e-4  # type: ignore[arg-type]
    return f'{value:.2e}' if small else f'{value:,.4f}'


def between(interval: object, *, share: bool = False, unit: str = ' %') -> str:
    """Formats the ends of an interval as 'a to b'; empty where it is not known."""
    if not isinstance(interval, list | tuple) or not all(map(is_number, interval)):
        return ''
    low, high = interval
    if share:
        return f'{100 * low:.1f} to {100 * high:.1f}{unit}'
    return f'{number(low)} to {number(high)}'


def duration(seconds: object) -> str:
    """Formats seconds as '27.8 s', '4 min 12 s' or '2 h 5 min'."""
    if not is_number(seconds):
        return MISSING
    whole = round(float(seconds))  # type: ignore[arg-type]
    if whole < 60:
        return f'{seconds:.3g} s'
    minutes, rest = divmod(whole, 60)
    return f'{minutes} min {rest} s' if minutes < 60 else f'{minutes // 60} h {minutes % 60} min'


def memory(size: object) -> str:
    """Formats bytes as '1.42 GB'."""
    return f'{size / 1e9:,.2f} GB' if is_number(size) else MISSING  # type: ignore[operator]


def any_value(value: object) -> str:
    """Formats a value of a configuration or of a table whose columns are not known."""
    if value is None:
        return MISSING
    if isinstance(value, float):
        return f'{value:.4g}'
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

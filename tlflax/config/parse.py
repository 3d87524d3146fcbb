"""From raw values to a checked configuration.

A config file is a short Python module whose `get_config()` changes what differs from
`default_config()`; `resolve` turns the outcome into the frozen dataclasses of
`tlflax.config.schema`, which the rest of the program passes around as plain values.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections

from tlflax.config.schema import Config
from tlflax.utils.errors import UserError, did_you_mean


def default_config() -> ml_collections.ConfigDict:
    """Returns every key with its default, locked against unknown keys."""
    config = ml_collections.ConfigDict(to_dict(Config()), type_safe=False)  # `resolve` checks
    config.lock()
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """Turns the dataclasses into nested plain dicts (tuples stay tuples)."""
    return dataclasses.asdict(config)


def resolve(raw: Mapping[str, Any] | ml_collections.ConfigDict) -> Config:
    """Checks a raw configuration and returns it as frozen dataclasses.

    Args:
        raw: A ConfigDict, or nested dicts as in `config.json`; missing keys take their defaults.

    Raises:
        UserError: An unknown key, a wrong type or a value out of range, named by its full key.
    """
    if isinstance(raw, ml_collections.ConfigDict):
        raw = raw.to_dict()
    return _build(Config, raw, prefix='')


def _build(cls: type, raw: Mapping[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    values = {}
    for name, value in raw.items():
        key = f'config.{prefix}{name}'
        if name not in fields:
            raise UserError('no such key', where=key, fix=did_you_mean(name, fields))
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, Mapping):
                raise UserError(f'holds keys, not {value!r}', where=key, fix='set its keys')
            values[name] = _build(typing.cast(type, hints[name]), value, f'{prefix}{name}.')
        else:
            values[name] = _check(key, _cast(key, hints[name], value), fields[name].metadata)
    return cls(**values)


def _cast(key: str, hint: Any, value: Any) -> Any:
    """Returns `value` as the annotated type; ints pass as floats and lists as tuples."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and value is None:  # how config.json spells NaN
        return math.nan
    if origin is tuple and isinstance(value, list | tuple):
        if args[-1] is Ellipsis:
            args = args[:1] * len(value)
        if len(args) == len(value):
            return tuple(_cast(key, arg, item) for arg, item in zip(args, value, strict=True))
    elif hint is str and isinstance(value, bool):  # features.cache=False, as a flag spells it
        return str(value)
    elif not isinstance(hint, types.GenericAlias) and type(value) is hint:
        return value
    wanted = hint.__name__ if origin is None else str(hint)
    raise UserError(f'{value!r} is a {type(value).__name__}', where=key, fix=f'give it as {wanted}')


def _check(key: str, value: Any, rule: Mapping[str, Any]) -> Any:
    if rule['choices'] and value not in rule['choices']:
        hint = did_you_mean(str(value), map(str, rule['choices']))
        raise UserError(f'{value!r} is not one of its values', where=key, fix=hint)
    numbers = value if isinstance(value, tuple) else (value,)
    low, high = rule['at_least'], rule['at_most']
    if low is not None and not all(number >= low for number in numbers):
        raise UserError(f'{value!r} is too small', where=key, fix=f'at least {low}')
    if high is not None and not all(number <= high for number in numbers):
        raise UserError(f'{value!r} is too large', where=key, fix=f'at most {high}')
    return value

"""From raw values to a checked configuration.

A config file is a short Python module whose `get_config()` changes what differs from
`default_config()`; `resolve` turns the outcome into the frozen dataclasses of
`tlflax.config.schema`, which the rest of the program passes around as plain values.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import ml_collections

from tlflax.config.schema import Config, Key, Phase
from tlflax.utils.errors import UserError, did_you_mean, printable, shown

T = TypeVar('T')

_LARGEST = 2**63 - 1  # integer that arrays and JSON hold
_UNIONS = (typing.Union, types.UnionType)


RELEASED: dict[tuple[str, str], Any] = {
    ('optim', 'decayed'): ('.*',),
    ('optim', 'statistics'): 'updated',
}
"""Section and key to the value that a saved configuration without the key stands for."""


def default_config() -> ml_collections.ConfigDict:
    """Returns every key with its default, locked against unknown keys."""
    return locked(Config())


def locked(config: Config) -> ml_collections.ConfigDict:
    """Returns a configuration that can be changed but for its keys."""
    changeable = ml_collections.ConfigDict(to_dict(config), type_safe=False)  # `resolve` checks
    changeable.lock()
    return changeable


def to_dict(config: Config) -> dict[str, Any]:
    """Returns the configuration as nested plain dicts; tuples stay tuples."""
    return dataclasses.asdict(config)


def resolve(raw: object) -> Config:
    """Checks a raw configuration and returns it as frozen dataclasses.

    Args:
        raw: A ConfigDict, or nested dicts as in `config.json`; missing keys take their defaults.

    Raises:
        UserError: An unknown key, a wrong type or a value out of range, named by its full key.
    """
    if isinstance(raw, ml_collections.ConfigDict):
        raw = raw.to_dict()
    if not isinstance(raw, Mapping):
        raise UserError(f'holds keys, not {shown(raw)}', where='config', fix='set its keys')
    return _build(Config, raw, prefix='')


def filled(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a saved configuration with the keys that its version did not have yet."""
    whole = dict(saved)
    for (section, key), value in RELEASED.items():
        if isinstance(own := whole.get(section, {}), Mapping):
            whole[section] = {key: value, **own}
    return whole


def continued(config: Config, saved: Mapping[str, Any]) -> Config:
    """Returns the configuration with which a run of a released version goes on.

    Args:
        config: What is asked for.
        saved: What the run was started with.

    Returns:
        `config`, which has the behavior of that version where it leaves the default.
    """
    for (section, key), value in RELEASED.items():
        own, default = getattr(config, section), getattr(getattr(Config(), section), key)
        there = saved.get(section)
        missing = not isinstance(there, Mapping) or key not in there
        if missing and getattr(own, key) == default:
            new = dataclasses.replace(own, **{key: value})
            config = dataclasses.replace(config, **{section: new})
    return config


def takes_words(key: str) -> bool:
    """Returns whether a key that exists, such as 'data.fold', takes numbers and words."""
    hint: Any = Config
    for part in key.split('.'):
        hint = typing.get_type_hints(hint)[part]
    return typing.get_origin(hint) in _UNIONS


def _build(cls: type[T], raw: Mapping[Any, object], prefix: str) -> T:
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = {}
    for name, value in raw.items():
        if not isinstance(name, str):
            raise UserError(f'{shown(name)} is not a key', where='config', fix='keys are texts')
        key = f'config.{prefix}{printable(name)}'
        if name not in fields:
            raise UserError('no such key', where=key, fix=did_you_mean(name, fields))
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, Mapping):
                raise UserError(f'holds keys, not {shown(value)}', where=key, fix='set its keys')
            values[name] = _build(hints[name], value, f'{prefix}{name}.')
        else:
            values[name] = _cast(key, hints[name], value)
            _check(key, values[name], fields[name].metadata['key'])
    return cls(**values)


def _cast(key: str, hint: Any, value: object) -> object:
    """Returns a value as the annotated type; ints pass as floats and lists as tuples."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in _UNIONS:
        return _number_or_word(key, typing.get_args(args[1]), value)
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise UserError(f'{shown(value)} is too large', where=key, fix=f'give at most {_LARGEST}')
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and value is None:  # NaN in config.json
        return math.nan
    if hint == Phase:
        return _phase(key, value)
    if origin is tuple and isinstance(value, list | tuple):
        if args[-1] is Ellipsis:
            args = args[:1] * len(value)
        if len(args) == len(value):
            return tuple(_cast(key, arg, item) for arg, item in zip(args, value, strict=True))
    elif hint is str and isinstance(value, bool):  # features.cache=False, as a flag gives it
        return str(value)
    elif not isinstance(hint, types.GenericAlias) and type(value) is hint:
        return value
    wanted = hint.__name__ if origin is None else str(hint)
    raise UserError(
        f'{shown(value)} is a {type(value).__name__}', where=key, fix=f'give it as {wanted}'
    )


def _phase(key: str, value: object) -> Phase:
    """Returns the keys of a phase and their values, which are checked with those of all phases."""
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, list | tuple) or not all(_is_pair(pair) for pair in pairs):
        raise UserError(
            f'{shown(value)} is not a phase',
            where=key,
            fix="give {key: value}, such as {'train.epochs': 5}",
        )
    return tuple((name, _frozen(item)) for name, item in pairs)


def _is_pair(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[0], str)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _number_or_word(key: str, words: tuple[str, ...], value: object) -> object:
    """Returns one of `words` or a whole number; the command line gives both as text."""
    if not isinstance(value, str):
        return _cast(key, int, value)
    if value in words:
        return value
    try:
        return _cast(key, int, int(value))
    except ValueError:
        fix = ' or '.join(['give a whole number', *map(repr, words)])
        raise UserError(f'{shown(value)} is not a number', where=key, fix=fix) from None


def _check(key: str, value: object, rule: Key) -> None:
    """Checks a value, or each item of a tuple, against the choices and limits of its key."""
    for item in value if isinstance(value, tuple) else (value,):
        if rule.choices and item not in rule.choices:
            hint = did_you_mean(str(item), rule.choices)
            raise UserError(f'{shown(item)} is not one of its values', where=key, fix=hint)
    numbers = list(_numbers(value))
    limited = rule.at_least is not None or rule.at_most is not None
    if limited and any(math.isnan(number) for number in numbers):
        raise UserError(f'{shown(value)} is not a number', where=key, fix='give finite numbers')
    if rule.at_least is not None and not all(number >= rule.at_least for number in numbers):
        raise UserError(
            f'{shown(value)} is too small', where=key, fix=f'give at least {rule.at_least}'
        )
    if rule.at_most is not None and not all(number <= rule.at_most for number in numbers):
        raise UserError(
            f'{shown(value)} is too large', where=key, fix=f'give at most {rule.at_most}'
        )


def _numbers(value: object) -> Iterator[int | float]:
    if isinstance(value, tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float):
        yield value

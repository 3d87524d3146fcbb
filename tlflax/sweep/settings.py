"""The settings of a sweep: what each head changes in a configuration."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tlflax.config.parse import to_dict
from tlflax.config.schema import Config, LossConfig, OptimConfig
from tlflax.utils import python_file
from tlflax.utils.errors import UserError

Setting = dict[str, Any]
"""Configuration key to value."""

SWEPT = (
    'train.seed',
    'train.label_smoothing',
    'model.head',
    'model.units',
    'model.dropout',
    *(f'loss.{field.name}' for field in dataclasses.fields(LossConfig)),
    *(f'optim.{field.name}' for field in dataclasses.fields(OptimConfig)),
)
"""The configuration keys that settings may change: all share features, batches and stopping."""


def grid(**values: Sequence[Any]) -> list[Setting]:
    """Returns every combination of values of some configuration keys.

    Example: `grid(**{'optim.learning_rate': [1e-3, 1e-4], 'train.seed': [0, 1, 2]})`.
    """
    return [
        dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())
    ]


def read_settings(path: Path) -> list[Setting]:
    """Returns what `get_sweep()` of a Python file returns.

    Raises:
        UserError: The file is missing, fails, or does not return a list of dicts.
    """
    if not path.is_file():
        raise UserError('the sweep file does not exist', where=str(path), fix='give a .py file')
    with python_file.explaining(str(path)):
        function = getattr(python_file.run(path)[0], 'get_sweep', None)
        if not callable(function):
            raise UserError(
                'it has no get_sweep()',
                where=str(path),
                fix='define get_sweep(), which returns a list of {config key: value}',
            )
        settings = list(function())
    if not settings or not all(isinstance(setting, dict) for setting in settings):
        raise UserError(
            'get_sweep() does not return a list of settings',
            where=str(path),
            fix='return a list of {config key: value}, such as '
            "[{'optim.learning_rate': 1e-3}, {'optim.learning_rate': 1e-4}]",
        )
    return settings


def resolve_settings(config: Config, settings: Sequence[Setting], where: str) -> list[Config]:
    """Returns the complete configuration of each setting.

    Args:
        config: The configuration that the settings change.
        settings: What each changes, keyed as in `SWEPT`.
        where: The file they came from, for messages.

    Raises:
        UserError: A key cannot be swept, or a value is not allowed.
    """
    from tlflax.train.setup import configure  # takes a second to import

    if config.train.phases:
        raise UserError(
            'heads of a sweep are trained in one phase',
            where='config.train.phases',
            fix='leave them out, and sweep the keys of one of them',
        )
    configs = []
    for number, setting in enumerate(settings, start=1):
        raw = to_dict(config)
        for key, value in setting.items():
            if key not in SWEPT:
                raise UserError(
                    f'{key!r} cannot be swept: all heads share data, features and batches',
                    where=f'{where}, setting {number}',
                    fix=f'sweep {", ".join(SWEPT)}, and run a sweep for each value of other keys',
                )
            section, name = key.split('.')
            raw[section][name] = value
        resolved = configure(raw)
        if config.weights.source == 'random' and resolved.train.seed != config.train.seed:
            raise UserError(
                'the seed decides a random backbone, and all heads share one',
                where=f'{where}, setting {number}, train.seed',
                fix='name a file in config.weights.source',
            )
        configs.append(resolved)
    return configs

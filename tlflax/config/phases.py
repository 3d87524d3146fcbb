"""The phases of a training: each changes some keys of the configuration.

A phase is written as {'optim.labels': ..., 'train.epochs': ...}; what it does not name is as in the
rest of the configuration.
"""

import dataclasses

from tlflax.config.parse import resolve, to_dict
from tlflax.config.schema import Config, OptimConfig
from tlflax.utils.errors import UserError, did_you_mean

CHANGEABLE = (
    *(f'optim.{field.name}' for field in dataclasses.fields(OptimConfig)),
    'train.epochs',
    'early_stopping.min_delta',
    'early_stopping.patience',
    'early_stopping.patience_steps',
    'early_stopping.min_steps',
    'early_stopping.baseline',
    'early_stopping.start_from_epoch',
)
"""The keys that a phase may change; all phases share images, model, loss and what is monitored."""

_MAY = f'it may change keys of optim, and {", ".join(k for k in CHANGEABLE if k[:5] != "optim")}'


def expand(config: Config) -> tuple[Config, ...]:
    """Returns the configuration of each phase; without `train.phases`, `config` is the only one.

    Raises:
        UserError: A phase names a key that it may not change, or a value that is not allowed.
    """
    if not config.train.phases:
        return (config,)
    return tuple(_changed(config, number) for number in range(len(config.train.phases)))


def _changed(config: Config, number: int) -> Config:
    where, raw = f'config.train.phases[{number}]', to_dict(config)
    raw['train']['phases'] = ()
    for key, value in config.train.phases[number]:
        if key not in CHANGEABLE:
            in_optim = key.startswith('optim.')
            raise UserError(
                f'a phase cannot change {key!r}',
                where=where,
                fix=did_you_mean(key, CHANGEABLE) if in_optim else _MAY,
            )
        section, name = key.split('.')
        raw[section][name] = value
    try:
        return resolve(raw)
    except UserError as error:
        raise UserError(error.what, where=f'{where}: {error.where}', fix=error.fix) from None

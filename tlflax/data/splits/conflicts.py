"""Refuses keys of the splits that contradict each other."""

from tlflax.config.schema import DataConfig
from tlflax.utils.errors import UserError


def check_fractions(data: DataConfig) -> None:
    """Refuses fractions and folds that make no sense by themselves.

    Raises:
        UserError: They leave nothing to train with, or the fold does not exist.
    """
    if data.val_fraction + data.test_fraction >= 1:
        raise UserError(
            'the fractions leave nothing to train with',
            where='config.data.val_fraction and config.data.test_fraction',
            fix='give less than 1 in all',
        )
    if data.folds == 1:
        raise UserError(
            'one fold leaves nothing to train with',
            where='config.data.folds',
            fix='give 2 or more, or 0 for none',
        )
    _check_fold(data)


def _check_fold(data: DataConfig) -> None:
    if isinstance(data.fold, str):
        exists, fix = data.folds > 0, 'set config.data.folds too'
    else:
        exists = data.fold < max(data.folds, 1)
        fix = f'give 0 to {data.folds - 1}' if data.folds else 'set config.data.folds too'
    if not exists:
        raise UserError(f'fold {data.fold} does not exist', where='config.data.fold', fix=fix)
    if data.repeats > 1 and not isinstance(data.fold, str):
        raise UserError(
            'only a cross-validation is repeated',
            where='config.data.repeats',
            fix="set config.data.fold='all', or choose one division by config.data.repeat",
        )
    if data.repeat and (isinstance(data.fold, str) or not data.folds):
        raise UserError(
            'it chooses a division for one fold',
            where='config.data.repeat',
            fix='set config.data.folds and a number as config.data.fold, or config.data.repeats',
        )


def check_one_fold(data: DataConfig) -> None:
    """Refuses a cross-validation, where one run is asked for.

    Raises:
        UserError: It is one.
    """
    if isinstance(data.fold, str):
        raise UserError(
            'it stands for a run for each fold, and one is needed here',
            where='config.data.fold',
            fix='give a number, or let python -m tlflax.train cross-validate',
        )


def check_one_way(data: DataConfig, name: str, spec: str, needed: bool) -> None:
    """Refuses a split that is named in two ways, or in none though it is needed.

    Raises:
        UserError: It is.
    """
    ways = [f'{name}_fraction'] if getattr(data, f'{name}_fraction') else []
    ways += ['folds'] if name == 'val' and data.folds else []
    ways = [name, *ways] if spec else ways
    if len(ways) > 1:
        raise UserError(
            f'more than one way to say what the {name} split is',
            where=' and '.join(f'config.data.{way}' for way in ways),
            fix='keep one of them',
        )
    if name == 'val' and needed and not ways:
        raise UserError(
            'no validation images are named',
            where='config.data.val',
            fix='give a folder like the training one, or config.data.val_fraction=0.2',
        )

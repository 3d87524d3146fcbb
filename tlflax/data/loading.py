"""From a configuration to the tables of a run's splits."""

import dataclasses
import hashlib
from collections.abc import Sequence

from absl import logging

from tlflax.config import DataConfig
from tlflax.data import folder, manifest, scenes, split
from tlflax.data.classes import some
from tlflax.data.folder import ImageTable
from tlflax.data.inputs import NAMES, Input, Known, list_input
from tlflax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Splits:
    """The tables of images; `test` may be missing."""

    train: ImageTable
    val: ImageTable
    test: ImageTable | None

    @property
    def digest(self) -> str:
        """The digest of all of them, hexadecimal."""
        tables = [table for table in (self.train, self.val, self.test) if table is not None]
        return hashlib.sha256(' '.join(table.digest for table in tables).encode()).hexdigest()


def load_table(
    spec: str, *, key: str, data: DataConfig, classes: Sequence[str] | None = None
) -> ImageTable:
    """Finds and checks the images of one split.

    Args:
        spec: See `tlflax.data.inputs.list_input`.
        key: The configuration key it came from.
        data: How the images are read.
        classes: The training split's classes, whose order decides the labels.

    Raises:
        UserError: See `list_input`, and `check` and `tabulate` of `tlflax.data.folder`.
    """
    listing = list_input(spec, key=key)
    folder.check(listing, key=key, classes=classes)
    scanned = folder.read(listing, max_pixels=data.max_pixels)
    return Input(key, listing, scanned).table(data, classes)


def read_inputs(data: DataConfig, *, strict: bool = True) -> dict[str, Input]:
    """Reads every split that is named, not those that are taken out of the training split.

    Args:
        data: Names them.
        strict: Refuse, before anything is read, what is not fit for training.

    Returns:
        What 'train' and, where they are named, 'val' and 'test' hold.

    Raises:
        UserError: No training images are named, or they are not there. If strict, also: a split
            is named in no way or in two, or see `tlflax.data.folder.check`.
    """
    if not data.train:
        raise UserError(
            'no training images are named',
            where='config.data.train',
            mend='give a folder with one sub-folder of images for each class',
        )
    known: Known = {}
    listings = {'train': list_input(data.train, key='config.data.train', known=known)}
    specs = {name: _named(data, name, known) for name in NAMES[1:]}
    if strict:
        folder.check(listings['train'], key='config.data.train', classes=None)
        _check_one_way(data, specs)
    classes = listings['train'].classes
    for name, spec in specs.items():
        if spec:
            key = f'config.data.{name}'
            listings[name] = list_input(spec, key=key, known=known)
            if strict:
                folder.check(listings[name], key=key, classes=classes)
    return {
        name: Input(
            f'config.data.{name}', listing, folder.read(listing, max_pixels=data.max_pixels)
        )
        for name, listing in listings.items()
    }


def _named(data: DataConfig, name: str, known: Known) -> str:
    """Returns what is named as a split: by its own key, or by the training manifest."""
    spec = getattr(data, name)
    if data.train not in known or name not in manifest.splits(known[data.train]):
        return spec
    if spec and spec.partition('#')[0] != data.train:
        raise UserError(
            f'{data.train} has lines whose split is {name!r}, and {spec} is given too',
            where=f'config.data.{name}',
            mend=f'leave this empty, or give {data.train}#train as config.data.train',
        )
    return spec or data.train


def load_splits(data: DataConfig) -> Splits:
    """Returns the training, validation and test images.

    Raises:
        UserError: A split is missing or given twice, or its images are not fit for training.
    """
    _check_fractions(data)
    found = read_inputs(data)
    train = found['train'].table(data)
    tables = {name: found[name].table(data, train.classes) for name in NAMES[1:] if name in found}
    rest, test, val = train, tables.get('test'), tables.get('val')
    if data.test_fraction or data.val_fraction or data.folds:
        scenes.check_scenes(train)
    if data.test_fraction:
        rest, test = split.stratified_split(rest, data.test_fraction, salt='test')
    if data.folds:
        rest, val = split.fold_split(rest, data.folds, data.fold)
    elif data.val_fraction:
        fraction = data.val_fraction / (1.0 - data.test_fraction)
        rest, val = split.stratified_split(rest, fraction, salt='val')
    assert val is not None
    _warn_of_leaks(rest, val, test)
    return Splits(rest, val, test)


def _warn_of_leaks(rest: ImageTable, val: ImageTable, test: ImageTable | None) -> None:
    """Warns of contents and scenes that training shares with another split."""
    for name, part in (('val', val), ('test', test)):
        if part is None:
            continue
        if twice := split.duplicates_between(rest, part):
            logging.warning('WARNING: %s', split.describe_leak(twice, name))
        if shared := split.scenes_between(rest, part):
            logging.warning(
                'WARNING: %d scenes of the %s split are in the training split too: %s',
                *(len(shared), name, some(shared)),
            )


def load_val(data: DataConfig, classes: tuple[str, ...]) -> ImageTable:
    """Returns the validation images alone, labelled in the order of `classes`.

    Raises:
        UserError: See `load_splits`.
    """
    if not data.val:
        return load_splits(data).val
    return load_table(data.val, key='config.data.val', data=data, classes=classes)


def _check_fractions(data: DataConfig) -> None:
    """Refuses fractions and folds that make no sense by themselves."""
    if data.val_fraction + data.test_fraction >= 1:
        raise UserError(
            'the fractions leave nothing to train with',
            where='config.data.val_fraction and config.data.test_fraction',
            mend='give less than 1 in all',
        )
    if data.folds == 1:
        raise UserError(
            'one fold leaves nothing to train with',
            where='config.data.folds',
            mend='give 2 or more, or 0 for none',
        )
    if data.fold >= max(data.folds, 1):
        mend = f'give 0 to {data.folds - 1}' if data.folds else 'set config.data.folds too'
        raise UserError(f'there is no fold {data.fold}', where='config.data.fold', mend=mend)


def _check_one_way(data: DataConfig, specs: dict[str, str]) -> None:
    """Refuses a split that is named in no way, or in two."""
    for name, spec in specs.items():
        ways = [f'{name}_fraction'] if getattr(data, f'{name}_fraction') else []
        ways += ['folds'] if name == 'val' and data.folds else []
        ways = [name, *ways] if spec else ways
        if len(ways) > 1:
            raise UserError(
                f'more than one way to say what the {name} split is',
                where=' and '.join(f'config.data.{way}' for way in ways),
                mend='keep one of them',
            )
        if name == 'val' and not ways:
            raise UserError(
                'no validation images are named',
                where='config.data.val',
                mend='give a folder like the training one, or config.data.val_fraction=0.2',
            )

"""From a configuration to the tables of a run's splits."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

from tlflax.config.schema import DataConfig
from tlflax.data.images.scan import Scanned
from tlflax.data.inputs import manifest
from tlflax.data.inputs.listing import Listing
from tlflax.data.inputs.walk import Report, stop
from tlflax.data.splits import groups, stratify
from tlflax.data.splits.resolve import NAMES, Known, list_input
from tlflax.data.table import ImageTable, check, read, tabulate
from tlflax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Splits:
    """The tables of images; `test` may be missing."""

    train: ImageTable
    val: ImageTable
    test: ImageTable | None

    @property
    def digest(self) -> str:
        """The digest of all of them, hexadecimal."""
        digests = ' '.join(table.digest for table in self.by_name.values())
        return hashlib.sha256(digests.encode()).hexdigest()

    @property
    def by_name(self) -> dict[str, ImageTable]:
        """The splits that there are, training first."""
        tables = zip(NAMES, (self.train, self.val, self.test), strict=True)
        return {name: table for name, table in tables if table is not None}


@dataclasses.dataclass(frozen=True)
class Input:
    """What was named as one split.

    Attributes:
        key: The configuration key that named it, for messages.
        listing: The files and their classes.
        scanned: What reading them found.
    """

    key: str
    listing: Listing
    scanned: Scanned

    def table(self, data: DataConfig, classes: Sequence[str] | None = None) -> ImageTable:
        """Makes its table, with the scenes that `data.group` names.

        Raises:
            UserError: See `tlflax.data.table.tabulate` and `tlflax.data.splits.groups.by_pattern`.
        """
        table = tabulate(
            self.scanned,
            self.listing,
            key=self.key,
            on_bad_image=data.on_bad_image,
            classes=classes,
        )
        return groups.by_pattern(table, data.group) if data.group else table


def load_table(
    spec: str, *, key: str, data: DataConfig, classes: Sequence[str] | None = None
) -> ImageTable:
    """Finds and checks the images of one split.

    Args:
        spec: See `tlflax.data.splits.resolve.list_input`.
        key: The configuration key it came from.
        data: How the images are read.
        classes: The training split's classes, whose order decides the labels.

    Raises:
        UserError: See `list_input`, and `check` and `tabulate` of `tlflax.data.table`.
    """
    listing = list_input(spec, key=key)
    check(listing, key=key, classes=classes)
    return _read(listing, key, data).table(data, classes)


def read_inputs(
    data: DataConfig, *, strict: bool = True, report: Report = stop
) -> dict[str, Input]:
    """Reads every split that is named, not those that are taken out of the training split.

    Args:
        data: Names them.
        strict: Refuse, before anything is read, what is not fit for training.
        report: Is given what is wrong with an input, which is then read as far as it goes. Raises
            it by default.

    Returns:
        What 'train' and, where they are named, 'val' and 'test' hold.

    Raises:
        UserError: No training images are named, or they are not there. If strict, also: a split
            is named in no way or in two, or see `tlflax.data.table.check`.
    """
    if not data.train:
        raise _no_training_images()
    known: Known = {}
    train = list_input(data.train, key='config.data.train', known=known, report=report)
    listings = {'train': train}
    if strict:
        check(train, key='config.data.train', classes=None)
    specs: dict[str, str] = {}
    for name in NAMES[1:]:
        try:
            specs[name] = _named(data, name, known)
            _check_one_way(data, name, specs[name], strict)
        except UserError as error:
            report(error)
    for name in filter(specs.get, specs):
        key = f'config.data.{name}'
        try:
            listings[name] = list_input(specs[name], key=key, known=known, report=report)
        except UserError as error:
            report(error)
            continue
        if strict:
            check(listings[name], key=key, classes=train.classes)
    return {name: _read(listing, f'config.data.{name}', data) for name, listing in listings.items()}


def _no_training_images() -> UserError:
    """The error of a configuration that names none."""
    return UserError(
        'no training images are named',
        where='config.data.train',
        fix='give a folder with one sub-folder of images for each class',
    )


def _read(listing: Listing, key: str, data: DataConfig) -> Input:
    scanned = read(listing, max_pixels=data.max_pixels, background=data.background)
    return Input(key, listing, scanned)


def _named(data: DataConfig, name: str, known: Known) -> str:
    """Returns what is named as a split: by its own key, or by the training manifest."""
    spec = getattr(data, name)
    if data.train not in known or name not in manifest.splits(known[data.train]):
        return spec
    if spec and spec.partition('#')[0] != data.train:
        raise UserError(
            f'{data.train} has lines whose split is {name!r}, and {spec} is given too',
            where=f'config.data.{name}',
            fix=f'leave this empty, or give {data.train}#train as config.data.train',
        )
    return spec or data.train


def load_splits(data: DataConfig) -> Splits:
    """Returns the training, validation and test images.

    Raises:
        UserError: A split is missing or given twice, or its images are not fit for training.
    """
    check_fractions(data)
    found = read_inputs(data)
    train = found['train'].table(data)
    others = {name: found[name].table(data, train.classes) for name in NAMES[1:] if name in found}
    tables = divide({'train': train, **others}, data)
    return Splits(tables['train'], tables['val'], tables.get('test'))


def divide(tables: Mapping[str, ImageTable], data: DataConfig) -> dict[str, ImageTable]:
    """Takes what is not named out of the training split: the test images, then validation.

    Args:
        tables: The splits that are named, training among them.
        data: Fractions or folds, see `check_fractions`.

    Returns:
        The splits, training first.

    Raises:
        UserError: See `tlflax.data.splits.stratify` and `tlflax.data.splits.groups.check_scenes`.
    """
    parts = dict(tables)
    if data.test_fraction or data.val_fraction or data.folds:
        groups.check_scenes(parts['train'])
    if data.test_fraction and 'test' not in tables:
        parts['train'], parts['test'] = stratify.stratified_split(
            parts['train'], data.test_fraction, salt='test'
        )
    if data.folds and 'val' not in tables:
        parts['train'], parts['val'] = stratify.fold_split(parts['train'], data.folds, data.fold)
    elif data.val_fraction and 'val' not in tables:
        fraction = data.val_fraction / (1.0 - data.test_fraction)
        parts['train'], parts['val'] = stratify.stratified_split(
            parts['train'], fraction, salt='val'
        )
    return {name: parts[name] for name in NAMES if name in parts}


def load_train(data: DataConfig) -> ImageTable:
    """Returns the images that are named for training, undivided.

    Raises:
        UserError: See `load_table`.
    """
    if not data.train:
        raise _no_training_images()
    return load_table(data.train, key='config.data.train', data=data)


def load_val(data: DataConfig, classes: tuple[str, ...]) -> ImageTable:
    """Returns the validation images alone, labeled in the order of `classes`.

    Raises:
        UserError: See `load_splits`.
    """
    if not data.val:
        return load_splits(data).val
    return load_table(data.val, key='config.data.val', data=data, classes=classes)


def check_fractions(data: DataConfig) -> None:
    """Refuses fractions and folds that make no sense by themselves.

    Raises:
        UserError: They leave nothing to train with, or there is no such fold.
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
    if data.fold >= max(data.folds, 1):
        fix = f'give 0 to {data.folds - 1}' if data.folds else 'set config.data.folds too'
        raise UserError(f'there is no fold {data.fold}', where='config.data.fold', fix=fix)


def _check_one_way(data: DataConfig, name: str, spec: str, needed: bool) -> None:
    """Refuses a split that is named in two ways, or in none though it is needed."""
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

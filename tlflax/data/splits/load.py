"""From a configuration to the tables of a run's splits."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

from tlflax.config.schema import DataConfig
from tlflax.data.inputs import manifest
from tlflax.data.inputs.class_checks import check_listing
from tlflax.data.inputs.listing import Announced, Listing, Scan, scan
from tlflax.data.inputs.walk import Report, located_report, stop
from tlflax.data.splits.conflicts import check_fractions, check_one_fold, check_one_way
from tlflax.data.splits.groups import check_groups, group_by_pattern
from tlflax.data.splits.resolve import NAMES, Known, list_input
from tlflax.data.splits.stratify import fold_split, fold_splits, stratified_split
from tlflax.data.table import ImageTable, make_table
from tlflax.utils.errors import UserError, located

KEY = {name: f'config.data.{name}' for name in NAMES}
"""The configuration key that names each split."""


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
        """The splits that exist, by name, training first."""
        tables = zip(NAMES, (self.train, self.val, self.test), strict=True)
        return {name: table for name, table in tables if table is not None}


def load_table(
    spec: str,
    *,
    data: DataConfig,
    split: str = '',
    class_names: Sequence[str] | None = None,
    announced: Announced | None = None,
) -> ImageTable:
    """Finds and checks the images of one split.

    Args:
        spec: See `tlflax.data.splits.resolve.list_input`.
        data: How the images are read.
        split: See `list_input`.
        class_names: The training split's classes, whose order decides the labels; None: this is
            the training split.
        announced: See `tlflax.data.inputs.listing.scan`.

    Raises:
        UserError: See `list_input`, `check_listing` and `make_table`.
    """
    listing = list_input(spec, split=split)
    check_listing(listing, class_names)
    return _table(_read(listing, data, announced), data, class_names)


def _read(listing: Listing, data: DataConfig, announced: Announced | None) -> Scan:
    return scan(
        listing, max_pixels=data.max_pixels, background=data.background, announced=announced
    )


def _table(found: Scan, data: DataConfig, class_names: Sequence[str] | None = None) -> ImageTable:
    table = make_table(found, on_bad_image=data.on_bad_image, class_names=class_names)
    return group_by_pattern(table, data.group) if data.group else table


def read_inputs(
    data: DataConfig,
    *,
    strict: bool = True,
    report: Report = stop,
    announced: Announced | None = None,
) -> dict[str, Scan]:
    """Reads every split that is named, not those that are taken out of the training split.

    Args:
        data: Names them.
        strict: Refuse, before anything is read, what cannot be trained with.
        report: Takes what is wrong with an input, which is then read as far as it goes. Raises it
            by default.
        announced: See `tlflax.data.inputs.listing.scan`.

    Returns:
        What 'train' and, where they are named, 'val' and 'test' hold.

    Raises:
        UserError: No training images are named, or they do not exist. If strict, also: a split is
            named in no way or in two, or see `check_listing`.
    """
    if not data.train:
        raise _no_training_images()
    known: Known = {}
    train = _list('train', data.train, known, report)
    listings = {'train': train}
    if strict:
        with located(KEY['train']):
            check_listing(train, None)
    specs: dict[str, str] = {}
    for name in NAMES[1:]:
        try:
            specs[name] = _named(data, name, known)
            check_one_way(data, name, specs[name], strict)
        except UserError as error:
            report(error)
    for name in filter(specs.get, specs):
        try:
            listings[name] = _list(name, specs[name], known, report)
        except UserError as error:
            report(error)
            continue
        if strict:
            with located(KEY[name]):
                check_listing(listings[name], train.class_names)
    return {name: _read(listing, data, announced) for name, listing in listings.items()}


def _list(name: str, spec: str, known: Known, report: Report) -> Listing:
    """Lists a split; gives its key to every fault."""
    with located(KEY[name]):
        report = located_report(KEY[name], report)
        return list_input(spec, split=name, known=known, report=report)


def _no_training_images() -> UserError:
    """The error of a configuration that names none."""
    return UserError(
        'no training images are named',
        where=KEY['train'],
        fix='give a folder with one sub-folder of images for each class',
    )


def _named(data: DataConfig, name: str, known: Known) -> str:
    """Returns what is named as a split: by its own key, or by the training manifest."""
    spec = getattr(data, name)
    if data.train not in known or name not in manifest.splits(known[data.train]):
        return spec
    if spec and spec.partition('#')[0] != data.train:
        raise UserError(
            f'{data.train} has lines whose split is {name!r}, and {spec} is given too',
            where=KEY[name],
            fix=f'leave this empty, or give {data.train}#train as config.data.train',
        )
    return spec or data.train


def load_splits(data: DataConfig, announced: Announced | None = None) -> Splits:
    """Returns the training, validation and test images.

    Raises:
        UserError: A split is missing or given twice, or its images cannot be used.
    """
    check_fractions(data)
    check_one_fold(data)
    parts = divide(_named_tables(data, announced), data)
    return Splits(parts['train'], parts['val'], parts.get('test'))


def load_folds(data: DataConfig) -> list[list[Splits]]:
    """Returns the splits of a cross-validation, by the number of the division and of the fold.

    Raises:
        UserError: See `load_splits`; or a fold cannot be held out.
    """
    check_fractions(data)
    whole = divide(_named_tables(data), data)
    with located('config.data.folds'):
        return [
            [
                Splits(rest, part, whole.get('test'))
                for rest, part in fold_splits(whole['train'], data.folds, repeat)
            ]
            for repeat in range(data.repeats)
        ]


def _named_tables(data: DataConfig, announced: Announced | None = None) -> dict[str, ImageTable]:
    """Returns the tables of the splits that are named, training first."""
    tables: dict[str, ImageTable] = {}
    for name, found in read_inputs(data, announced=announced).items():
        class_names = tables['train'].class_names if tables else None
        with located(KEY[name]):
            tables[name] = _table(found, data, class_names)
    return tables


def divide(tables: Mapping[str, ImageTable], data: DataConfig) -> dict[str, ImageTable]:
    """Takes what is not named out of the training split: the test images, then validation.

    Args:
        tables: The splits that are named, training among them.
        data: Fractions or folds, see `check_fractions`; with all folds, none is held out.

    Returns:
        The splits, training first.

    Raises:
        UserError: See `tlflax.data.splits.stratify` and `tlflax.data.splits.groups.check_groups`.
    """
    parts = dict(tables)
    if data.test_fraction or data.val_fraction or data.folds:
        check_groups(parts['train'])
    if data.test_fraction and 'test' not in tables:
        with located('config.data.test_fraction'):
            parts['train'], parts['test'] = stratified_split(
                parts['train'], data.test_fraction, salt='test'
            )
    if data.folds and 'val' not in tables:
        if not isinstance(data.fold, str):
            with located('config.data.folds'):
                parts['train'], parts['val'] = fold_split(
                    parts['train'], data.folds, data.fold, data.repeat
                )
    elif data.val_fraction and 'val' not in tables:
        fraction = data.val_fraction / (1.0 - data.test_fraction)
        with located('config.data.val_fraction'):
            parts['train'], parts['val'] = stratified_split(parts['train'], fraction, salt='val')
    return {name: parts[name] for name in NAMES if name in parts}


def load_train(data: DataConfig, announced: Announced | None = None) -> ImageTable:
    """Returns the images that are named for training, undivided.

    Raises:
        UserError: See `load_table`.
    """
    if not data.train:
        raise _no_training_images()
    with located(KEY['train']):
        return load_table(data.train, data=data, split='train', announced=announced)


def load_val(
    data: DataConfig, class_names: tuple[str, ...], announced: Announced | None = None
) -> ImageTable:
    """Returns the validation images alone, labeled in the order of `class_names`.

    Raises:
        UserError: See `load_splits`.
    """
    if not data.val:
        return load_splits(data, announced).val
    with located(KEY['val']):
        return load_table(
            data.val, data=data, split='val', class_names=class_names, announced=announced
        )

"""Audits the data of a configuration: reads all splits, and says at once what is wrong."""

import dataclasses
import time
from collections.abc import Collection, Mapping
from typing import Any

from tlflax.config.schema import DataConfig
from tlflax.data import table
from tlflax.data.audit import checks, duplicates
from tlflax.data.audit.duplicates import Images
from tlflax.data.audit.problems import CODES, LEVELS, Problem
from tlflax.data.inputs.class_checks import check_classes, refuse_empty
from tlflax.data.inputs.walk import Report
from tlflax.data.splits import groups, load
from tlflax.data.splits.load import Input
from tlflax.utils.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True, eq=False)
class Audit:
    """What an audit found.

    Attributes:
        problems: The worst first.
        summary: What each split holds.
        seconds: How long it took.
        read: Files that had to be read; the others were known.
    """

    problems: list[Problem]
    summary: dict[str, Any]
    seconds: float
    read: int

    def figures(self, accepted: Collection[str] = ()) -> dict[str, Any]:
        """Returns all counts, for JSON; errors with codes among `accepted` spoil nothing."""
        counts: dict[str, dict[str, int]] = {level: {} for level in LEVELS}
        for problem in self.problems:
            level = counts[problem.level]
            level[problem.code] = level.get(problem.code, 0) + problem.count
        return {
            'spoilt': bool(counts['error'].keys() - set(accepted)),
            **counts,
            'splits': self.summary,
            'seconds': round(self.seconds, 2),
            'files_read': self.read,
        }


def check_accepted(codes: Collection[str]) -> None:
    """Refuses names of problems that there are not.

    Raises:
        UserError: Names the first, and what it may have been meant to be.
    """
    for code in codes:
        if code not in CODES:
            what = f'{code!r} is no kind of problem'
            raise UserError(what, where='--accept', fix=did_you_mean(code, CODES))


def run(data: DataConfig) -> Audit:
    """Reads every split that `data` names, and audits them.

    Raises:
        UserError: No training images are named, or they cannot be had.
    """
    began = time.monotonic()
    if not data.train:
        raise UserError(
            'no training images are named',
            where='--train',
            fix='for example: python -m tlflax.data --train=photos/Train --val=photos/Test',
        )
    faults: list[UserError] = []
    inputs = load.read_inputs(data, strict=False, report=faults.append)
    for name, found in inputs.items():
        if name == 'train':
            check_classes(found.listing, found.key, faults.append)
        else:
            refuse_empty(found.listing.empty, found.key, faults.append)
    splits = {name: found.scanned for name, found in inputs.items()}
    images = _images(inputs, data, faults.append)
    problems = checks.audit(splits, images, faults)
    return Audit(
        problems=problems,
        summary=checks.summarize(splits, images),
        seconds=time.monotonic() - began,
        read=sum(scanned.read for scanned in splits.values()),
    )


def _images(inputs: Mapping[str, Input], data: DataConfig, report: Report) -> Images:
    """The good images as they are used: divided, and with their scenes.

    Where they cannot be divided, `report` is given the fault, and they are taken as they are named.
    """
    divided = data.val_fraction or data.test_fraction or data.folds or data.fold
    grouped = data.group or any(found.listing.groups is not None for found in inputs.values())
    if not divided and not grouped:
        return duplicates.of_scans({name: found.scanned for name, found in inputs.items()})
    classes = tuple(sorted({name for found in inputs.values() for name in found.listing.classes}))
    tables = {
        name: table.table_of(found.scanned, found.listing, classes)
        for name, found in inputs.items()
    }
    try:
        if data.group:
            tables = {name: groups.by_pattern(t, data.group) for name, t in tables.items()}
        load.check_fractions(data)
        tables = load.divide(tables, data)
    except UserError as error:
        report(error)
    return duplicates.of_tables(tables)

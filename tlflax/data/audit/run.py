"""Audits the data of a configuration: reads all splits, and reports everything that is wrong."""

import dataclasses
import time
from collections.abc import Collection, Mapping

from tlflax.config.schema import DataConfig
from tlflax.data.audit import checks, duplicates, shortcuts
from tlflax.data.audit.duplicates import Images
from tlflax.data.audit.problems import CODES, LEVELS, Problem
from tlflax.data.audit.shortcuts import Figures
from tlflax.data.audit.summary import SplitSummary, summarize
from tlflax.data.inputs.class_checks import check_classes, refuse_empty
from tlflax.data.inputs.listing import Announced, Scan
from tlflax.data.inputs.walk import Report, located_report
from tlflax.data.splits.conflicts import check_fractions
from tlflax.data.splits.groups import group_by_pattern
from tlflax.data.splits.load import KEY, divide, read_inputs
from tlflax.data.table import table_of
from tlflax.utils.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True, eq=False)
class Audit:
    """What an audit found.

    Attributes:
        problems: The worst first.
        summary: What each split holds.
        shortcuts: How well each property of a split's files tells the classes.
        seconds: How long it took.
        num_read: Files that had to be read; the others were known.
    """

    problems: list[Problem]
    summary: dict[str, SplitSummary]
    shortcuts: dict[str, dict[str, Figures]]
    seconds: float
    num_read: int

    def figures(self, accepted: Collection[str] = ()) -> dict[str, object]:
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
            'files_read': self.num_read,
        }


def check_accepted(codes: Collection[str]) -> None:
    """Refuses names that are not codes of problems.

    Raises:
        UserError: Names the first, and what it may have been meant to be.
    """
    for code in codes:
        if code not in CODES:
            what = f'{code!r} is not a kind of problem'
            raise UserError(what, where='--accept', fix=did_you_mean(code, CODES))


def run(data: DataConfig, announced: Announced | None = None) -> Audit:
    """Reads every split that `data` names, and audits them.

    Args:
        data: Names them.
        announced: See `tlflax.data.inputs.listing.scan`.

    Raises:
        UserError: No training images are named, or they cannot be listed.
    """
    began = time.monotonic()
    if not data.train:
        raise UserError(
            'no training images are named',
            where='--train',
            fix='for example: python -m tlflax.data --train=photos/Train --val=photos/Test',
        )
    faults: list[UserError] = []
    scans = read_inputs(data, strict=False, report=faults.append, announced=announced)
    for name, scan in scans.items():
        report = located_report(KEY[name], faults.append)
        if name == 'train':
            check_classes(scan.listing, report)
        else:
            refuse_empty(scan.listing.empty, report)
    images = _images(scans, data, faults.append)
    told = shortcuts.measure(scans['train'])
    return Audit(
        problems=checks.audit(scans, images, faults, told),
        summary=summarize(scans, images, told),
        shortcuts={'train': {one.key: one.figures(classes=True) for one in told}},
        seconds=time.monotonic() - began,
        num_read=sum(scan.num_read for scan in scans.values()),
    )


def _images(scans: Mapping[str, Scan], data: DataConfig, report: Report) -> Images:
    """Returns the good images as they are used: divided, and with their groups.

    Where they cannot be divided, `report` takes the fault, and they stay as they are named.
    """
    names = {name for scan in scans.values() for name in scan.listing.class_names}
    class_names = tuple(sorted(names))
    tables = {name: table_of(scan, class_names) for name, scan in scans.items()}
    try:
        if data.group:
            tables = {name: group_by_pattern(t, data.group) for name, t in tables.items()}
        check_fractions(data)
        tables = divide(tables, data)
    except UserError as error:
        report(error)
    return duplicates.of_tables(tables)

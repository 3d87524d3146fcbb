"""Audits the data of a configuration: reads all splits, and says at once what is wrong."""

import dataclasses
import os
import time
from collections.abc import Collection
from typing import Any

from tlflax import experiment
from tlflax.config import DataConfig
from tlflax.data import audit, scans, twins
from tlflax.data.classes import check_classes, refuse_empty
from tlflax.data.problems import CODES, LEVELS, Problem
from tlflax.data.scans import Scanned
from tlflax.data.walk import Ignored, walk
from tlflax.errors import UserError, did_you_mean


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
            raise UserError(what, where='--accept', mend=did_you_mean(code, CODES))


def run(data: DataConfig) -> Audit:
    """Reads every split that `data` names, and audits them.

    Raises:
        UserError: No split is named, or there is no such folder.
    """
    began = time.monotonic()
    specs = {name: getattr(data, name) for name in ('train', 'val', 'test') if getattr(data, name)}
    if 'train' not in specs:
        raise UserError(
            'no training images are named',
            where='--train',
            mend='for example: python -m tlflax.data --train=photos/Train --val=photos/Test',
        )
    faults: list[UserError] = []
    splits = {name: _read(spec, name, faults) for name, spec in specs.items()}
    images = twins.of_scans(splits)
    if data.val_fraction or data.test_fraction:
        try:
            quiet = dataclasses.replace(data, audit='off', on_bad_image='skip')
            parts = experiment.load_splits(quiet)
            tables = {'train': parts.train, 'val': parts.val, 'test': parts.test}
            images = twins.of_tables({name: t for name, t in tables.items() if t is not None})
        except UserError as error:  # the splits cannot be made: what was read is audited undivided
            faults.append(error)
    problems = audit.audit(splits, images, faults)
    return Audit(
        problems=problems,
        summary=audit.summarise(splits, images),
        seconds=time.monotonic() - began,
        read=sum(scanned.read for scanned in splits.values()),
    )


def _read(spec: str, name: str, faults: list[UserError]) -> Scanned:
    """Reads a split; what is wrong with its folders goes to `faults`."""
    key = f'config.data.{name}'
    root = os.path.abspath(experiment.find_root(spec, key=key))
    ignored = Ignored()
    report = faults.append
    folders = walk(root, key=key, ignored=ignored, report=report)
    if name == 'train':
        check_classes(folders, root, key, report)
    else:
        refuse_empty([name for name, entries in folders.items() if not entries], key, report)
    entries = [entry for folder in folders.values() for entry in folder]
    names = [name for name, folder in folders.items() for _ in folder]
    findings, read = scans.read_all(root, entries)
    return Scanned(root, entries, names, findings, ignored, read)

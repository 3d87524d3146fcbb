"""Audits the data of a configuration: reads all splits, and says at once what is wrong."""

import dataclasses
import os
import time
from typing import Any

from tlflax import experiment
from tlflax.config import DataConfig
from tlflax.data import audit, scans, twins
from tlflax.data.classes import check_classes, refuse_empty
from tlflax.data.problems import Problem
from tlflax.data.scans import Scanned
from tlflax.data.walk import Ignored, walk
from tlflax.errors import UserError


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

"""Checks the images of a data set: duplicates, groups in two splits, classes, balance."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from absl import logging
from jaxtyping import Int

from tlflax.data.audit import duplicates, file_checks, odd_sizes, shortcuts
from tlflax.data.audit.duplicates import Duplicates, Images
from tlflax.data.audit.problems import Item, Problem, describe
from tlflax.data.audit.shortcuts import Told
from tlflax.data.inputs.class_checks import rename_or_remove, some, spelled_alike
from tlflax.data.inputs.listing import Scan
from tlflax.data.table import ImageTable
from tlflax.utils.errors import UserError

IMBALANCE = 10.0  # largest class over smallest, at least, for a warning
FEW = 10  # training images of a class, below which it is a warning
FAULTS = 50  # of the inputs, listed one by one; the others are counted
SHARE = 0.01  # of an evaluated split that looks like training images, at least, for an error


def audit(
    scans: Mapping[str, Scan],
    images: Images,
    faults: Sequence[UserError],
    told: Sequence[Told],
) -> list[Problem]:
    """Returns all problems, the worst first.

    Args:
        scans: What was read.
        images: The good images, by the splits they are used in; the first is training.
        faults: What listing the files and checking their classes found.
        told: What each property of the first scan's files tells of the class.
    """
    problems = list(_faults(faults))
    for name, scan in scans.items():
        problems += file_checks.check(name, scan)
        problems += odd_sizes.check(name, scan)
        problems += _empty_classes(name, scan)
    problems += shortcuts.problems(next(iter(scans)), told)
    problems += [*_classes(images), *balance(images), *copies(images), *shared_groups(images)]
    return sorted(problems, key=lambda problem: problem.rank)


def brief(tables: Mapping[str, ImageTable], *, strict: bool) -> None:
    """Logs, before training, the counts and the problems that would silently spoil the result.

    Args:
        tables: The splits, training first.
        strict: Whether an error stops the run.

    Raises:
        UserError: A problem is an error, and `strict`.
    """
    images = duplicates.of_tables(tables)
    counts = class_counts(images)
    for split, row in zip(images.names, counts, strict=True):
        large, small = row.argmax(), np.where(row, row, row.max()).argmin()
        logging.info(
            '%s: %d images in %d classes, from %d (%s) to %d (%s)',
            *(split, row.sum(), np.count_nonzero(row)),
            *(row[small], images.class_names[small], row[large], images.class_names[large]),
        )
    found = [*balance(images), *copies(images), *shared_groups(images)]
    problems = sorted(found, key=lambda problem: problem.rank)
    for problem in problems:
        if problem.level != 'note':
            example = f' (first: {describe(problem.items[0])})' if problem.items else ''
            logging.warning('WARNING: %s%s; %s', problem.what, example, problem.fix)
    if strict and problems and problems[0].level == 'error':
        raise UserError(
            problems[0].what,
            where='config.data.audit=error',
            fix=f'{problems[0].fix}; python -m tlflax.data names them all',
        )


def copies(images: Images) -> Iterator[Problem]:
    """Yields what is wrong with the same image in two splits, under two labels, or twice."""
    same, alike = duplicates.exact(images), duplicates.alike(images)
    evaluated = int((images.splits > 0).sum())
    later = f'{evaluated:,} images of {" and ".join(images.names[1:])}'
    apart = 'keep all images of one scene in one split'
    near_level = 'error' if alike.leaks.count >= SHARE * evaluated else 'warning'
    found: tuple[tuple[str, str, Duplicates, str, str], ...] = (
        ('leak', 'error', same.leaks,
         f'of {later} are in an earlier split too, byte for byte: results will look better than '
         'they are', 'remove them from one of the splits'),
        ('conflict', 'error', same.conflicts,
         'files are the same image as one under another label, byte for byte',
         'keep each image in the one class it belongs to'),
        ('near_leak', near_level, alike.leaks,
         f'of {later} look like one of an earlier split: results may look better than they are',
         apart),
        ('near_conflict', 'warning', alike.conflicts,
         'images look like one under another label', 'see which label is right'),
        ('repeat', 'warning', same.repeats,
         'files are copies of another of their class and split, byte for byte',
         'remove them, or they count twice'),
        ('near_repeat', 'note', alike.repeats,
         'images look like another of their class and split', apart),
    )  # fmt: skip
    for code, level, kind, what, fix in found:
        if kind.count:
            yield Problem(code, level, kind.count, f'{kind.count:,} {what}', fix, kind.items)
    if not alike.complete:
        what = 'the search for images that look alike was cut off: there are more than those found'
        yield Problem('cut_off', 'warning', 1, what, 'remove those found and ask again')


def shared_groups(images: Images) -> Iterator[Problem]:
    """Yields the groups that are in two splits, with an image of each split."""
    if images.groups is None:
        return
    first: list[dict[str, int]] = [{} for _ in images.names]
    for row, (split, group) in enumerate(zip(images.splits, images.groups, strict=True)):
        if group:
            first[split].setdefault(group, row)
    for (one, a), (two, b) in itertools.combinations(zip(images.names, first, strict=True), 2):
        if shared := sorted(a.keys() & b.keys()):
            earlier = 'training' if one == 'train' else one
            what = f'{len(shared):,} groups of the {two} split are in the {earlier} split too'
            items: list[Item] = [
                {'files': [images.file(a[group]), images.file(b[group])], 'scene': group}
                for group in shared
            ]
            what = f'{what}: {some(shared)}'
            yield Problem('scene', 'error', len(shared), what, 'keep each in one split', items)


def balance(images: Images) -> Iterator[Problem]:
    """Yields what is wrong with the numbers of training images."""
    counts = class_counts(images)[0]
    present = np.flatnonzero(counts)
    if len(present) < 2:
        return
    few = [
        f'{images.class_names[label]} {counts[label]}' for label in present if counts[label] < FEW
    ]
    if few:
        what = f'{len(few)} classes have fewer than {FEW} training images: {some(few, quote=False)}'
        yield Problem('few', 'warning', len(few), what, 'add images, or leave these classes out')
    ratio = imbalance(counts)
    if ratio >= IMBALANCE:
        large, small = counts.argmax(), present[counts[present].argmin()]
        what = (
            f'class {images.class_names[large]!r} has {counts[large]:,} training images, '
            f'{images.class_names[small]!r} has {counts[small]:,}: {ratio:.1f} to 1'
        )
        fix = 'watch the recall of each class, not the accuracy'
        yield Problem('imbalance', 'warning', len(present), what, fix)


def imbalance(counts: Int[np.ndarray, ' c']) -> float:
    """Returns the images of the largest class over those of the smallest that has any."""
    present = counts[counts > 0]
    return float(present.max() / present.min()) if len(present) else 1.0


def class_counts(images: Images) -> Int[np.ndarray, 's c']:
    """Returns the number of good images of each split and class."""
    shape = len(images.names), len(images.class_names)
    flat = images.splits.astype(np.int64) * shape[1] + images.labels
    return np.bincount(flat, minlength=shape[0] * shape[1]).reshape(shape)


def _faults(faults: Sequence[UserError]) -> Iterator[Problem]:
    """Yields the first faults of the inputs, such as lines of a manifest, and counts the others."""
    for fault in faults[:FAULTS]:
        yield Problem('folder', 'error', 1, f'{fault.where}: {fault.what}', fault.fix)
    if rest := faults[FAULTS:]:
        what = f'{len(rest):,} more faults, up to {rest[-1].where}'
        yield Problem('folder', 'error', len(rest), what, 'fix the first ones and ask again')


def _empty_classes(split: str, scan: Scan) -> Iterator[Problem]:
    """Yields the classes whose every file is bad or a stray; empty folders are a fault already."""
    good = {name for _, name, file in scan.rows() if file.is_good}
    if empty := sorted(set(scan.listing.names) - good):
        what = f'{split}: {len(empty)} classes without a usable image: {some(empty)}'
        yield Problem('empty_class', 'error', len(empty), what, 'add images to them or remove them')


def _classes(images: Images) -> Iterator[Problem]:
    """Yields the classes that only one split has, or whose names differ in spelling only."""
    here = class_counts(images) > 0
    names = np.array(images.class_names, object)
    first, known = images.names[0], list(names[here[0]])
    for split, present in zip(images.names[1:], here[1:], strict=True):
        if unknown := list(names[present & ~here[0]]):
            listed = some(unknown, known)
            what = f'{split} has {len(unknown)} classes that {first} does not have: {listed}'
            fix = rename_or_remove(unknown, known)
            yield Problem('classes', 'error', len(unknown), what, fix)
        if missing := list(names[here[0] & ~present]):
            listed = some(missing, names[present])
            what = f'{split} has no image of {len(missing)} classes of {first}: {listed}'
            fix = f'they will not be evaluated; add images to {split}'
            yield Problem('classes', 'error', len(missing), what, fix)
    if twice := spelled_alike(known):
        what = f'{first}: class names that differ in spelling only: {some(twice)}'
        yield Problem('spelling', 'error', len(twice), what, 'put their images into one folder')

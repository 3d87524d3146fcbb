"""Groups of images that stay on one side of a split: by a pattern over paths, or by a manifest."""

import dataclasses
import re

import numpy as np
from absl import logging

from tlflax.data.inputs.class_checks import some
from tlflax.data.table import ImageTable
from tlflax.utils.errors import UserError, as_user_error, printable

_KEY = 'config.data.group'


def group_by_pattern(table: ImageTable, pattern: str) -> ImageTable:
    """Gives each image the group that its path names.

    Args:
        table: The images.
        pattern: A regular expression, searched for in each path below the root. Its first
            parenthesized part, or the whole match where it has none, names the group. An image
            for which that is empty is a group of its own.

    Raises:
        UserError: It is not a valid regular expression, matches nothing, or the manifest names
            groups too.
    """
    if table.groups is not None:
        raise UserError(
            "the manifest has a column 'group' too",
            where=_KEY,
            fix='remove the column, or leave this empty',
        )
    what = f'{pattern!r} is not a valid regular expression ({{reason}})'
    with as_user_error(what, where=_KEY, fix='fix it', of=(re.error,)):
        compiled = re.compile(pattern)
    start = f'{table.root}/'
    paths = [path.removeprefix(start) for path in table.paths]
    part = 1 if compiled.groups else 0
    matches = [compiled.search(path) for path in paths]
    groups = [(match[part] or '') if match else '' for match in matches]
    if paths and not any(groups):
        raise UserError(
            f'{pattern!r} finds a group in no path, such as {printable(paths[0])!r}',
            where=_KEY,
            fix='fix it, or leave it empty',
        )
    if missed := [path for path, group in zip(paths, groups, strict=True) if not group]:
        logging.warning(
            '%s: %d of %d images name no group, and each counts as one: %s',
            *(_KEY, len(missed), len(paths), some(missed)),
        )
    return dataclasses.replace(table, groups=np.array(groups, object))


def check_groups(table: ImageTable) -> None:
    """Refuses to split a table of a single group.

    Raises:
        UserError: All images are of one group.
    """
    if table.groups is not None and len(names := set(table.groups)) == 1 and '' not in names:
        raise UserError(
            f'all {len(table)} images are of one group, {printable(names.pop())!r}',
            where=f"{_KEY} or the manifest's column",
            fix='name groups that differ, or leave it out',
        )

"""Which images show one scene: by a pattern over their paths, or by a manifest's column."""

import dataclasses
import re

import numpy as np
from absl import logging

from tlflax.data.images.decode import printable
from tlflax.data.inputs.class_checks import some
from tlflax.data.table import ImageTable
from tlflax.utils.errors import UserError

_KEY = 'config.data.group'


def by_pattern(table: ImageTable, pattern: str) -> ImageTable:
    """Gives each image the scene that its path names.

    Args:
        table: The images.
        pattern: A regular expression, searched for in each path below the root. Its first group,
            or the whole match where it has none, is the scene. An image where that is nothing is a
            scene of its own.

    Raises:
        UserError: It is no regular expression, matches nothing, or the manifest too names scenes.
    """
    if table.groups is not None:
        raise UserError(
            "the manifest has a column 'group' too",
            where=_KEY,
            fix='remove the column, or leave this empty',
        )
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(
            f'{pattern!r} is no regular expression ({error})', where=_KEY, fix='fix it'
        ) from error
    start = f'{table.root}/'
    paths = [path.removeprefix(start) for path in table.paths]
    part = 1 if compiled.groups else 0
    matches = [compiled.search(path) for path in paths]
    groups = [(match[part] or '') if match else '' for match in matches]
    if paths and not any(groups):
        raise UserError(
            f'{pattern!r} finds a scene in no path, such as {printable(paths[0])!r}',
            where=_KEY,
            fix='fix it, or leave it empty',
        )
    if missed := [path for path, group in zip(paths, groups, strict=True) if not group]:
        logging.warning(
            '%s: %d of %d images name no scene, and each counts as one: %s',
            *(_KEY, len(missed), len(paths), some(missed)),
        )
    return dataclasses.replace(table, groups=np.array(groups, object))


def check_scenes(table: ImageTable) -> None:
    """Refuses to split a table that shows one scene.

    Raises:
        UserError: All images are of one scene.
    """
    if table.groups is not None and len(names := set(table.groups)) == 1 and '' not in names:
        raise UserError(
            f'all {len(table)} images are of one scene, {printable(names.pop())!r}',
            where=f"{_KEY} or the manifest's column",
            fix='name scenes that differ, or leave it out',
        )

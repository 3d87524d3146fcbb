"""Images named one by one, or by their folder, for prediction: they have no class."""

import os
from collections.abc import Iterable, Iterator
from typing import Any

from tlflax.data.images import given, scan
from tlflax.data.images.given import Given
from tlflax.data.inputs.walk import Ignored, files_below
from tlflax.utils.errors import UserError, as_user_error, printable, shown
from tlflax.utils.files import expand


def find(images: Any, *, scale: float | None = None) -> Iterator[Given | UserError]:
    """Yields every image that is named, and the error of each that cannot be.

    Files are not read, and errors of what is named later are yielded later.

    Args:
        images: A path, the bytes of a file, a Pillow image or an array, or an iterable of them. A
            folder stands for the images below it, by the rules of class folders: hidden entries and
            junk are left out, links are followed, contents decide what counts as an image.
        scale: The value of white, for arrays that are not uint8.

    Raises:
        UserError: `images` is neither an image nor an iterable.
    """
    if given.is_one(images):
        images = [images]
    elif not isinstance(images, Iterable):
        raise UserError(
            f'{shown(images)} is neither an image nor a list of them',
            where='images',
            fix='give paths, bytes, Pillow images or arrays',
        )
    for number, image in enumerate(images, start=1):
        try:
            if isinstance(image, (str, os.PathLike)):
                yield from _at(expand(image))
            else:
                yield from given.in_memory(image, f'image {number}', scale)
        except UserError as error:
            yield error


def named_class(path: str, class_names: Iterable[str]) -> str | None:
    """Returns the class that the nearest folder of a path is named after; None without one."""
    known = set(class_names)
    folders = reversed(path.split(os.sep)[:-1])
    return next((folder for folder in folders if folder in known), None)


def _at(path: str) -> Iterator[Given | UserError]:
    """Yields the file at a path, or the images below the folder there."""
    name = printable(path)
    if not os.path.isdir(path):
        if not os.path.lexists(path):
            raise UserError('no such file or folder', where=name, fix='check its path')
        yield given.file(path)
        return
    faults: list[UserError] = []
    found = False
    with as_user_error('{reason}', where=name, fix='check its permissions', of=(OSError,)):
        entries = files_below(path, '', set(), Ignored(), faults.append)
    for entry in entries:
        below = os.path.join(path, entry.path)
        if scan.is_meant(below):
            found = True
            yield given.file(below)
    yield from faults
    if not found and not faults:
        raise UserError('no image is in this folder', where=name, fix='name another')

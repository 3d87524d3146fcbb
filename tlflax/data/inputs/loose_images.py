"""Images named one by one, by a folder or by a pattern, for prediction: they have no class."""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tlflax.data.images import given, scan
from tlflax.data.images.files import Entry
from tlflax.data.images.given import Given
from tlflax.data.inputs import pattern
from tlflax.data.inputs.walk import Ignored, files_below
from tlflax.utils.errors import UserError, as_user_error, located, printable, shown
from tlflax.utils.files import expand

STDIN = '-'
"""What stands for standard input on a command line."""


def find(images: Any, *, scale: float | None = None) -> Iterator[Given | UserError]:
    """Yields every image that is named, and the error of each that cannot be.

    Files are not read, and errors of what is named later are yielded later.

    Args:
        images: A path, the bytes of a file, a Pillow image or an array, or an iterable of them. A
            folder stands for the images below it, by the rules of class folders: hidden entries and
            junk are left out, links are followed, contents decide what counts as an image. A
            pattern, such as `photos/**/*.jpg`, stands for the images that it matches. What this
            function yields is among the images that it takes.
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
            if isinstance(image, (Given, UserError)):
                yield image
            elif isinstance(image, (str, os.PathLike)):
                yield from _at(expand(image))
            else:
                yield from given.in_memory(image, f'image {number}', scale)
        except UserError as error:
            yield error


def of_command(names: Sequence[str], lines: Iterable[bytes]) -> Iterable[Given | UserError]:
    """Returns what `find` yields of the arguments of a command.

    Args:
        names: Files, folders and patterns; `-`: those that `lines` names, one a line.
        lines: Of standard input. They are read as images are drawn; empty ones are left out.

    Returns:
        A list, whose length is the number of images, unless `lines` are read.
    """
    if STDIN in names:
        return find(one for name in names for one in (_named(lines) if name == STDIN else [name]))
    return list(find(names))


def _named(lines: Iterable[bytes]) -> Iterator[str | UserError]:
    for line in lines:
        if b'\0' in line:
            what = 'a path cannot have a null character'
            yield UserError(what, where='standard input', fix='give one path a line')
        elif name := os.fsdecode(line.rstrip(b'\r\n')):
            yield name


def named_class(path: str, class_names: Iterable[str]) -> str | None:
    """Returns the class that the nearest folder of a path is named after; None without one."""
    known = set(class_names)
    folders = reversed(path.split(os.sep)[:-1])
    return next((folder for folder in folders if folder in known), None)


def _at(path: str) -> Iterator[Given | UserError]:
    """Yields the file at a path, or the images below the folder there, or those of a pattern."""
    name = printable(path)
    faults: list[UserError] = []
    if os.path.isdir(path):
        with as_user_error('{reason}', where=name, fix='check its permissions', of=(OSError,)):
            entries = files_below(path, '', set(), Ignored(), faults.append)
        nothing = UserError('no image is in this folder', where=name, fix='name another')
        yield from _images(path, entries, faults, nothing)
    elif os.path.lexists(path):
        yield given.file(path)
    elif pattern.is_pattern(path):
        with located(name):
            base, entries = pattern.files_matching(path, report=faults.append)
        nothing = UserError(
            'no image matches this pattern',
            where=name,
            fix='compare it with the files; * stands for a part of one name, ** for folders',
        )
        yield from _images('' if base == '.' else base, entries, faults, nothing)
    else:
        raise UserError('no such file or folder', where=name, fix='check its path')


def _images(
    base: str, entries: Iterable[Entry], faults: Sequence[UserError], nothing: UserError
) -> Iterator[Given | UserError]:
    """Yields those files that are images, then the faults; `nothing` if there is neither."""
    found = False
    for entry in entries:
        path = os.path.join(base, entry.path)
        if scan.is_meant(path):
            found = True
            yield given.file(path)
    yield from faults
    if not found and not faults:
        yield nothing

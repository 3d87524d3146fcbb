"""Class folders to a list of files with their classes.

    root/red/a.jpg  root/red/night/b.png  root/green/c.webp

Each folder in the root is a class; folders inside a class, to any depth, belong to it. Contents
decide what counts as an image: a file with an image's extension and other contents, or a picture
in a format that is not read, is a bad image; other files are ignored and counted. So are hidden
entries and the folders of `walk.IGNORED_FOLDERS`. Links are followed; a folder that they lead to
several times is read once for each class.
"""

import os
import stat

from tlflax.data.images.scan import read_file
from tlflax.data.inputs.listing import Listing
from tlflax.data.inputs.walk import (
    PIPES,
    Ignored,
    Report,
    ancestors,
    children,
    files_below,
    kind_of_stray,
    stop,
)
from tlflax.utils.errors import UserError, did_you_mean, printable
from tlflax.utils.files import expand


def list_folder(root: str | os.PathLike[str], *, report: Report = stop) -> Listing:
    """Lists the files of a folder of class folders.

    Classes are sorted by name. Files are the regular files and broken links below a class folder,
    to any depth, in an order that depends on their names alone.

    Args:
        root: The folder that holds one folder for each class.
        report: Takes each fault: a folder that cannot be read, no class folders, images at the
            root. Raises it by default; where it does not, the listing goes on.

    Raises:
        UserError: The folder does not exist.
    """
    root = os.path.abspath(expand(root))
    if not os.path.isdir(root):
        raise _no_folder(root)
    ignored = Ignored()
    class_names, strays = [], []
    for name, status in children(root, '', ignored, report):
        if status is not None and stat.S_ISDIR(status.st_mode):
            class_names.append(name)
        elif status is None or stat.S_ISREG(status.st_mode):
            strays.append(name)
        else:
            ignored.note(PIPES, name)
    _check_strays(root, strays, report)
    for name in strays:
        ignored.note(kind_of_stray(name), name)
    if not class_names:
        what = f'{printable(root)!r} has no class folders'
        report(UserError(what, fix='make one folder for each class and put its images there'))
    above = ancestors(root)
    folders = {name: files_below(root, name, set(above), ignored, report) for name in class_names}
    return Listing(
        root=root,
        source=root,
        entries=[entry for entries in folders.values() for entry in entries],
        names=[name for name, entries in folders.items() for _ in entries],
        ignored=ignored,
        empty=tuple(name for name, entries in folders.items() if not entries),
    )


def _no_folder(root: str) -> UserError:
    if os.path.exists(root):
        return UserError(
            f'{printable(root)!r} is a file, not a folder',
            fix='name the folder that holds the class folders',
        )
    parent = root
    while not os.path.isdir(parent):
        wanted, parent = parent, os.path.dirname(parent)
    names = [name for name, _ in children(parent, '', Ignored(), stop)]
    beside = [name for name in names if os.path.isdir(f'{parent}/{name}')]
    fix = did_you_mean(os.path.basename(wanted), beside)
    if not fix.startswith('did'):
        fix = f'{printable(parent)!r} exists, but holds no {os.path.basename(wanted)!r}'
    return UserError(f'no such folder: {printable(root)!r}', fix=fix)


def _check_strays(root: str, names: list[str], report: Report) -> None:
    """Refuses images that lie beside the class folders, because they have no class."""
    images = []
    for name in names:
        if read_file(os.path.join(root, name)).is_image:
            images.append(printable(name))
        if len(images) > 3:
            break
    if images:
        shown = ', '.join(images[:3]) + (', ...' if len(images) > 3 else '')
        what = f'{printable(root)!r} holds images outside of class folders: {shown}'
        report(UserError(what, fix='make one folder for each class and move them there'))

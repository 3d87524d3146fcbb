"""Class folders to a list of files with their classes.

    root/red/a.jpg  root/red/night/b.png  root/green/c.webp

Each folder in the root is a class; folders inside a class, to any depth, belong to it.
What counts as an image is decided by content: a file with an image's extension that is none, or a
picture in a format that is not read, is a bad image; other files are ignored and counted. So are
hidden entries and the folders of `walk.IGNORED_FOLDERS`. Links are followed; a folder that they
lead to several times is read once for each class.
"""

import os

from tlflax.data.inputs.listing import Listing
from tlflax.data.inputs.walk import Ignored, Report, stop, walk


def list_folder(root: str | os.PathLike[str], *, key: str, report: Report = stop) -> Listing:
    """Lists a folder of class folders.

    Args:
        root: The folder that holds one folder for each class.
        key: The configuration key that gave `root`, for messages.
        report: Is given each fault, see `walk`. Raises it by default.

    Raises:
        UserError: No such folder.
    """
    root = os.path.abspath(os.path.expanduser(os.fspath(root)))
    ignored = Ignored()
    folders = walk(root, key=key, ignored=ignored, report=report)
    return Listing(
        root=root,
        source=root,
        entries=[entry for entries in folders.values() for entry in entries],
        names=[name for name, entries in folders.items() for _ in entries],
        ignored=ignored,
        empty=tuple(name for name, entries in folders.items() if not entries),
    )

"""Zip archives and `.npz` files from outside: what they announce is checked before it is read."""

import io
import math
import os
import zipfile

import numpy as np

ANY = 1 << 62  # bytes that no file has
_PACKING = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others can ask for any amount of memory


def most_bytes(file_bytes: int, most: int = ANY) -> int:
    """Returns how many bytes of contents a file of some size may announce.

    Weights hardly compress: a file that announces more is damaged, or made to fill the memory.

    Args:
        file_bytes: The size of the file.
        most: What it may have anyway.
    """
    return min((1 << 28) + 8 * file_bytes, most)


def check_announced(announced: int, most: int) -> None:
    """Refuses contents that are too large for their file, or for whom they are meant.

    Raises:
        ValueError: It is more than `most`, see `most_bytes`.
    """
    if announced > most:
        raise ValueError(f'it announces {announced:,} bytes, and {most:,} are expected at most')


def check_zip(archive: zipfile.ZipFile, most: int) -> None:
    """Refuses archives that would unpack to more than `most` bytes, before anything is unpacked.

    Raises:
        ValueError: Says why.
    """
    members = archive.infolist()
    if unknown := [member.filename for member in members if member.compress_type not in _PACKING]:
        raise ValueError(f'{unknown[0]!r} is packed in a way that is not read here')
    check_announced(sum(member.file_size for member in members), most)


def read_npz(path: str | os.PathLike[str], most: int = ANY) -> dict[str, np.ndarray]:
    """Reads all arrays of an `.npz` file, each with its checksum.

    Args:
        path: The file.
        most: The most bytes of its arrays, where a file of its size could have more.

    Raises:
        ValueError: An array is damaged or announces another size than it has.
        Exception: Of many types, from `zipfile` and NumPy on a damaged file.
    """
    with zipfile.ZipFile(path) as archive:
        check_zip(archive, most_bytes(os.path.getsize(path), most))
        return {
            member.filename.removesuffix('.npy'): _array(archive, member)
            for member in archive.infolist()
        }


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        head = file.read(io.DEFAULT_BUFFER_SIZE)
        start = io.BytesIO(head)
        version = np.lib.format.read_magic(start)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(start)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(start)
        size = math.prod(shape) * dtype.itemsize
        # `zipfile` compares the checksum at the end of a member, which has to be reached.
        if min(shape, default=0) < 0 or start.tell() + size != member.file_size:
            raise ValueError(f'{member.filename!r} announces another size than it has')
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)

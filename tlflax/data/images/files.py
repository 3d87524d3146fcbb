"""Describes a file before and after it is read: by the file system, and by its contents."""

import os
from typing import NamedTuple


class Entry(NamedTuple):
    """A file as the file system describes it.

    Attributes:
        path: Relative to the root of its listing, with '/' between the parts, or absolute.
        size: Bytes; -1 where the file cannot be described, for example a broken link.
        mtime_ns: Time of the last change of the contents.
        ctime_ns: Time of the last change of anything. Shows contents that were replaced by others
            of the same size and whose old modification time was restored.
    """

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, path: str, status: os.stat_result | None) -> 'Entry':
        """Returns the entry of a path; a status of None stands for a broken link."""
        if status is None:
            return cls(path, -1, 0, 0)
        return cls(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class ScannedFile(NamedTuple):
    """What reading a file showed: an image, a fault, or neither (a stray file, to be ignored).

    The fields from `digest` on describe a good image and are empty for all other files.

    Attributes:
        kind: What the bytes are, see `tlflax.data.images.sniff.sniff`.
        fault: Why the image cannot be used; '' for a good image and for a stray file.
        digest: SHA-256 of the bytes, in hexadecimal.
        format: Pillow's name: JPEG, MPO, PNG, GIF, BMP, WEBP, TIFF or PPM.
        mode: Pillow's color mode of the file (RGB, L, P, CMYK, RGBA, I;16, ...).
        width: Pixels, after orientation.
        height: Pixels, after orientation.
        orientation: The EXIF value, 1 (upright) to 8.
        plain_jpeg: A JPEG that TensorFlow's decoder reads to the same pixels: baseline or
            progressive Huffman coding, 8 bits, 1 or 3 components, upright.
        flat: The picture is a single color, or nearly.
        perceptual_hash: See `tlflax.data.images.perceptual_hash`.
        thumbnail: The pixels that `perceptual_hash` is computed from, until it is: many are
            computed at once.
    """

    kind: str
    fault: str = ''
    digest: str = ''
    format: str = ''
    mode: str = ''
    width: int = 0
    height: int = 0
    orientation: int = 0
    plain_jpeg: bool = False
    flat: bool = False
    perceptual_hash: bytes = b''
    thumbnail: bytes = b''

    @property
    def is_good(self) -> bool:
        """Whether the file is an image that can be used."""
        return bool(self.digest)

    @property
    def is_image(self) -> bool:
        """Whether the file is an image, good or bad, and not a stray."""
        return bool(self.digest or self.fault)

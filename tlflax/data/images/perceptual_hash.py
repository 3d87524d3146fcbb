"""Perceptual hashes of 56 bytes: a DCT hash of the shapes, and a sketch of the colors.

The first 8 bytes are the 64-bit DCT hash of C. Zauner, "Implementation and benchmarking of
perceptual image hash functions" (2010), in the form of the Python library imagehash (`phash`): gray
values of a thumbnail, their discrete cosine transform, and a bit for each of its 8x8 lowest
frequencies, set where the coefficient is above their median. Copies that were scaled or
recompressed keep nearly all bits. The thumbnail has 16x16 pixels, not 32x32: these frequencies need
no more, and small images need not be decoded at full size. The DCT hash is blind to color, so a
sketch follows it: the mean colors of 4x4 fields, which tell a red light from a green one.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, UInt8, UInt64
from PIL import Image

SIDE = 16  # pixels of the thumbnail
FIELDS = 4  # of the sketch, along each side
BYTES = 8 + 3 * FIELDS * FIELDS

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's mode L
_FLAT = 4.0  # spread of gray values, of 255, below which an image has no shapes to compare


def _cosines(frequencies: int) -> Float32[np.ndarray, 'f side']:
    """The lowest rows of the orthonormal DCT-II matrix."""
    angles = np.outer(np.arange(frequencies), 2 * np.arange(SIDE) + 1) * np.pi / (2 * SIDE)
    cosines = np.sqrt(2 / SIDE) * np.cos(angles)
    cosines[0] = np.sqrt(1 / SIDE)
    return cosines.astype(np.float32)


_COSINES = _cosines(8)


def thumbnail(
    image: Image.Image, box: tuple[float, float, float, float] | None = None
) -> Image.Image:
    """Squeezes an RGB image, or a part of it, to `SIDE` x `SIDE` pixels.

    Bilinear, because Pillow's box filter takes whole pixels only, and the thumbnail of a small
    copy would differ from that of the original.
    """
    return image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box)


def compute(thumbnails: Sequence[bytes]) -> list[bytes]:
    """Computes the perceptual hashes of many thumbnails at once: NumPy's calls take most time.

    Args:
        thumbnails: The pixels of RGB thumbnails; an empty one gives an empty hash.

    Returns:
        `BYTES` bytes each: 8 of DCT hash, which are 0 where the image is too flat to have one,
        then the sketch, rows of fields, RGB each.
    """
    given = [thumb for thumb in thumbnails if thumb]
    pixels = np.frombuffer(b''.join(given), np.uint8).astype(np.float32)
    gray = (pixels.reshape(-1, 3) @ _LUMA).reshape(-1, SIDE, SIDE)
    low = (_COSINES @ gray @ _COSINES.T).reshape(-1, 64)
    flat = np.square(low[:, 1:]).sum(axis=1) < (_FLAT * SIDE) ** 2  # Parseval: this is the variance
    low = np.rint(low)  # zeros that rounding errors made nonzero
    middle = np.partition(low, (31, 32), axis=1)[:, 31:33].mean(axis=1)
    bits = np.packbits(low > middle[:, None], axis=1)
    bits[flat] = 0
    each = SIDE // FIELDS
    rows = pixels.reshape(-1, FIELDS, each, 3 * SIDE).sum(axis=2)
    fields = rows.reshape(-1, FIELDS, FIELDS, each, 3).sum(axis=3) / each**2
    sketches = np.rint(fields).astype(np.uint8).reshape(-1, BYTES - 8)
    blob = np.concatenate([bits, sketches], axis=1).tobytes()
    made = (blob[at : at + BYTES] for at in range(0, len(blob), BYTES))
    return [next(made) if thumb else b'' for thumb in thumbnails]


def stack(perceptual_hashes: Sequence[bytes]) -> UInt8[np.ndarray, 'n bytes']:
    """Makes a row of each perceptual hash; of zeros where it is missing."""
    joined = b''.join(one or bytes(BYTES) for one in perceptual_hashes)
    return np.frombuffer(joined, np.uint8).reshape(-1, BYTES)


def dct_hashes(rows: UInt8[np.ndarray, 'n bytes']) -> UInt64[np.ndarray, ' n']:
    """Returns the DCT hash in each row, the first frequency in the highest bit."""
    return np.ascontiguousarray(rows[:, :8]).view('>u8')[:, 0].astype(np.uint64)


def sketches(rows: UInt8[np.ndarray, 'n bytes']) -> UInt8[np.ndarray, 'n 48']:
    """Returns the color sketch in each row."""
    return rows[:, 8:]

"""What an image looks like, in 56 bytes: a perceptual hash and a sketch of its colors.

The hash is the 64-bit DCT hash of C. Zauner, "Implementation and benchmarking of perceptual image
hash functions" (2010), in the form of the Python library imagehash (`phash`): gray values of a
thumbnail, their discrete cosine transform, and of its 8x8 lowest frequencies one bit each, set
where the coefficient is above their median. Copies that were scaled or recompressed keep nearly
all bits. The thumbnail has 16x16 pixels, not 32x32: these frequencies need no more, and
small images need not be decoded at full size. The hash is blind to color, so a sketch goes with
it: the mean colors of 4x4 fields, which tell a red light from a green one.
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

    Bilinear, for Pillow's box filter takes whole pixels only, and the thumbnail of a small copy
    would be another than that of the original.
    """
    return image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box)


def describe(thumbnails: Sequence[bytes]) -> list[bytes]:
    """Returns looks, `BYTES` long: 8 bytes of hash, then the sketch, rows of fields, RGB each.

    Many at once, for NumPy takes longer to call than to compute. The hash is 0 where the image is
    too flat to have one.

    Args:
        thumbnails: The pixels of RGB thumbnails; an empty one gives an empty look.
    """
    given = [thumb for thumb in thumbnails if thumb]
    pixels = np.frombuffer(b''.join(given), np.uint8).astype(np.float32)
    gray = (pixels.reshape(-1, 3) @ _LUMA).reshape(-1, SIDE, SIDE)
    low = (_COSINES @ gray @ _COSINES.T).reshape(-1, 64)
    flat = np.square(low[:, 1:]).sum(axis=1) < (_FLAT * SIDE) ** 2  # Parseval: this is the variance
    low = np.rint(low)  # what is zero but for rounding shall be zero
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


def table(looks: Sequence[bytes]) -> UInt8[np.ndarray, 'n bytes']:
    """Puts looks one below the other; a missing one is flat and black."""
    joined = b''.join(look or bytes(BYTES) for look in looks)
    return np.frombuffer(joined, np.uint8).reshape(-1, BYTES)


def hashes(table: UInt8[np.ndarray, 'n bytes']) -> UInt64[np.ndarray, ' n']:
    """Returns the hashes of a table of looks, the first frequency in the highest bit."""
    return np.ascontiguousarray(table[:, :8]).view('>u8')[:, 0].astype(np.uint64)


def sketches(table: UInt8[np.ndarray, 'n bytes']) -> UInt8[np.ndarray, 'n 48']:
    """Returns the sketches of a table of looks."""
    return table[:, 8:]

"""Content addresses of the feature store: the keys of rows and the names of spaces."""

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt64

_VERSION = 1  # of the format on disk


def row_keys(digests: Sequence[str] | np.ndarray, view: str) -> UInt64[np.ndarray, 'n 2']:
    """Returns the keys of one view of some images.

    Args:
        digests: SHA-256 of each image's bytes, in hex.
        view: The name of the view; '' for the plain image.
    """
    images = np.frombuffer(bytes.fromhex(''.join(digests)), '<u8').reshape(-1, 4)
    salt = np.frombuffer(hashlib.sha256(view.encode()).digest(), '<u8')
    return images[:, :2] ^ salt[:2]


def describe(
    space: Mapping[str, object], row_shape: Sequence[int], dtype: str, segment_rows: int
) -> tuple[str, str]:
    """Describes a space.

    Args:
        space: Everything that determines a row apart from the image; values that JSON knows.
        row_shape: The shape of one row.
        dtype: 'float16', 'bfloat16' or 'float32'.
        segment_rows: Rows of a segment.

    Returns:
        The name of its folder (16 hex digits) and the contents of its space.json.
    """
    whole = {
        'space': dict(space),
        'row_shape': list(row_shape),
        'dtype': dtype,
        'segment_rows': segment_rows,
        'version': _VERSION,
    }
    text = json.dumps(whole, sort_keys=True, indent=2) + '\n'
    return hashlib.sha256(text.encode()).hexdigest()[:16], text

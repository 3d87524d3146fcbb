"""Properties of image files that say nothing about what a picture shows, as numbers to count."""

import dataclasses
import itertools
import os
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Float, Int64

from tlflax.data.images.files import ScannedFile

PROPERTIES = {
    'format': 'file format',
    'mode': 'color mode',
    'size': 'image size',
    'aspect_ratio': 'aspect ratio',
    'exif_orientation': 'EXIF orientation',
    'file_name': 'pattern of the file names',
}
OWN = 5  # images with the same width and height, or aspect ratio, from which it is a value itself
BIN = 10  # images in each bin of the others, at least
BINS = 100  # at most

_DIGITS = re.compile(r'\d+')
_WORD = re.compile(r'[^\W\d_]+')


@dataclasses.dataclass(frozen=True, eq=False)
class Values:
    """The value that each image has of one property.

    Attributes:
        names: The values, for people.
        codes: Rows of `names`, one for each image.
    """

    names: list[str]
    codes: Int64[np.ndarray, ' n']


def values_of(
    files: Sequence[ScannedFile], paths: Sequence[str], class_names: Sequence[str]
) -> dict[str, Values]:
    """Returns the values of all `PROPERTIES`; which class an image has changes none of them.

    Args:
        files: Good images.
        paths: Where they are; folders are ignored.
        class_names: All classes: their words are left out of the file names.
    """
    width = np.array([file.width for file in files], np.int64)
    height = np.array([file.height for file in files], np.int64)
    aspect = width / np.maximum(height, 1)
    return {
        'format': _coded(file.format for file in files),
        'mode': _coded(file.mode for file in files),
        'size': _binned(
            (width << 32) + height,
            (width * height).astype(np.float64),
            lambda row: f'{width[row]}x{height[row]}',
            '{:,.0f} to {:,.0f} pixels',
        ),
        'aspect_ratio': _binned(
            np.rint(100 * aspect).astype(np.int64),
            aspect,
            lambda row: f'{aspect[row]:.2f}',
            '{:.2f} to {:.2f}',
        ),
        'exif_orientation': _coded(str(file.orientation) for file in files),
        'file_name': _patterns(paths, class_names),
    }


def _coded(values: Iterable[str]) -> Values:
    known: dict[str, int] = {}
    codes = np.array([known.setdefault(value, len(known)) for value in values], np.int64)
    return Values(list(known), codes)


def _binned(
    exact: Int64[np.ndarray, ' n'],
    measure: Float[np.ndarray, ' n'],
    name: Callable[[np.integer], str],
    span: str,
) -> Values:
    """Keeps the values that many images share, and puts the others into bins of equal number.

    One value is the sign of a camera or a program, and bins find a class of larger pictures.

    Args:
        exact: Equal where the values are.
        measure: What the bins divide.
        name: Names the value of a row.
        span: Names a bin, from its ends.
    """
    _, rows, codes, counts = np.unique(
        exact, return_index=True, return_inverse=True, return_counts=True
    )
    common = counts >= OWN
    names, rare = [name(row) for row in rows[common]], ~common[codes]
    codes = np.cumsum(common)[codes] - 1
    if rare.any():
        others = measure[rare]
        bins = min(max(len(others) // BIN, 1), BINS)
        edges = np.quantile(others, np.linspace(0, 1, bins + 1))
        codes[rare] = len(names) + np.searchsorted(edges[1:-1], others, 'right')
        names += [span.format(low, high) for low, high in itertools.pairwise(edges)]
    return Values(names, codes)


def _patterns(paths: Sequence[str], class_names: Sequence[str]) -> Values:
    """Returns names without folder and extension, numbers replaced by # and class names by *.

    Names of a pattern of their own, such as random letters, are one value together.
    """
    words = {_stem(word) for name in class_names for word in _WORD.findall(name)}
    words |= {_stem(''.join(_WORD.findall(name))) for name in class_names}
    stems = (os.path.splitext(os.path.basename(path))[0] for path in paths)
    coded = _coded(_DIGITS.sub('#', stem) for stem in stems)

    def plain(match: re.Match[str]) -> str:
        return '*' if _stem(match[0]) in words else match[0]

    merged = _coded(_WORD.sub(plain, name) for name in coded.names)
    codes = merged.codes[coded.codes]
    single = np.bincount(codes, minlength=len(merged.names))[codes] == 1
    codes[single] = len(merged.names)
    used, codes = np.unique(codes, return_inverse=True)
    names = [*merged.names, 'a name like no other']
    return Values([names[code] for code in used], codes)


def _stem(word: str) -> str:
    """Returns a word without case and plural: folders are often named dogs, and files dog.1."""
    return word.casefold().removesuffix('s')

"""Finds properties of files that tell the class, which the network may learn instead.

Each property alone predicts the class of each image by cross-validation: the most frequent class,
in the other folds, of the images with the same value. The same for each class against all others,
as a property may give away one class of many.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TypedDict

import numpy as np
from jaxtyping import Bool, Float, Int, Int64

from tlflax.data.audit.cross_validation import cross_validate, divide
from tlflax.data.audit.duplicates import Items
from tlflax.data.audit.problems import Item, Problem
from tlflax.data.audit.properties import PROPERTIES, Values, values_of
from tlflax.data.inputs.listing import Scan
from tlflax.utils.errors import printable

TELLING = 0.5  # of what guessing the most frequent gets wrong, the part a shortcut gets right
FEWEST = 20  # images, below which no shortcut is reported
FEWEST_TOLD = 5  # images of a class that it tells, below which a shortcut to it is not reported
CHANCE = 1e-4  # of reporting any shortcut of a split whose properties are random, about

_NAMED = 3  # classes or values in a sentence
_FIX = {
    'file_name': 'nothing is wrong if files are named after their class; otherwise the classes '
    'are of different origin, and the network may learn that instead',
    'size': 'crop or take the images of all classes alike, or the network may learn that instead',
    'exif_orientation': 'make sure that the classes were not photographed differently, or the '
    'network may learn that instead',
}
_FIX['aspect_ratio'] = _FIX['size']
_CONVERT = 'convert all images alike, or the network may learn that instead'


class ClassFigures(TypedDict):
    """How well a property tells a class from all others; precision is None if it never does."""

    accuracy: float
    guessing: float
    recall: float
    precision: float | None


class Figures(TypedDict, total=False):
    """How well a property tells the class; see `docs/data.md`."""

    accuracy: float
    guessing: float
    classes: dict[str, ClassFigures]


@dataclasses.dataclass(frozen=True, eq=False)
class Told:
    """What one property tells, by cross-validation.

    Attributes:
        key: A key of `PROPERTIES`.
        values: What each image has of it.
        labels: Rows of `class_names`.
        class_names: Class names, all of which have images.
        paths: Of the images, below the root.
        right: Whether the property tells the image's class.
        own: Whether it tells the image's class from all others.
        claimed: How many images it takes for one of each class, rather than of all others.
    """

    key: str
    values: Values
    labels: Int64[np.ndarray, ' n']
    class_names: Sequence[str]
    paths: Sequence[str]
    right: Bool[np.ndarray, ' n']
    own: Bool[np.ndarray, ' n']
    claimed: Int64[np.ndarray, ' c']

    @property
    def sizes(self) -> Int[np.ndarray, ' c']:
        """Images of each class."""
        return np.bincount(self.labels, minlength=len(self.class_names))

    @property
    def hits(self) -> Int[np.ndarray, ' c']:
        """Images of each class that the property tells from all others."""
        return np.bincount(self.labels[self.own], minlength=len(self.class_names))

    @property
    def right_of_class(self) -> Int[np.ndarray, ' c']:
        """Images of which it tells whether they are of each class."""
        return len(self.labels) - (self.sizes + self.claimed - 2 * self.hits)

    @property
    def guessed_of_class(self) -> Int[np.ndarray, ' c']:
        """Images of which guessing the same always tells that."""
        return np.maximum(self.sizes, len(self.labels) - self.sizes)

    def figures(self, *, classes: bool) -> Figures:
        """Returns accuracies for JSON, those of each class if asked for."""
        total = len(self.labels)

        def share(part: int | np.integer, of: int | np.integer) -> float:
            return round(float(part / of), 4)

        found: Figures = {
            'accuracy': share(self.right.sum(), total),
            'guessing': share(self.sizes.max(), total),
        }
        if classes:
            columns = self.right_of_class, self.guessed_of_class, self.hits, self.sizes
            rows = zip(self.class_names, *columns, self.claimed, strict=True)
            found['classes'] = {
                name: {
                    'accuracy': share(right, total),
                    'guessing': share(guessed, total),
                    'recall': share(hits, size),
                    'precision': share(hits, claimed) if claimed else None,
                }
                for name, right, guessed, hits, size, claimed in rows
            }
        return found


def measure(scan: Scan) -> list[Told]:
    """Returns what each property of a split's good images tells; nothing where there are none."""
    rows = [(entry.path, name, file) for entry, name, file in scan.rows() if file.is_good]
    if not rows:
        return []
    paths, names, files = map(list, zip(*rows, strict=True))
    class_names = sorted(set(names))
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = np.array([label_of[name] for name in names], np.int64)
    folds = divide(labels, [file.digest for file in files])
    return [
        Told(key, values, labels, class_names, paths, *cross_validate(values.codes, labels, folds))
        for key, values in values_of(files, paths, class_names).items()
    ]


def problems(split: str, found: Sequence[Told]) -> Iterator[Problem]:
    """Yields the properties that tell some classes from all others, or the class of most images."""
    for told in found:
        total, sizes = len(told.labels), told.sizes
        if total < FEWEST or len(sizes) < 2:
            continue
        tests = len(found) * (1 + len(sizes))
        given = _given_away(told, tests)
        right, blind = np.array([told.right.sum()]), sizes.max(keepdims=True)
        evidence = _nats(right, np.array([total]), blind / total)
        all_told = bool(_telling(right, blind, total, evidence, tests)[0])
        if given.any() and not (given.all() and all_told):
            yield _of_classes(split, told, np.flatnonzero(given))
        elif all_told:
            yield _of_all(split, told)


def _given_away(told: Told, tests: int) -> Bool[np.ndarray, ' c']:
    """Whether the property tells each class from all others."""
    total, sizes, hits = len(told.labels), told.sizes, told.hits
    evidence = _nats(hits, told.claimed, sizes / total)
    evidence += _nats(sizes - hits, total - told.claimed, sizes / total)
    telling = _telling(told.right_of_class, told.guessed_of_class, total, evidence, tests)
    return telling & (hits >= FEWEST_TOLD)


def _telling(
    right: Int[np.ndarray, ' c'],
    guessed: Int[np.ndarray, ' c'],
    total: int,
    evidence: Float[np.ndarray, ' c'],
    tests: int,
) -> Bool[np.ndarray, ' c']:
    """Whether a property tells much, and more than chance lets one of so many tests tell."""
    much = (right - guessed >= TELLING * (total - guessed)) & (guessed < total)
    return much & (evidence >= np.log(tests / CHANCE))


def _nats(
    hits: Int[np.ndarray, ' c'], of: Int[np.ndarray, ' c'], share: Float[np.ndarray, ' c']
) -> Float[np.ndarray, ' c']:
    """Chernoff's bound: chance gives so many hits with a probability of at most exp(-this)."""
    rate = hits / np.maximum(of, 1)
    with np.errstate(divide='ignore', invalid='ignore'):
        yes, no = rate * np.log(rate / share), (1 - rate) * np.log((1 - rate) / (1 - share))
    return of * (np.where(rate > 0, yes, 0) + np.where(rate < 1, no, 0))


def _of_all(split: str, told: Told) -> Problem:
    rows = np.flatnonzero(told.right)
    right, total, blind = len(rows), len(told.labels), int(told.sizes.max())
    pairs, counts = np.unique(
        np.stack([told.values.codes[rows], told.labels[rows]]), axis=1, return_counts=True
    )
    most = pairs[:, np.argsort(-counts, kind='stable')[:_NAMED]].T
    words = ', '.join(f'{_value(told, v)}: {printable(told.class_names[c])}' for v, c in most)
    what = (
        f'{split}: the {PROPERTIES[told.key]} alone tells the class of {right:,} of {total:,} '
        f'images ({words}): {right / total:.1%} in cross-validation, {blind / total:.1%} by '
        'guessing the largest class'
    )
    return _problem(split, told, rows, what)


def _of_classes(split: str, told: Told, given: Int64[np.ndarray, ' m']) -> Problem:
    right, guessed = told.right_of_class, told.guessed_of_class
    given = given[np.argsort((guessed - right)[given], kind='stable')]
    words = '; '.join(_of_class(told, label) for label in given[:_NAMED])
    more = f'; and {len(given) - _NAMED:,} more classes' if len(given) > _NAMED else ''
    classes = 'one class' if len(given) == 1 else f'{len(given):,} classes'
    what = (
        f'{split}: the {PROPERTIES[told.key]} alone tells {classes} from all others: {words}{more}'
    )
    return _problem(split, told, np.flatnonzero(told.own & np.isin(told.labels, given)), what)


def _of_class(told: Told, label: np.integer) -> str:
    """Names a class, its most telling value, and how well it is told."""
    codes, inside = told.values.codes, told.labels == label
    value = np.bincount(codes[inside & told.own]).argmax()
    having = int((codes == value).sum())
    size, total = int(inside.sum()), len(inside)
    of_class = int((codes[inside] == value).sum())
    right, guessed = told.right_of_class[label] / total, told.guessed_of_class[label] / total
    return (
        f'{printable(told.class_names[int(label)])!r} ({_value(told, value)}: {of_class:,} of its '
        f'{size:,} images, {having - of_class:,} of the {total - size:,} others; {right:.1%} right '
        f'in cross-validation, {guessed:.1%} by guessing)'
    )


def _value(told: Told, code: np.integer) -> str:
    return printable(told.values.names[int(code)])


def _problem(split: str, told: Told, rows: Int64[np.ndarray, ' m'], what: str) -> Problem:
    codes, property_name = told.values.codes, PROPERTIES[told.key]

    def item(at: int) -> Item:
        row = rows[at]
        fault = f'has the {property_name} {_value(told, codes[row])}'
        return {'split': split, 'path': printable(told.paths[row]), 'fault': fault}

    fix = _FIX.get(told.key, _CONVERT)
    return Problem('shortcut', 'warning', len(rows), what, fix, Items(len(rows), item))

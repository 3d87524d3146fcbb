"""The images of a table that are most similar to given ones, by the cosine of their vectors."""

import csv
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int64

from tlflax.data.table import ImageTable
from tlflax.features import programs
from tlflax.inference import embeddings
from tlflax.inference.prediction import Images, print_each
from tlflax.inference.predictor import in_blocks
from tlflax.inference.splits import load_split
from tlflax.inference.trained import Trained
from tlflax.utils.errors import UserError, did_you_mean, printable
from tlflax.utils.files import JsonObject, dump_json

FORMATS = ('text', 'json', 'csv')
"""How neighbors are printed."""

_BLOCK = 2**22  # numbers of an array at once, 32 MB: bounds memory


class Nearest(NamedTuple):
    """The nearest vectors of each query, the nearest first.

    Attributes:
        rows: Which they are.
        similarities: The cosine of the angle to each.
    """

    rows: Int64[np.ndarray, 'q k']
    similarities: Float64[np.ndarray, 'q k']


def nearest(
    queries: Float[np.ndarray, 'q d'], vectors: Float[np.ndarray, 'n d'], k: int
) -> Nearest:
    """Returns the `k` vectors, or all if there are fewer, with the greatest cosine similarity.

    All are compared, in float64, block by block. A vector of zeros has the similarity 0 to all.
    """
    k = min(k, len(vectors))
    step = max(1, _BLOCK // max(1, queries.shape[1]))
    parts = [_of_some(queries[i : i + step], vectors, k) for i in range(0, len(queries), step)]
    if not parts:
        return Nearest(np.zeros((0, k), np.int64), np.zeros((0, k)))
    return Nearest(*map(np.concatenate, zip(*parts, strict=True)))


def _of_some(
    queries: Float[np.ndarray, 'q d'], vectors: Float[np.ndarray, 'n d'], k: int
) -> Nearest:
    """Returns what `nearest` does, for queries of which one array fits the memory."""
    unit = _unit(queries)
    rows, similarities = np.zeros((len(unit), 0), np.int64), np.zeros((len(unit), 0))
    step = max(1, _BLOCK // max(len(unit), unit.shape[1]))
    for start in range(0, len(vectors), step):
        found = unit @ _unit(vectors[start : start + step]).T
        new = np.broadcast_to(np.arange(start, start + found.shape[1]), found.shape)
        rows, similarities = np.hstack([rows, new]), np.hstack([similarities, found])
        if rows.shape[1] > k:
            best = np.argpartition(-similarities, k - 1, axis=1)[:, :k]
            rows = np.take_along_axis(rows, best, 1)
            similarities = np.take_along_axis(similarities, best, 1)
    order = np.lexsort((rows, -similarities))  # equal ones by their rows
    return Nearest(*(np.take_along_axis(a, order, 1) for a in (rows, similarities)))


def _unit(x: Float[np.ndarray, 'n d']) -> Float64[np.ndarray, 'n d']:
    x = x.astype(np.float64)
    length = np.sqrt(np.einsum('nd,nd->n', x, x))
    return x / np.where(length > 0, length, 1)[:, None]


class Neighbor(NamedTuple):
    """An image near another.

    Attributes:
        path: Where it is.
        label: Its class.
        similarity: The cosine of the angle between both vectors.
    """

    path: str
    label: str
    similarity: float


class Found(NamedTuple):
    """An image and the images near it.

    Attributes:
        path: Of the image; '' where it was not a file.
        neighbors: The nearest first.
    """

    path: str
    neighbors: list[Neighbor]


def of_table(table: ImageTable, found: Nearest) -> list[list[Neighbor]]:
    """Returns the neighbors of each query, for vectors of a table's images."""
    return [
        [
            Neighbor(table.paths[row], table.class_names[table.labels[row]], similarity)
            for row, similarity in zip(*query, strict=True)
        ]
        for query in zip(found.rows.tolist(), found.similarities.tolist(), strict=True)
    ]


def of_images(
    trained: Trained, table: ImageTable, images: Images, k: int
) -> Iterator[Found | UserError]:
    """Yields each image with its `k` nearest images of a table, as they come.

    Args:
        trained: The classifier, whose vectors are compared; see `tlflax.inference.embeddings`.
        table: The images among which they are.
        images: See `Trained.predict`.
        k: How many, at least 1.

    Yields:
        The image and its neighbors; or the error of an image that cannot be used.
    """
    vectors = embeddings.of_table(trained, table, name='training')
    outcomes = embeddings.of_images(trained, images)
    for block in in_blocks(outcomes, programs.batch_size()):
        good = [one[1] for one in block if not isinstance(one, UserError)]
        every: Iterator[list[Neighbor]] = iter(())
        if good:
            every = iter(of_table(table, nearest(np.stack(good), vectors, k)))
        for one in block:
            yield one if isinstance(one, UserError) else Found(one[0].path, next(every))


def check(count: str, form: str) -> tuple[int, str]:
    """Returns the number of neighbors and the format that a command line asks for, checked.

    Raises:
        UserError: It is not a number, or not a format.
    """
    number = int(count) if count.isdecimal() and count.isascii() else 0
    if not 0 < number < 2**31:
        raise UserError(f'{printable(count)!r} is not a number from 1', where='--k', fix='give 5')
    if form not in ('', *FORMATS):
        what = f'{printable(form)!r} is not a format of this list'
        raise UserError(what, where='--format', fix=did_you_mean(form, FORMATS))
    return number, form or 'text'


def show(trained: Trained, images: Images, k: int, form: str) -> None:
    """Prints each image with the `k` nearest training images of its run, as they come.

    Args:
        trained: The classifier.
        images: See `Trained.predict`.
        k: How many.
        form: One of `FORMATS`; see `printer`.

    Raises:
        UserError: The training images cannot be read; or, at the end, some image could not be used.
    """
    table = load_split(trained, 'train')
    print_each(of_images(trained, table, images, k), printer(form), 'read')


def printer(form: str) -> Callable[[Found], Any]:
    """Returns what prints an image and its neighbors on stdout; prints the header of a CSV.

    Args:
        form: 'text', 'json' (an object for each image, on one line) or 'csv' (a line for each
            neighbor).
    """
    if form == 'csv':
        lines = csv.writer(sys.stdout)
        lines.writerow(['path', 'rank', 'nearest', 'class', 'similarity'])
        return lambda one: lines.writerows(
            [one.path, rank, *neighbor] for rank, neighbor in enumerate(one.neighbors, start=1)
        )
    if form == 'json':
        return lambda one: print(dump_json({'path': one.path, 'nearest': _plain(one.neighbors)}))
    return lambda one: print('\n'.join([one.path, *map(_line, one.neighbors)]))


def _plain(neighbors: Iterable[Neighbor]) -> list[JsonObject]:
    return [
        {'path': one.path, 'class': one.label, 'similarity': one.similarity} for one in neighbors
    ]


def _line(neighbor: Neighbor) -> str:
    return f'  {neighbor.path}  {neighbor.label}  {neighbor.similarity:.4f}'

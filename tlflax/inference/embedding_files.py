"""The vectors of a table's images as a file: NumPy, CSV or Parquet.

For each image in the table's order: `path`, `label` (the name of its class), `digest` (SHA-256 of
the file) and the vector, float32. In .npz and Parquet it is the column `features`; in a CSV the
columns `feature0`, `feature1`, ..., with as many digits as float32 needs.
"""

import contextlib
import csv
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from tlflax.data.splits.load import load_table
from tlflax.data.table import ImageTable
from tlflax.inference import embeddings
from tlflax.inference.mistakes import check_writable
from tlflax.inference.splits import load_split
from tlflax.inference.trained import Trained
from tlflax.utils.errors import UserError, as_user_error, did_you_mean, located
from tlflax.utils.files import replacing

Vectors = Iterator[Float32[np.ndarray, 'b d']]

_GROUP = 2**22  # numbers of a row group, 16 MB


def choose_format(path: str, form: str = '') -> str:
    """Returns the format of a file that is to be written, and checks that it can be.

    Args:
        path: The file.
        form: A key of `FORMATS`; '': the one that the file's name ends with.

    Raises:
        UserError: There is no such format, or the file cannot be written.
    """
    if not path:
        raise UserError('no file is named', where='--output', fix='give one, such as features.npz')
    chosen = form or Path(path).suffix.removeprefix('.')
    if chosen not in FORMATS:
        what = f'{chosen!r} is not a format' if chosen else 'its name says no format'
        raise UserError(
            f'{what} of features',
            where='--format' if form else path,
            fix=did_you_mean(chosen, FORMATS) + ('' if form else ', or give --format'),
        )
    check_writable(path)
    return chosen


def save(
    trained: Trained, path: str, form: str, split: str, data: str = '', *, full: bool = False
) -> str:
    """Writes the vectors of a split's images, and returns a sentence that says so.

    Args:
        trained: The classifier; see `tlflax.inference.embeddings`.
        path: The file.
        form: A key of `FORMATS`.
        split: A key of `tlflax.inference.splits.NAMES`.
        data: Other images, of any classes, in place of the split; see docs/data.md.
        full: See `embeddings.of_table`.

    Raises:
        UserError: See `load_split` and `write`.
    """
    if data:
        with located('--data'):
            table = load_table(data, data=trained.config.data)
    else:
        table = load_split(trained, split)
    write(trained, table, path, form, full=full)
    size = embeddings.dimension(trained, full=full)
    return f'{path} has {size} features of each of {len(table)} images'


def write(trained: Trained, table: ImageTable, path: str, form: str, *, full: bool = False) -> None:
    """Writes the vectors of a table's images in bounded memory; the file is whole or not there.

    Raises:
        UserError: The file cannot be written, or images cannot be read.
    """
    size = embeddings.dimension(trained, full=full)
    with (
        as_user_error('cannot be written: {reason}', where=path, fix='name another', of=(OSError,)),
        replacing(Path(path)) as partial,
        contextlib.closing(embeddings.batches(trained, table, full=full)) as vectors,
    ):
        FORMATS[form](partial, table, vectors, size)


def _columns(table: ImageTable) -> dict[str, list[str]]:
    """Returns the columns of text, with a replacement character for bytes that are no text."""
    names = [table.class_names[label] for label in table.labels.tolist()]
    return {
        'path': [os.fsencode(path).decode(errors='replace') for path in table.paths],
        'label': [os.fsencode(name).decode(errors='replace') for name in names],
        'digest': table.digests.tolist(),
    }


def _write_npz(path: Path, table: ImageTable, vectors: Vectors, size: int) -> None:
    with zipfile.ZipFile(path, 'w') as archive:
        for name, values in _columns(table).items():
            with archive.open(f'{name}.npy', 'w', force_zip64=True) as file:
                np.lib.format.write_array(file, np.array(values, str), allow_pickle=False)
        with archive.open('features.npy', 'w', force_zip64=True) as file:
            header = {'descr': '<f4', 'fortran_order': False, 'shape': (len(table), size)}
            np.lib.format.write_array_header_1_0(file, header)
            for block in vectors:
                file.write(np.ascontiguousarray(block, '<f4').tobytes())


def _write_csv(path: Path, table: ImageTable, vectors: Vectors, size: int) -> None:
    rows = zip(*_columns(table).values(), strict=True)
    with path.open('w', newline='', encoding='utf-8') as file:
        lines = csv.writer(file)
        lines.writerow(['path', 'label', 'digest', *(f'feature{n}' for n in range(size))])
        for block in vectors:
            for vector in block:
                lines.writerow([*next(rows), *(f'{value:.9g}' for value in vector.tolist())])


def _write_parquet(path: Path, table: ImageTable, vectors: Vectors, size: int) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    columns = _columns(table)
    kind = pa.list_(pa.field('element', pa.float32(), nullable=False), size)
    fields = [*((name, pa.string()) for name in columns), ('features', kind)]
    schema = pa.schema([pa.field(name, type, nullable=False) for name, type in fields])
    done = 0
    with parquet.ParquetWriter(path, schema) as writer:
        for block in _grouped(vectors):
            here = [pa.array(c[done : done + len(block)]) for c in columns.values()]
            flat = pa.array(np.ascontiguousarray(block).reshape(-1))
            here.append(pa.FixedSizeListArray.from_arrays(flat, type=kind))
            writer.write_table(pa.Table.from_arrays(here, schema=schema))
            done += len(block)


def _grouped(vectors: Vectors) -> Vectors:
    """Joins blocks of vectors to those of about `_GROUP` numbers."""
    waiting: list[Any] = []
    for block in vectors:
        waiting.append(block)
        if sum(part.size for part in waiting) >= _GROUP:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)


FORMATS: dict[str, Callable[[Path, ImageTable, Vectors, int], None]] = {
    'npz': _write_npz,
    'csv': _write_csv,
    'parquet': _write_parquet,
}
"""What writes the vectors of a table's images, by the ending of the file's name."""

"""What a run predicts for images that it was not trained on, and what the run cost."""

import csv
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from tlflax.data.inputs.listing import Announced
from tlflax.data.splits.stratify import units
from tlflax.inference.restore import load
from tlflax.utils import trees
from tlflax.utils.errors import UserError, as_user_error
from tlflax.utils.files import JsonObject
from tlflax.workdir.files import read_result

FILE = 'predictions.csv'
"""In the workdir of a cross-validation, the prediction of every image by a run that held it out."""

_COLUMNS = ('repeat', 'path', 'digest', 'true_class')
_PROBABILITY = 'probability:'


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions of one run.

    Attributes:
        name: What the user calls the run.
        class_names: In the order of the probabilities.
        paths: Of the images.
        digests: SHA-256 of the files' bytes.
        labels: The true classes.
        probabilities: f64[n, classes].
        units: Names of the units of images (see `tlflax.data.splits.stratify`); None: not known.
        cost: `wall_seconds`, `parameters` (the number that was trained) and `epochs`; None where
            that is not known.
    """

    name: str
    class_names: tuple[str, ...]
    paths: np.ndarray
    digests: np.ndarray
    labels: Int[np.ndarray, ' n']
    probabilities: Float[np.ndarray, 'n classes']
    units: np.ndarray | None
    cost: JsonObject


def read(name: str, announced: Announced | None = None) -> Predictions:
    """Returns the predictions of a run for its validation images, or of a cross-validation.

    The run is restored, and features come from the cache. Of a cross-validation, the file of its
    predictions is read; those of several repeats are averaged.

    Args:
        name: The workdir.
        announced: Of which images the log need not tell again.

    Raises:
        UserError: The run is not finished, cannot be restored, or its images have changed; or the
            file is damaged.
    """
    folder = Path(name)
    if (folder / FILE).exists():
        return _read_file(name, folder)
    result = read_result(folder)
    if result is None and (folder / 'config.json').exists():
        raise UserError(
            'the run is not finished', where=name, fix='finish it by the command that began it'
        )
    classifier = load(folder)
    table, probabilities = classifier.predict_val(announced)
    trained = trees.flatten(classifier.trainable.params).values()
    return Predictions(
        name=name,
        class_names=classifier.class_names,
        paths=table.paths,
        digests=table.digests,
        labels=np.asarray(table.labels),
        probabilities=probabilities,
        units=None if table.groups is None else units(table),
        cost={**_cost(result or {}), 'parameters': sum(leaf.size for leaf in trained)},
    )


def _cost(result: JsonObject) -> JsonObject:
    return {'wall_seconds': result.get('wall_seconds'), 'epochs': result.get('epochs_run')}


def _read_file(name: str, folder: Path) -> Predictions:
    path = folder / FILE
    damaged = as_user_error(
        'the file is not a table of predictions ({reason})',
        where=str(path),
        fix='repeat the command that wrote it, in another workdir',
        of=(OSError, ValueError, csv.Error),
    )
    with damaged, open(path, newline='', encoding='utf-8', errors='surrogateescape') as file:
        reader = csv.DictReader(file, strict=True)
        columns = reader.fieldnames or ()
        names = [c.removeprefix(_PROBABILITY) for c in columns if c.startswith(_PROBABILITY)]
        if missing := [column for column in _COLUMNS if column not in columns]:
            raise ValueError(f'no column {missing[0]!r}')
        found = _mean(reader, names)
        labels = np.array([names.index(true) for _, _, true in found], np.int64)
        if not found:
            raise ValueError('it has no rows')
    return Predictions(
        name=name,
        class_names=tuple(names),
        paths=np.array([path for path, _, _ in found], object),
        digests=np.array([digest for _, digest, _ in found], object),
        labels=labels,
        probabilities=np.array(list(found.values())),
        units=None,
        cost=_cost_of_folds(folder),
    )


def _mean(
    rows: Iterable[dict[str, str]], names: Sequence[str]
) -> dict[tuple[str, str, str], Float[np.ndarray, ' classes']]:
    """Returns each image's mean probabilities over repeats, by (path, digest, true class)."""
    found: dict[tuple[str, str, str], list[list[float]]] = {}
    for row in rows:
        if None in row.values():
            raise ValueError('a row is cut off')
        key = row['path'], row['digest'], row['true_class']
        found.setdefault(key, []).append([float(row[f'{_PROBABILITY}{name}']) for name in names])
    return {key: np.mean(repeats, 0) for key, repeats in found.items()}


def _cost_of_folds(folder: Path) -> JsonObject:
    """Returns the seconds of all runs of a cross-validation together."""
    places = [*folder.glob('fold*'), *folder.glob('repeat*/fold*')]
    results = [result for place in places if (result := read_result(place)) is not None]
    seconds = [result['wall_seconds'] for result in results]
    return {'wall_seconds': sum(seconds) if seconds else None, 'epochs': None, 'parameters': None}

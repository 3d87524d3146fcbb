"""The images that several runs predict, found by what they contain and not by where they are."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from absl import logging
from jaxtyping import Float, Int

from tlflax.report.gather.predictions import Predictions
from tlflax.utils.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Shared:
    """Predictions of several runs for the same images.

    Attributes:
        class_names: In the order of the probabilities.
        paths: Where the first run found the images.
        labels: The true classes.
        units: Names of the images' units; see `tlflax.data.splits.stratify`.
        probabilities: One array for each run.
    """

    class_names: tuple[str, ...]
    paths: np.ndarray
    labels: Int[np.ndarray, ' n']
    units: np.ndarray
    probabilities: tuple[Float[np.ndarray, 'n classes'], ...]


def share(runs: Sequence[Predictions]) -> Shared:
    """Returns the predictions for the images, of one content and class, that all runs have.

    Where the images differ, says how many are shared.

    Raises:
        UserError: The runs have other classes, or no image in common.
    """
    first = runs[0]
    for run in runs[1:]:
        _check_classes(first, run)
    places = [_places(run) for run in runs]
    keys = list(_keys(first))
    rows = [row for row, key in enumerate(keys) if all(key in place for place in places)]
    if not rows:
        raise UserError(
            'these runs have no validation image in common',
            where=' and '.join(run.name for run in runs),
            fix='compare runs with the same data.val, or fold',
        )
    if any(place.keys() != {keys[row] for row in rows} for place in places):
        own = ', '.join(f'{run.name} has {len(run.paths)}' for run in runs)
        logging.warning('WARNING: compared on the %d images that they share: %s', len(rows), own)
    own_rows = [[place[keys[row]] for row in rows] for place in places]
    return Shared(
        class_names=first.class_names,
        paths=first.paths[rows],
        labels=first.labels[rows],
        units=_units(runs, own_rows),
        probabilities=tuple(
            run.probabilities[np.ix_(at, [run.class_names.index(c) for c in first.class_names])]
            for run, at in zip(runs, own_rows, strict=True)
        ),
    )


def _keys(run: Predictions) -> Sequence[tuple[str, str]]:
    names = [run.class_names[label] for label in run.labels]
    return list(zip(run.digests.tolist(), names, strict=True))


def _places(run: Predictions) -> dict[tuple[str, str], int]:
    """Returns the row of each content; copies have the same predictions."""
    return {key: row for row, key in enumerate(_keys(run))}


def _check_classes(first: Predictions, other: Predictions) -> None:
    ours, theirs = set(first.class_names), set(other.class_names)
    if differ := sorted(ours ^ theirs):
        name = first.name if differ[0] in ours else other.name
        raise UserError(
            f'its classes are not those of {first.name}: only {name} has {differ[0]!r}',
            where=other.name,
            fix='compare runs with the same classes',
        )


def _units(runs: Sequence[Predictions], rows: Sequence[list[int]]) -> np.ndarray:
    """Returns the units of the first run that knows groups; else each content is one."""
    for run, at in zip(runs, rows, strict=True):
        if run.units is not None:
            return run.units[at]
    return runs[0].digests[rows[0]]

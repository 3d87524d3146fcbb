"""Cross-validation (`data.fold='all'`): a run for each fold, and a prediction of every image.

Each fold is a workdir of its own below the given one, trained as any other run is. Nothing but its
own training images decides what it becomes, except that the step of a head trained by steps is
chosen by the fold that is held out, as `early_stopping` does in every run. With
`model.head='auto'`, the choice is made in each fold again, from its training images alone.
"""

import csv
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import logging
from jaxtyping import Float
from ml_collections import ConfigDict

from tlflax.config import parse
from tlflax.config.parse import to_dict
from tlflax.config.schema import Config
from tlflax.data.inputs.class_checks import some
from tlflax.data.splits.load import Splits, load_folds
from tlflax.data.table import ImageTable
from tlflax.inference.restore import load
from tlflax.sweep import auto
from tlflax.sweep.fold_statistics import METRICS, format_folds, over_folds, pooled
from tlflax.train import setup
from tlflax.train.metrics.table import format_table
from tlflax.train.result import format_calibration
from tlflax.train.run import train_and_evaluate
from tlflax.utils.errors import UserError
from tlflax.utils.files import (
    JsonObject,
    atomic_write,
    csv_text,
    is_signed,
    replacing,
    signed,
    write_json,
)
from tlflax.utils.parallel.mesh import require_one_process
from tlflax.workdir.files import Workdir, read_json, writing

_COLUMNS = ('repeat', 'fold', 'workdir', 'num_examples', 'train_examples', *METRICS)


@dataclasses.dataclass(frozen=True, eq=False)
class Fold:
    """One run of a cross-validation.

    Attributes:
        repeat: The number of the division into folds.
        number: The fold that is held out.
        name: Of its folder.
        splits: Its images.
    """

    repeat: int
    number: int
    name: str
    splits: Splits


def cross_validate(config: ConfigDict, workdir: str | Path) -> JsonObject:
    """Trains a classifier for each fold, or those that are left, and evaluates all together.

    Writes `folds.json`, `folds.csv` and `predictions.csv`, the out-of-fold prediction of every
    image.

    Args:
        config: As a config file's `get_config()` returns it, with `data.fold='all'`.
        workdir: Where to write; one that is finished is not written again.

    Returns:
        The contents of `folds.json`: `folds`, a row for each; `mean`, the mean of each metric over
        them and its 95 % interval; `pooled`, the metrics of all predictions together; `calibration`
        of them; `images`, and `never_held_out`, those that no fold holds out.

    Raises:
        UserError: The configuration or the data is at fault, or the workdir holds another run.
        tlflax.train.loop.Interrupted: SIGINT or SIGTERM was received, and the state is saved.
    """
    require_one_process('a cross-validation')
    resolved = setup.configure(config)
    if resolved.data.fold != 'all':
        raise UserError(
            'a cross-validation takes every fold', where='config.data.fold', fix="set it to 'all'"
        )
    work = Workdir(Path(workdir))
    with work.locked():
        resolved = work.check(resolved)
        report = _finished(work)
        if report is not None:
            logging.info('%s is finished; the result is in folds.json', work.path)
            return report
        folds = _folds(load_folds(resolved.data))
        work.claim(to_dict(resolved))
        for number, fold in enumerate(folds):
            logging.info('%s: run %d of %d', fold.name, number + 1, len(folds))
            _train(resolved, fold, work.path)
        return _write(resolved, folds, work)


def _finished(work: Workdir) -> JsonObject | None:
    path = work.path / 'folds.json'
    if not path.exists():
        return None
    report = read_json(path)
    if not is_signed(report):
        raise UserError(
            'the file is damaged',
            where=str(path),
            fix='delete it and run the command again; it is made from the folds that are there',
        )
    return report


def _folds(splits: Sequence[Sequence[Splits]]) -> list[Fold]:
    return [
        Fold(repeat, number, _name(repeat if len(splits) > 1 else None, number), one)
        for repeat, division in enumerate(splits)
        for number, one in enumerate(division)
    ]


def _name(repeat: int | None, fold: int) -> str:
    return f'fold{fold}' if repeat is None else f'repeat{repeat}/fold{fold}'


def _train(config: Config, fold: Fold, folder: Path) -> None:
    """Trains the classifier of a fold, unless that is done; checks that its images are these."""
    data = dataclasses.replace(config.data, fold=fold.number, repeat=fold.repeat, repeats=1)
    own = parse.locked(dataclasses.replace(config, data=data))
    if config.model.head == 'auto':
        result, _ = auto.choose_and_evaluate(own, folder / fold.name)
    else:
        result = train_and_evaluate(own, folder / fold.name)
    if result['data_digest'] != fold.splits.digest:
        raise UserError(
            'the images have changed since this fold was trained',
            where=str(folder / fold.name),
            fix='put them back, or give another --workdir',
        )


def _write(config: Config, folds: Sequence[Fold], work: Workdir) -> JsonObject:
    """Predicts every image by the classifier that it was held out from, and reports."""
    found = [load(work.path / fold.name).evaluate_table(fold.splits.val) for fold in folds]
    predictions, repeats = [one.probabilities for one in found], config.data.repeats
    rows = [_row(fold, one.metrics) for fold, one in zip(folds, found, strict=True)]
    table = _joined([fold.splits.val for fold in folds])
    total, calibration = pooled(table, np.concatenate(predictions), repeats)
    report = {
        'folds': rows,
        'mean': over_folds(rows),
        'pooled': total,
        'calibration': calibration,
        'repeats': repeats,
        'images': len(table) // repeats,
        'never_held_out': _report_rest(folds[0].splits.train, table),
    }
    with writing(work.path):
        _write_predictions(work.path / 'predictions.csv', folds, predictions)
        atomic_write(work.path / 'folds.csv', csv_text(rows, _COLUMNS))
        whole = signed(report)
        write_json(work.path / 'folds.json', whole)
    return whole


def _row(fold: Fold, found: JsonObject) -> JsonObject:
    names = {'repeat': fold.repeat, 'fold': fold.number, 'workdir': fold.name}
    images = {'num_examples': len(fold.splits.val), 'train_examples': len(fold.splits.train)}
    return {**names, **images, **{name: found[name] for name in METRICS}}


def _report_rest(train: ImageTable, held_out: ImageTable) -> int:
    """Returns how many images no fold holds out, and warns."""
    rest = sorted(set(train.paths) - set(held_out.paths))
    if rest:
        logging.warning(
            'WARNING: %d images are the only ones, or the only group, of their class, so no fold '
            'holds them out and they have no prediction: %s',
            *(len(rest), some(rest)),
        )
    return len(rest)


def _joined(tables: Sequence[ImageTable]) -> ImageTable:
    """Returns one table of the images of several that have the same classes."""

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(table, name) for table in tables])

    return dataclasses.replace(
        tables[0],
        paths=joined('paths'),
        labels=joined('labels'),
        digests=joined('digests'),
        plain_jpeg=joined('plain_jpeg'),
        groups=None if tables[0].groups is None else joined('groups'),
        weights=None,
        perceptual_hashes=None,
        aspect_ratios=None,
    )


def _write_predictions(
    path: Path, folds: Sequence[Fold], predictions: Sequence[Float[np.ndarray, '_n classes']]
) -> None:
    """Writes a line for each image and division, in the order of divisions and paths."""
    names = folds[0].splits.val.class_names
    with (
        replacing(path) as partial,
        open(partial, 'w', newline='', errors='surrogateescape', encoding='utf-8') as file,
    ):
        lines = csv.writer(file)
        columns = ('repeat', 'fold', 'path', 'digest', 'true_class', 'class')
        lines.writerow([*columns, *(f'probability:{name}' for name in names)])
        for fold, rows in zip(folds, predictions, strict=True):
            lines.writerows(_lines(fold, rows, names))


def _lines(
    fold: Fold, predictions: Float[np.ndarray, 'n classes'], names: Sequence[str]
) -> Iterator[list[object]]:
    table = fold.splits.val
    columns = (table.paths, table.digests, table.labels, predictions.argmax(1), predictions)
    for path, digest, label, predicted, row in zip(*columns, strict=True):
        about = (fold.repeat, fold.number, path, digest, names[label], names[predicted])
        yield [*about, *map(str, row.astype(np.float32))]


def format_report(report: JsonObject) -> str:
    """Shows folds, means and the out-of-fold predictions by class, for people."""
    times = f', {report["repeats"]} times each' if report['repeats'] > 1 else ''
    rest = report['never_held_out']
    without = f'; {rest} that no fold holds out have no prediction' if rest else ''
    return '\n'.join(
        [
            format_folds(report['folds'], report['mean']),
            f'out-of-fold predictions of {report["images"]} images{times}{without}',
            format_table(report['pooled']),
            format_calibration(report['calibration']),
        ]
    )

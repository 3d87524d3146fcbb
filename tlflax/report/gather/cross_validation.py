"""What the page of a cross-validation shows: predictions of images by runs that held them out."""

import os
from pathlib import Path

import numpy as np

from tlflax.config import parse
from tlflax.data.table import ImageTable
from tlflax.report.gather import cards
from tlflax.report.gather.choice import choose, confusion
from tlflax.report.gather.predictions import Predictions, read
from tlflax.report.gather.reliability import reliability
from tlflax.report.page.contents import RunPage
from tlflax.report.page.pictures import Thumbnails
from tlflax.utils.errors import UserError, printable
from tlflax.workdir.files import read_json

_FILE = 'folds.json'


def is_one(workdir: str | Path) -> bool:
    """Whether a folder is that of a finished cross-validation."""
    return (Path(workdir) / _FILE).exists()


def gather(workdir: str | Path) -> RunPage:
    """Gathers the page of a finished cross-validation.

    Raises:
        UserError: A file is missing or damaged.
    """
    folder = Path(workdir)
    report, config = read_json(folder / _FILE), read_json(folder / 'config.json')
    predictions = read(str(workdir))
    table, probabilities = _table(predictions), predictions.probabilities
    chosen = choose(predictions.labels, probabilities)
    data = parse.resolve(parse.filled(config)).data
    thumbnails = Thumbnails.as_read(data)
    try:
        result = {
            'val': report['pooled'],
            'calibration': report['calibration'],
            'wall_seconds': predictions.cost['wall_seconds'],
        }
        folds = report['folds']
    except KeyError as error:
        raise UserError(
            f'it has no {error}', where=str(folder / _FILE), fix='repeat the cross-validation'
        ) from None
    return RunPage(
        name=printable(str(workdir)),
        result=result,
        records=(),
        class_names=[printable(name) for name in table.class_names],
        confusion=confusion(predictions.labels, probabilities.argmax(1), len(table.class_names)),
        reliability=reliability(predictions.labels, probabilities),
        examples=cards.examples(table, probabilities, chosen, thumbnails, heats={}, near={}),
        cells=chosen.cells,
        mistakes=chosen.mistakes,
        uncertain=chosen.uncertain,
        folds=folds,
        config=config,
        environment={},
        notes=['Each image was classified by a run that had not seen it in training.'],
    )


def _table(predictions: Predictions) -> ImageTable:
    paths = predictions.paths.tolist()
    return ImageTable(
        root=os.path.commonpath([os.path.dirname(path) for path in paths]),
        paths=predictions.paths,
        labels=predictions.labels.astype(np.int32),
        class_names=predictions.class_names,
        digests=predictions.digests,
        plain_jpeg=np.zeros(len(paths), bool),
    )

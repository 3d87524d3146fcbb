"""The images that a classifier gets wrong, as a CSV file: the worst come first.

The columns are `path`, `class` (the true one), `predicted`, `probability` (of the predicted class)
and `loss` (minus the logarithm of the probability of the true class), by which lines are sorted.
"""

import csv
import io
import os
from pathlib import Path

import numpy as np
from jaxtyping import Float

from tlflax.data.table import ImageTable
from tlflax.train.metrics.scores import cross_entropies
from tlflax.utils.errors import UserError, as_user_error
from tlflax.utils.files import atomic_write, check_replaceable

_COLUMNS = ('path', 'class', 'predicted', 'probability', 'loss')


def check_writable(path: str | Path) -> None:
    """Checks, before anything is computed, that a file can be written.

    Raises:
        UserError: Its folder does not exist or cannot be written, or it is a folder or a device.
    """
    path = Path(path)
    check_folder_writable(path.parent, str(path))
    with as_user_error(
        'cannot be written: {reason}', where=str(path), fix='name another file', of=(OSError,)
    ):
        check_replaceable(path)


def check_folder_writable(folder: Path, where: str) -> None:
    """Checks that files can be created in a folder.

    Raises:
        UserError: They cannot.
    """
    why = ''
    if not folder.is_dir():
        why = f'there is no folder {str(folder)!r}'
    elif not os.access(folder, os.W_OK):
        why = f'the folder {str(folder)!r} cannot be written'
    if why:
        raise UserError(f'cannot be written: {why}', where=where, fix='name another file')


def write_mistakes(
    path: str | Path, table: ImageTable, probabilities: Float[np.ndarray, 'n classes']
) -> None:
    """Writes the mistakes on the images of a table.

    Raises:
        UserError: The file cannot be written.
    """
    labels, predicted = np.asarray(table.labels), probabilities.argmax(-1)
    losses = cross_entropies(labels, probabilities)
    wrong = np.flatnonzero(predicted != labels)
    order = wrong[np.argsort(-losses[wrong], kind='stable')]
    text = io.StringIO(newline='')
    lines = csv.writer(text)
    lines.writerow(_COLUMNS)
    for row in order:
        names = [table.class_names[label] for label in (labels[row], predicted[row])]
        numbers = float(probabilities[row, predicted[row]]), float(losses[row])
        lines.writerow([table.paths[row], *names, *numbers])
    with as_user_error(
        'cannot be written: {reason}', where=str(path), fix='name another file', of=(OSError,)
    ):
        atomic_write(Path(path), text.getvalue().encode(errors='surrogateescape'))

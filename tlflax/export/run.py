"""Exports a classifier: writes the file, runs it, and keeps it if it computes the same."""

import contextlib
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

from absl import logging

from tlflax.export import (
    model,
    onnx_file,
    safetensors_file,
    saved_model_file,
    stablehlo_file,
    tflite_file,
    verify,
    web_file,
)
from tlflax.export.card.facts import Export
from tlflax.export.card.write import CARD, card, card_path, check_card
from tlflax.export.model import AS_PREDICT, Exported, Options
from tlflax.export.verify import Program
from tlflax.inference.mistakes import check_folder_writable, check_writable
from tlflax.inference.restore import load
from tlflax.inference.trained import Trained
from tlflax.utils.errors import UserError, as_user_error
from tlflax.utils.files import (
    JsonObject,
    atomic_write,
    check_replaceable_folder,
    expand,
    replacing,
    replacing_folder,
    size_of,
)


@dataclasses.dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        ending: Of file names.
        write: Writes the file.
        program: Returns what a file computes.
        precisions: Those it has.
        marker: Where the format is a folder, a file that each such folder has; '' otherwise.
        entries: The names of all that such a folder has, without the model card.
        resize: Whether files can take images of any size: 'if asked', 'always' or 'never'.
    """

    ending: str
    write: Callable[[Exported, Path], None]
    program: Callable[[Exported, Path], Program]
    precisions: tuple[str, ...] = ('float32', 'float16')
    marker: str = ''
    entries: tuple[str, ...] = ()
    resize: str = 'if asked'

    def replacing(self, path: Path) -> contextlib.AbstractContextManager[Path]:
        """Yields where to write what replaces `path`; see `tlflax.utils.files.replacing`."""
        if not self.marker:
            return replacing(path)
        return replacing_folder(path, self.marker, (*self.entries, CARD))

    def check_place(self, path: Path) -> None:
        """Checks, before anything is computed, that a file can be written, and its card.

        Raises:
            UserError: It cannot, or something would be lost that is not replaced by its like.
        """
        if not self.marker:
            check_writable(path)
            check_card(card_path(path, is_folder=False))
            return
        with as_user_error(
            'cannot be written: {reason}', where=str(path), fix='name another folder', of=(OSError,)
        ):
            check_replaceable_folder(path, self.marker, (*self.entries, CARD))
        check_folder_writable(Path(os.path.realpath(path)).parent, str(path))


FORMATS = {
    'onnx': Format(
        '.onnx',
        onnx_file.write,
        lambda _, path: onnx_file.program(path),
        ('float32', 'float16', 'int8'),
    ),
    'stablehlo': Format(
        '.stablehlo.zip', stablehlo_file.write, lambda _, path: stablehlo_file.program(path)
    ),
    'saved_model': Format(
        '.saved_model',
        saved_model_file.write,
        lambda _, path: saved_model_file.program(path),
        marker=saved_model_file.MARKER,
        entries=saved_model_file.ENTRIES,
    ),
    'tflite': Format(
        '.tflite',
        tflite_file.write,
        lambda _, path: tflite_file.program(path),
        ('float32', 'float16', 'int8'),
    ),
    'safetensors': Format(
        '.safetensors', safetensors_file.write, safetensors_file.program, resize='never'
    ),
    'web': Format(
        '.web',
        web_file.write,
        lambda _, path: web_file.program(path),
        ('float32', 'float16', 'int8'),
        marker=web_file.MARKER,
        entries=web_file.ENTRIES,
        resize='always',
    ),
}

_REQUIRE = {
    'onnx': onnx_file.require,
    'tflite': tflite_file.require,
    'web': web_file.require,
}


def export(
    workdir: str | Path,
    name: str,
    output: str | Path | None = None,
    options: Options = AS_PREDICT,
    *,
    step: str | None = None,
) -> JsonObject:
    """Exports the classifier of a run.

    Args:
        workdir: The folder of the run.
        name: A key of `FORMATS`.
        output: The file to write; None: `classifier` with the format's ending, in the workdir.
        options: What the file is to be.
        step: See `tlflax.inference.restore.load`.

    Returns:
        `file`, `card`, the model card beside it or in it, `bytes` without the card, and what the
        check found: `images`, how many were compared, `max_difference` of a probability,
        `labels_differ`, how many get another class, `accuracy` and `classifier_accuracy`.

    Raises:
        UserError: The classifier or its images cannot be read, the model cannot be exported, the
            file cannot be written, or it does not compute the classifier's probabilities, in which
            case it is not kept.
    """
    chosen = FORMATS[name]
    _check(name, options)
    if chosen.resize == 'always':
        options = dataclasses.replace(options, resize=True)
    path = Path(workdir) / f'classifier{chosen.ending}' if output is None else Path(expand(output))
    if output is not None:
        chosen.check_place(path)
    trained = load(workdir, step)
    if output is None:
        chosen.check_place(path)
    exported = _exported(trained, options)
    images = verify.sample(trained, options)

    def made(size: int, found: verify.Checked) -> Export:
        exact = images.tolerance == verify.TOLERANCE
        return Export(
            *(workdir, name, path, size, trained, exported.metadata, exact),
            *(found.true, found.probabilities, _said(found)),
        )

    logging.info('writing %s', path)
    with as_user_error('{reason}', where=str(path), fix='name another file', of=(OSError,)):
        return _write(chosen, exported, images, path, made)


def _exported(trained: Trained, options: Options) -> Exported:
    """Returns what is exported, with images for calibration where bits depend on them."""
    found = model.exported(trained, options)
    if options.precision != 'int8':
        return found
    return dataclasses.replace(found, calibration=verify.calibration(trained))


def _write(
    chosen: Format,
    exported: Exported,
    images: verify.Sample,
    path: Path,
    made: Callable[[int, verify.Checked], Export],
) -> JsonObject:
    """Writes a file and its model card, if it computes the same; returns what `export` does.

    Args:
        chosen: The format.
        exported: What is written.
        images: What it is checked with.
        path: The file or folder.
        made: From the size and what the check found to what the card is about.
    """
    is_folder = bool(chosen.marker)
    with chosen.replacing(path) as partial:
        chosen.write(exported, partial)
        checked = verify.check(chosen.program(exported, partial), images, str(path))
        found = made(size_of(partial), checked)
        text = card(found)
        if is_folder:
            atomic_write(card_path(partial, is_folder=True), text)
    if not is_folder:
        atomic_write(card_path(path, is_folder=False), text)
    written = card_path(path, is_folder=is_folder)
    return {'file': str(path), 'card': str(written), 'bytes': found.size, **found.found}


def _said(found: verify.Checked) -> JsonObject:
    """Returns what a check found."""
    return {
        'images': found.images,
        'max_difference': found.difference,
        'labels_differ': found.labels,
        'accuracy': found.accuracy,
        'classifier_accuracy': found.classifier_accuracy,
    }


def _check(name: str, options: Options) -> None:
    """Checks that a format has what is asked for.

    Raises:
        UserError: It has not, or what it needs is not installed.
    """
    if options.precision not in FORMATS[name].precisions:
        able = ', '.join(one for one in FORMATS if options.precision in FORMATS[one].precisions)
        raise UserError(
            f'{name} has no {options.precision}',
            where='--precision',
            fix=f'choose another --format ({able}) or one of '
            + ', '.join(FORMATS[name].precisions),
        )
    if options.resize and FORMATS[name].resize == 'never':
        raise UserError(
            f'a file of {name} has no program that could resize',
            where='--resize',
            fix='choose another --format',
        )
    if name in _REQUIRE:
        _REQUIRE[name]()

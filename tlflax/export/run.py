"""Exports a classifier: writes the file, runs it, and keeps it if it computes the same."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from absl import logging

from tlflax.export import model, onnx_file, safetensors_file, stablehlo_file, verify
from tlflax.export.model import Exported
from tlflax.export.verify import Program
from tlflax.inference.restore import load
from tlflax.utils.errors import as_user_error
from tlflax.utils.files import JsonObject, expand, replacing


@dataclasses.dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        ending: Of file names.
        write: Writes the file.
        program: Returns what a file computes.
    """

    ending: str
    write: Callable[[Exported, Path], None]
    program: Callable[[Exported, Path], Program]


FORMATS = {
    'onnx': Format('.onnx', onnx_file.write, lambda _, path: onnx_file.program(path)),
    'stablehlo': Format(
        '.stablehlo.zip', stablehlo_file.write, lambda _, path: stablehlo_file.program(path)
    ),
    'safetensors': Format('.safetensors', safetensors_file.write, safetensors_file.program),
}


def export(
    workdir: str | Path,
    name: str,
    output: str | Path | None = None,
    *,
    calibrated: bool = False,
    step: str | None = None,
) -> JsonObject:
    """Exports the classifier of a run.

    Args:
        workdir: The folder of the run.
        name: A key of `FORMATS`.
        output: The file to write; None: `classifier` with the format's ending, in the workdir.
        calibrated: Divide the logits by the temperature that fits the validation images.
        step: See `tlflax.inference.restore.load`.

    Returns:
        `file`, `bytes`, and what the check found: `images`, how many were compared,
        `max_difference` of a probability and `labels_differ`, how many get another class.

    Raises:
        UserError: The classifier or its validation images cannot be read, the model cannot be
            exported, or the file does not compute the classifier's probabilities, in which case it
            is not kept.
    """
    chosen = FORMATS[name]
    if name == 'onnx':
        onnx_file.require()
    path = Path(workdir) / f'classifier{chosen.ending}' if output is None else Path(expand(output))
    trained = load(workdir, step)
    exported = model.exported(trained, calibrated=calibrated)
    images = verify.sample(trained, calibrated=calibrated)
    logging.info('writing %s', path)
    with (
        as_user_error('{reason}', where=str(path), fix='name another file', of=(OSError,)),
        replacing(path) as partial,
    ):
        chosen.write(exported, partial)
        found = verify.check(chosen.program(exported, partial), images, str(path))
        size = partial.stat().st_size
    return {
        'file': str(path),
        'bytes': size,
        'images': found.images,
        'max_difference': found.difference,
        'labels_differ': found.labels,
    }

"""ONNX files."""

from pathlib import Path

import numpy as np
import onnx
from jaxtyping import UInt8

from tlflax.export import checkers, onnx_int8
from tlflax.export.model import Exported
from tlflax.export.onnx_graph.graph import INPUT, OUTPUT
from tlflax.export.onnx_graph.translate import to_model
from tlflax.export.verify import Program
from tlflax.utils.errors import UserError, as_user_error

_MOST_BYTES = (1 << 31) - 1  # of a message of protobuf


def require() -> None:
    """Checks that ONNX Runtime, which files are checked with, is installed.

    Raises:
        UserError: It is not.
    """
    checkers.require('onnxruntime', 'ONNX Runtime', '--format=onnx')


def write(model: Exported, path: Path) -> None:
    """Writes the model: `image` u8[images, height, width, 3] to `probabilities` f32[images, n].

    Args:
        model: What is exported.
        path: The file.

    Raises:
        UserError: An operation has no translation, or the file would have more than 2 GB.
    """
    found = to_model(model.function, model.variables, model.shape, model.metadata)
    if model.calibration is not None:
        found = onnx_int8.quantized(found, model.calibration)
    size = found.ByteSize()
    if size > _MOST_BYTES:
        raise UserError(
            f'the model has {size / 1e9:.1f} GB, and a file of ONNX holds 2',
            where='--format=onnx',
            fix='export as stablehlo or safetensors',
        )
    with as_user_error(
        'the checker of ONNX refuses the model: {reason}',
        where='--format=onnx',
        fix='please report this; stablehlo and safetensors are other formats',
    ):
        onnx.checker.check_model(found, full_check=True)
    path.write_bytes(found.SerializeToString())


def program(path: Path) -> Program:
    """Returns what the file computes, run by ONNX Runtime on the CPU."""
    import onnxruntime

    with as_user_error(
        'ONNX Runtime cannot load the model: {reason}',
        where='--format=onnx',
        fix='please report this; stablehlo and safetensors are other formats',
    ):
        session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])

    def run(image: UInt8[np.ndarray, 'b h w 3']) -> np.ndarray:
        return np.asarray(session.run([OUTPUT], {INPUT: image})[0])

    return run

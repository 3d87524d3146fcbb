"""ONNX models with 8 bits: parameters and activations, as calibration images have them."""

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from jaxtyping import UInt8
from onnx import helper

from tlflax.export.onnx_graph.graph import INPUT
from tlflax.utils.errors import as_user_error

QUANTIZED = """
    Conv MatMul MaxPool AveragePool Relu Slice Reshape Transpose Concat
""".split()
"""Operators that compute with 8 bits; the others, such as a softmax's, keep floats."""


def quantized(model: onnx.ModelProto, images: UInt8[np.ndarray, 'n h w 3']) -> onnx.ModelProto:
    """Returns the model with pairs of QuantizeLinear and DequantizeLinear around `QUANTIZED`.

    Kernels have a scale for each channel and 7 bits: processors without VNNI sum products of 8 bits
    in 16, which overflow where both factors are large, and a file is to compute the same there.
    Activations have 8 bits, from the smallest number that the images lead to, to the largest.

    Args:
        model: With floats.
        images: Show how large activations are.

    Raises:
        UserError: ONNX Runtime cannot do it.
    """
    from onnxruntime import quantization

    with (
        tempfile.TemporaryDirectory() as folder,
        _quietly(),
        as_user_error(
            'ONNX Runtime cannot bring the model to 8 bits: {reason}',
            where='--precision=int8',
            fix='export with --precision=float32 or --format=tflite',
        ),
    ):
        before, after = Path(folder) / 'float.onnx', Path(folder) / 'int8.onnx'
        onnx.save(model, before)
        quantization.quantize_static(
            before,
            after,
            _reader(images),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=QUANTIZED,
            nodes_to_exclude=_of_two_images(model),
            per_channel=True,
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )
        found = onnx.load(after)
    helper.set_model_props(found, {one.key: one.value for one in model.metadata_props})
    return found


def _of_two_images(model: onnx.ModelProto) -> list[str]:
    """Returns the products whose factors both depend on the input, such as those of a resize."""
    held = {one.name for one in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == 'MatMul' and held.isdisjoint(node.input)
    ]


def _reader(images: UInt8[np.ndarray, 'n h w 3']) -> object:
    """Returns what ONNX Runtime reads images from, one at a time."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self._left, None)
            return None if image is None else {INPUT: image[None]}

    return Reader()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Runs the block without remarks, such as that a model could be prepared, which it is."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)

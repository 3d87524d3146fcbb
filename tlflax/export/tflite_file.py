"""TensorFlow Lite files, with class names and metadata as files in a zip at their end."""

import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from tlflax.export import checkers
from tlflax.export.model import Exported
from tlflax.export.verify import Program
from tlflax.utils.errors import UserError, reason
from tlflax.utils.files import dump_json

INPUT, OUTPUT = 'image', 'probabilities'
METADATA, LABELS = 'metadata.json', 'labels.txt'

IN_FLOAT = """
    ABS COS DIV EXP EXPAND_DIMS LOG LOGISTIC MAXIMUM MINIMUM MUL NEG POW REDUCE_MAX REDUCE_MIN
    REDUCE_PROD REVERSE_V2 ROUND RSQRT SELECT_V2 SIGN SIN SOFTMAX SQRT SQUARE SQUARED_DIFFERENCE SUB
    SUM TANH TOPK_V2
""".split()
"""Operations that eight bits leave as they are: few numbers pass them, such as the softmax's."""


def require() -> None:
    """Checks that LiteRT, which files are checked with, is installed.

    Raises:
        UserError: It is not.
    """
    checkers.require('ai_edge_litert.interpreter', 'LiteRT', '--format=tflite')


def write(model: Exported, path: Path) -> None:
    """Writes the model: `image` u8[images, height, width, 3] to `probabilities` f32[images, n].

    Args:
        model: What is exported.
        path: The file. As a zip, it has `METADATA` and `LABELS`, the names of the classes.

    Raises:
        UserError: An operation has no translation.
    """
    path.write_bytes(_converted(model))
    names = json.loads(model.metadata['classes'])
    with zipfile.ZipFile(path, 'a') as file:
        file.writestr(LABELS, ''.join(f'{" ".join(name.split())}\n' for name in names))
        file.writestr(METADATA, dump_json(model.metadata, indent=2))


def program(path: Path) -> Program:
    """Returns what the file computes, run by LiteRT on the CPU."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=os.cpu_count())
    runner = interpreter.get_signature_runner()

    def run(image: UInt8[np.ndarray, 'b h w 3']) -> np.ndarray:
        return np.array(runner(**{INPUT: image})[OUTPUT])

    return run


def _converted(model: Exported) -> bytes:
    """Returns the model in the format, without the zip."""
    import tensorflow as tf

    from tlflax.export.tf_graph.quietly import quietly_on_cpu

    with quietly_on_cpu():
        converter = _converter(model)
        try:
            if model.precision == 'int8':
                return _eight_bits(converter, model.calibration)
            if model.precision == 'float16':
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
                converter.target_spec.supported_types = [tf.float16]
            return converter.convert()
        except UserError:
            raise
        except Exception as error:
            raise refused(error) from error


def _converter(model: Exported) -> Any:
    """Returns the converter of the model, translated to operations of TensorFlow."""
    import tensorflow as tf

    from tlflax.export.tf_graph.translate import compute, specification

    image = specification(model.shape, INPUT)

    def probabilities(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return {OUTPUT: compute(model.function, model.variables, model.shape, image)}

    owner = tf.Module()
    owner.program = tf.function(probabilities, input_signature=[image], autograph=False)
    return tf.lite.TFLiteConverter.from_concrete_functions(
        [owner.program.get_concrete_function()], owner
    )


def _eight_bits(converter: Any, images: np.ndarray | None) -> bytes:
    """Returns the model with parameters and activations of 8 bits, but for `IN_FLOAT`.

    Args:
        converter: Of the model.
        images: u8[n, h, w, 3], which show how large the activations are.
    """
    import tensorflow as tf

    assert images is not None
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[None]] for image in images)
    # Only what is made to find faults of quantization can leave out operations.
    quantized = tf.lite.experimental.QuantizationDebugger(
        converter=converter,
        debug_dataset=converter.representative_dataset,
        debug_options=tf.lite.experimental.QuantizationDebugOptions(denylisted_ops=IN_FLOAT),
    )
    return quantized.get_nondebug_quantized_model()


def refused(error: Exception) -> UserError:
    """Returns what a message of the converter says."""
    names = sorted(set(re.findall(r"'tfl?\.(\w+)' op", str(error))))
    what = f'it has {", ".join(names)}' if names else reason(error)
    return UserError(
        f'the model cannot be converted to TensorFlow Lite: {what}',
        where='--format=tflite',
        fix='replace it in the head or backbone, or export as onnx or saved_model',
    )

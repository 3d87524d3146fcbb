"""SavedModels: folders that TensorFlow runs, by itself or in TensorFlow Serving.

They hold operations of TensorFlow. What `jax2tf` writes instead is one operation around StableHLO,
which TensorFlow 2.21 cannot read where JAX is newer than it, such as for `top_k` of JAX 0.10.
"""

import errno
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from tlflax.export.model import Exported
from tlflax.export.verify import Program
from tlflax.utils.files import dump_json

INPUT, OUTPUT = 'image', 'probabilities'
SIGNATURE, CLASSES = 'serving_default', 'classes'
MARKER = 'saved_model.pb'
ENTRIES = (MARKER, 'fingerprint.pb', 'variables', 'assets', 'assets.extra')
METADATA = 'assets.extra/metadata.json'  # where TensorFlow Serving has what is no part of a graph


def write(model: Exported, path: Path) -> None:
    """Writes a folder with two signatures.

    `SIGNATURE` takes `image` u8[images, height, width, 3] and gives `probabilities` f32[images, n];
    `CLASSES` takes nothing and gives `classes`, the names.

    Args:
        model: What is exported.
        path: The folder.

    Raises:
        OSError: The folder cannot be written.
        UserError: An operation has no translation.
    """
    import tensorflow as tf

    from tlflax.export.tf_graph.quietly import quietly_on_cpu

    names = json.loads(model.metadata['classes'])
    with quietly_on_cpu():
        owner = tf.Module()
        signature = _program(model, owner).get_concrete_function()
        owner.classes = tf.function(lambda: {CLASSES: tf.constant(names)}, autograph=False)
        signatures = {SIGNATURE: signature, CLASSES: owner.classes.get_concrete_function()}
        try:
            tf.saved_model.save(owner, str(path), signatures=signatures)
        except tf.errors.OpError as error:  # 'PATH; No space left on device [Op:SaveV2]'
            said = error.message.rpartition('; ')[2].partition(' [Op:')[0]
            raise OSError(errno.EIO, said) from error
    metadata = path / METADATA
    metadata.parent.mkdir()
    metadata.write_text(dump_json(model.metadata, indent=2))


def _program(model: Exported, owner: Any) -> Any:
    """Returns the tf.function of images; its numbers become variables of `owner`, a tf.Module."""
    import tensorflow as tf

    from tlflax.export.tf_graph.translate import compute, specification

    leaves = jax.tree.leaves(model.variables)
    owner.numbers = [tf.Variable(np.asarray(leaf), trainable=False) for leaf in leaves]

    def probabilities(image: tf.Tensor) -> dict[str, tf.Tensor]:
        held = [variable.read_value() for variable in owner.numbers]
        return {OUTPUT: compute(model.function, model.variables, model.shape, image, held)}

    image = specification(model.shape, INPUT)
    owner.program = tf.function(probabilities, input_signature=[image], autograph=False)
    return owner.program


def program(path: Path) -> Program:
    """Returns what the folder computes, run by TensorFlow on the CPU."""
    import tensorflow as tf

    from tlflax.export.tf_graph.quietly import quietly_on_cpu

    with quietly_on_cpu():
        loaded = tf.saved_model.load(str(path))

    def run(image: UInt8[np.ndarray, 'b h w 3']) -> np.ndarray:
        with quietly_on_cpu():
            found = loaded.signatures[SIGNATURE](**{INPUT: tf.constant(image)})
        return found[OUTPUT].numpy()

    return run

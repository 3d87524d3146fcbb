"""safetensors: all parameters and state by path, without the program."""

from pathlib import Path

import jax
import numpy as np
import safetensors.numpy
from jaxtyping import UInt8

from tlflax.export.model import Exported
from tlflax.export.verify import Program
from tlflax.models.base.modules import Variables
from tlflax.utils.trees import flatten, unflatten


def write(model: Exported, path: Path) -> None:
    """Writes every array under `params/PATH` or `state/PATH`, such as `params/head/logits/kernel`.

    Args:
        model: What is exported.
        path: The file.
    """
    arrays = {name: np.asarray(leaf) for name, leaf in flatten(model.variables._asdict()).items()}
    # `save_file` gives nobody but the owner leave to read, and has errors of its own.
    path.write_bytes(safetensors.numpy.save(arrays, metadata=model.metadata))


def program(model: Exported, path: Path) -> Program:
    """Returns what the model computes with the file's numbers."""
    tree = unflatten(safetensors.numpy.load_file(path))
    variables = Variables(tree['params'], tree.get('state', {}))
    function = jax.jit(model.function)

    def run(image: UInt8[np.ndarray, 'b h w 3']) -> np.ndarray:
        return np.asarray(function(variables, image))

    return run

"""StableHLO: program and numbers as `jax.export` writes them, in a zip with the metadata."""

import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from tlflax.export.model import Exported
from tlflax.export.verify import Program
from tlflax.utils.errors import as_user_error
from tlflax.utils.files import dump_json

PLATFORMS = ('cpu', 'cuda', 'tpu')
MODULE, METADATA = 'module.jax_export', 'metadata.json'


def write(model: Exported, path: Path) -> None:
    """Writes a function of u8[images, height, width, 3] to f32[images, classes], for `PLATFORMS`.

    Args:
        model: What is exported.
        path: The file.

    Raises:
        UserError: The model cannot be traced for any number of images.
    """
    image = jax.ShapeDtypeStruct(jax.export.symbolic_shape(model.shape), jnp.uint8)
    # NumPy's arrays are on no device, which the program would ask for where it is loaded.
    variables = jax.tree.map(np.asarray, model.variables)

    def images_only(image: UInt8[jax.Array, 'b h w 3']) -> Float[jax.Array, 'b classes']:
        return model.function(variables, image)

    with as_user_error(
        'the model cannot be exported for any number of images: {reason}',
        where='--format=stablehlo',
        fix='let the head and backbone use no number of images, or export as safetensors',
    ):
        found = jax.export.export(jax.jit(images_only), platforms=PLATFORMS)(image)
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr(MODULE, bytes(found.serialize()))
        file.writestr(METADATA, dump_json(model.metadata, indent=2))


def program(path: Path) -> Program:
    """Returns what the file computes."""
    with zipfile.ZipFile(path) as file:
        call = jax.jit(jax.export.deserialize(bytearray(file.read(MODULE))).call)

    def run(image: UInt8[np.ndarray, 'b h w 3']) -> np.ndarray:
        return np.asarray(call(image))

    return run

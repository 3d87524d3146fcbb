"""What is exported: a pure function from pixels to class probabilities, and what it is."""

import dataclasses
import importlib.metadata
import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped, UInt8

from tlflax.data.augment import sampling
from tlflax.export.resize import resize
from tlflax.inference.trained import Trained
from tlflax.models.base.modules import Variables

Function = Callable[[Variables, Array], Array]
"""(variables, u8[b, h, w, 3]) to f32[b, classes]."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What a file is to be.

    Attributes:
        calibrated: Divide the logits by the temperature that fits the validation images.
        resize: Take images of any size, and resize them as the run does.
        precision: 'float32'; 'float16': parameters are stored with 16 bits; 'int8': parameters and
            activations have 8 bits.
    """

    calibrated: bool = False
    resize: bool = False
    precision: str = 'float32'


AS_PREDICT = Options()
"""What computes the probabilities of `predict`, in float32."""


@dataclasses.dataclass(frozen=True)
class Exported:
    """What goes into a file.

    Attributes:
        function: From variables and pixels to probabilities.
        variables: All parameters and state; float16 where that is the precision.
        shape: Of the images, as `jax.export.symbolic_shape` takes it, such as
            'images, 224, 224, 3'; what is a word may have any size.
        metadata: Text by name; see `describe`.
        precision: See `Options`.
        calibration: u8[n, height, width, 3], training images that show which numbers occur, where
            `precision` is 'int8'.
    """

    function: Function
    variables: Variables = dataclasses.field(repr=False)
    shape: str
    metadata: dict[str, str]
    precision: str = 'float32'
    calibration: UInt8[np.ndarray, 'n h w 3'] | None = dataclasses.field(default=None, repr=False)


def exported(trained: Trained, options: Options = AS_PREDICT) -> Exported:
    """Returns what is exported of a classifier, without images for calibration.

    It is computed in float32 by plain convolutions, without the programs that are made for the
    processor of this machine.

    Args:
        trained: The classifier.
        options: What the file is to be.

    Raises:
        UserError: No temperature is known.
    """
    calibrated = options.calibrated
    temperature = trained.known_temperature() if calibrated else 1.0
    own = trained.classifier
    plain = dataclasses.replace(own.backbone, trained=None)
    classifier = dataclasses.replace(own, backbone=plain, dtype='float32')

    shown = _resized(trained) if options.resize else lambda image: image

    def function(
        variables: Variables, image: Shaped[Array, 'b h w 3']
    ) -> Float[Array, 'b classes']:
        variables = jax.tree.map(_as_float32, variables)
        logits, _ = classifier(variables, {'image': shown(image)})
        return jax.nn.softmax(logits / temperature if calibrated else logits)

    height, width = trained.config.data.image_size
    size = 'height, width' if options.resize else f'{height}, {width}'
    return Exported(
        function=function,
        variables=_stored(trained.variables, options.precision),
        shape=f'images, {size}, 3',
        metadata=describe(trained, options),
        precision=options.precision,
    )


def _resized(trained: Trained) -> Callable[[Shaped[Array, 'b h w 3']], Shaped[Array, 'b _ _ 3']]:
    """Returns the function from decoded images to what the network sees of them."""
    form, augment = trained.sources.image_format, trained.config.augment
    if not augment.crops:
        return lambda image: resize(image, form, form.image_size)
    from tlflax.data.pipeline import crops  # imports TensorFlow

    larger = crops.larger_size(form.image_size, augment.crop_fraction)
    place = sampling.plain(augment)['crop']
    top, left = crops.offsets(larger, form.image_size)[place]
    height, width = form.image_size

    def center(image: Shaped[Array, 'b h w 3']) -> Shaped[Array, 'b _ _ 3']:
        whole = resize(image, form, larger)
        return whole[:, top : top + height, left : left + width]

    return center


def _stored(variables: Variables, precision: str) -> Variables:
    """Returns the numbers as a file holds them."""
    if precision != 'float16':
        return variables
    most = float(np.finfo(np.float16).max)

    def stored(leaf: Array | np.ndarray) -> Array | np.ndarray:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):  # such as a counter in the state of a head
            return leaf
        return leaf.clip(-most, most).astype(np.float16)

    return jax.tree.map(stored, variables)


def _as_float32(leaf: Array | np.ndarray) -> Array:
    """Traces the conversion, so that the file holds the number as it is stored; integers stay."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.asarray(leaf)
    return jax.lax.convert_element_type(leaf, np.float32)


def describe(trained: Trained, options: Options) -> dict[str, str]:
    """Returns what a program needs to know to use the file, and where it comes from."""
    form, config = trained.sources.image_format, trained.config
    height, width = form.image_size
    return {
        'classes': json.dumps(list(trained.class_names)),
        'image_height': str(height),
        'image_width': str(width),
        'resized': json.dumps(options.resize),
        'resize': form.resize,
        'interpolation': form.interpolation,
        'antialias': json.dumps(form.antialias),
        'background': json.dumps(list(form.background)),
        'max_pixels': str(form.max_pixels),
        'preprocess': trained.classifier.preprocess,
        'temperature': json.dumps(trained.temperature),
        'calibrated': json.dumps(options.calibrated),
        'precision': options.precision,
        'backbone': config.model.backbone,
        'layer': trained.classifier.layer,
        'head': config.model.head,
        'step': str(trained.step),
        'weights_digest': trained.weights_digest,
        'tlflax_version': importlib.metadata.version('tlflax'),
    }

"""What is exported: a pure function from pixels to class probabilities, and what it is."""

import dataclasses
import importlib.metadata
import json
from collections.abc import Callable

import jax
from jaxtyping import Array, Float, Shaped

from tlflax.inference.trained import Trained
from tlflax.models.base.modules import Variables

Function = Callable[[Variables, Array], Array]
"""(variables, u8[b, h, w, 3]) to f32[b, classes]."""


@dataclasses.dataclass(frozen=True)
class Exported:
    """What goes into a file.

    Attributes:
        function: From variables and pixels to probabilities.
        variables: All parameters and state.
        image_size: (height, width) in pixels.
        metadata: Text by name; see `describe`.
    """

    function: Function
    variables: Variables = dataclasses.field(repr=False)
    image_size: tuple[int, int]
    metadata: dict[str, str]


def exported(trained: Trained, *, calibrated: bool = False) -> Exported:
    """Returns what is exported of a classifier.

    It is computed in float32 by plain convolutions, without the programs that are made for the
    processor of this machine.

    Args:
        trained: The classifier.
        calibrated: Divide the logits by its temperature.

    Raises:
        UserError: No temperature is known.
    """
    temperature = trained.known_temperature() if calibrated else 1.0
    own = trained.classifier
    plain = dataclasses.replace(own.backbone, trained=None)
    classifier = dataclasses.replace(own, backbone=plain, dtype='float32')

    def function(
        variables: Variables, image: Shaped[Array, 'b h w 3']
    ) -> Float[Array, 'b classes']:
        logits, _ = classifier(variables, {'image': image})
        return jax.nn.softmax(logits / temperature if calibrated else logits)

    return Exported(
        function=function,
        variables=trained.variables,
        image_size=trained.config.data.image_size,
        metadata=describe(trained, calibrated=calibrated),
    )


def describe(trained: Trained, *, calibrated: bool) -> dict[str, str]:
    """Returns what a program needs to know to use the file, and where it comes from."""
    form, config = trained.sources.image_format, trained.config
    height, width = form.image_size
    return {
        'classes': json.dumps(list(trained.class_names)),
        'image_height': str(height),
        'image_width': str(width),
        'resize': form.resize,
        'interpolation': form.interpolation,
        'antialias': json.dumps(form.antialias),
        'background': json.dumps(list(form.background)),
        'preprocess': trained.classifier.preprocess,
        'temperature': json.dumps(trained.temperature),
        'calibrated': json.dumps(calibrated),
        'backbone': config.model.backbone,
        'layer': trained.classifier.layer,
        'head': config.model.head,
        'step': str(trained.step),
        'weights_digest': trained.weights_digest,
        'tlflax_version': importlib.metadata.version('tlflax'),
    }

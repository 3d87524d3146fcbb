"""A classifier as one Flax NNX module, for research code."""

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Shaped

from tlflax.models.base.backbone import IMAGE
from tlflax.models.base.modules import Variables
from tlflax.models.classifier import COMPUTE, Classifier
from tlflax.models.weights.preprocess import PREPROCESS


class ClassifierModule(nnx.Module):
    """Maps RGB images to logits.

    The paths of its parameters are those of checkpoints: `nnx.state(module, nnx.Param)` has
    `backbone` and `head`. Layers with statistics use those of training until
    `module.train()` is called.

    Args:
        classifier: The static half.
        variables: Those of backbone and head, which are copied.
    """

    def __init__(self, classifier: Classifier, variables: Variables) -> None:
        own = jax.tree.map(lambda leaf: leaf.copy(), variables)
        self.classifier = nnx.static(classifier)
        self.backbone = classifier.backbone.module(own.branch('backbone'))
        self.head = classifier.head.module(own.branch('head'))
        self.eval()

    def __call__(self, images: Shaped[Array | np.ndarray, 'b h w 3']) -> Float[Array, 'b n']:
        """Returns the logits of RGB images in 0..255, float32."""
        model = self.classifier
        dtype, precision = COMPUTE[model.dtype]
        x = PREPROCESS[model.preprocess](images).astype(dtype)
        with jax.default_matmul_precision(precision.name.lower()):
            x = self.backbone(x, start=IMAGE, stop=model.layer)
        return self.head(x.astype('float32'))

"""A classifier as pure functions: preprocessing, a frozen or trainable backbone, and a head.

A `Classifier` holds no arrays: it is the static half of the model, hashable, so that `jax.jit`
compiles once per architecture. Parameters are a separate nested dict `{'backbone': ..., 'head':
...}`; labels, digests and checkpoints refer to its paths.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from tlflax.models import heads, preprocess
from tlflax.models.vgg import network
from tlflax.utils.trees import Tree

Params = Tree

COMPUTE: dict[str, tuple[DTypeLike, lax.Precision]] = {
    'float32': (jnp.float32, lax.Precision.HIGHEST),
    'tensorfloat32': (jnp.float32, lax.Precision.HIGH),
    'bfloat16': (jnp.bfloat16, lax.Precision.DEFAULT),
}
"""The type of activations and the precision of products, by name; sums are float32."""


@dataclasses.dataclass(frozen=True)
class Classifier:
    """The static half of a model: what is computed, without the numbers.

    Attributes:
        preprocess: The preprocessing of RGB pixels in 0..255, a key of
            `tlflax.models.preprocess.PREPROCESS`.
        layer: The backbone output that feeds the head.
        dtype: The backbone's compute type, a key of `COMPUTE`.
        head: The head's NNX graph definition.
    """

    preprocess: str
    layer: str
    dtype: str
    head: nnx.GraphDef

    def features(self, backbone: Params, image: Shaped[Array, 'b h w 3']) -> Float[Array, 'b ...']:
        """Runs preprocessing and the backbone on RGB images in 0..255."""
        x = preprocess.PREPROCESS[self.preprocess](image)
        dtype, precision = COMPUTE[self.dtype]
        return network.apply(backbone, x, layer=self.layer, dtype=dtype, precision=precision)

    def logits(
        self, head: Params, features: Float[Array, 'b ...'], key: Array | None = None
    ) -> Float[Array, 'b num_classes']:
        """Runs the head; `key` switches dropout on."""
        return heads.apply(self.head, head, features, key)

    def __call__(
        self, params: Params, batch: dict[str, Array], key: Array | None = None
    ) -> Float[Array, 'b num_classes']:
        """Returns the logits of a batch that holds 'features', or else an 'image'."""
        features = batch.get('features')
        if features is None:
            features = self.features(params['backbone'], batch['image'])
        return self.logits(params['head'], features, key)


def create(
    backbone: Params,
    *,
    image_size: tuple[int, int],
    num_classes: int,
    head: str,
    units: int,
    dropout: float,
    preprocess: str,
    layer: str = 'block5_pool',
    dtype: str = 'float32',
) -> Classifier:
    """Returns the static half of a classifier.

    Args:
        backbone: The backbone's parameters or their shapes; only shapes are read.
        image_size: (height, width) in pixels.
        num_classes: Number of logits.
        head: Name of the head, a key of `tlflax.models.heads.HEADS`.
        units: Width of the head's hidden layer.
        dropout: Fraction of the last layer's inputs that dropout sets to zero.
        preprocess: See `Classifier`.
        layer: See `Classifier`.
        dtype: See `Classifier`.

    Raises:
        UserError: The head is unknown or does not fit the feature map.
    """
    shape = feature_shape(backbone, image_size=image_size, layer=layer)
    graph = heads.graph(head, shape, num_classes, units=units, dropout=dropout)
    return Classifier(preprocess=preprocess, layer=layer, dtype=dtype, head=graph)


def feature_shape(backbone: Params, *, image_size: tuple[int, int], layer: str) -> tuple[int, ...]:
    """Returns the shape of one image's features at `layer`, without computing them."""
    image = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
    return jax.eval_shape(functools.partial(network.apply, layer=layer), backbone, image).shape[1:]

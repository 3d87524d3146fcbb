"""What a backbone is: layers in order, first variables, the network, and how its weights are read.

The built-in ones are in `tlflax.models.backbones`, and what makes one of a few Flax NNX modules.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from tlflax.models.base import modules
from tlflax.models.base.modules import Training, Variables
from tlflax.models.weights.file_formats import Container
from tlflax.models.weights.identity import Identity
from tlflax.utils.assets import Asset
from tlflax.utils.errors import UserError, as_user_error, did_you_mean
from tlflax.utils.trees import Tree

IMAGE = 'image'
"""The name of the input, before the first layer."""

_KEPT = 64  # shapes that are remembered

Tensors = dict[str, np.ndarray]
Features = Callable[[Array | np.ndarray], Array]
HeatMap = Callable[[Callable[[Array], Array], Array, Array], Array]


def layers_between(layers: Sequence[str], start: str, stop: str) -> tuple[str, ...]:
    """Returns the layers after `start`, which may be `IMAGE`, up to `stop`."""
    order = (IMAGE, *layers)
    return order[order.index(start) + 1 : order.index(stop) + 1]


@dataclasses.dataclass(frozen=True)
class FastProgram:
    """A function of images to features that is faster on this machine than what XLA compiles.

    Attributes:
        run: The function.
        step: A batch of any multiple of this, up to the size it was made for, needs no compilation
            of its own.
    """

    run: Features
    step: int

    def __call__(self, image: Array | np.ndarray) -> Array:
        """Returns the features of a batch of images."""
        return self.run(image)


class Found(NamedTuple):
    """A backbone's tensors in a file.

    Attributes:
        tensors: Arrays by path, in the layout of `Backbone.init`; not checked yet.
        ignored: The names of the other tensors.
        layer: The last layer that the tensors are for; '': the last of all.
    """

    tensors: Tensors
    ignored: tuple[str, ...]
    layer: str = ''


class Identified(NamedTuple):
    """Checked tensors, and what they are.

    Attributes:
        tensors: As they are used.
        identity: Their name, license and preprocessing.
        how: How that was found, in words.
    """

    tensors: Tensors
    identity: Identity
    how: str


@dataclasses.dataclass(frozen=True, eq=False)
class Backbone:
    """A network whose features feed the heads.

    Attributes:
        name: Its name in messages.
        layers: The names of its layers, whose outputs are features, in order. The variables of a
            layer are the branch of its name in `params` and `state`.
        layer: The layer that feeds heads where the configuration does not say.
        init: (key, last layer) to the first variables of all layers needed for it, float32.
        module: Variables to a module that holds them; `module(x, start=, stop=)` runs the layers
            after `start` up to `stop` on preprocessed images or on the output of `start`.
        trained: As `module`, for layers that are trained, which may be computed in another way;
            None: as frozen ones.
        preprocess: The preprocessing of weights that do not say theirs, a key of `PREPROCESS`.
        interpolation: How its training images were resized, 'bilinear' or 'bicubic'.
        find: (file, last layer or None for all, file name) to its tensors, whatever they are called
            in that format; None where they are named by path.
        identify: (checked tensors, file, path) to what they are; None where they have no known
            digest and need `preprocess`.
        known: What weights are, by the digests that tell it.
        imagenet: Where its ImageNet weights can be downloaded.
        fast_cpu: A faster program for frozen features in float32 on a CPU: (params, layer,
            (b, h, w), preprocessing, whether measuring pays, taps) to the program, or None where
            it does not serve the layers.
        corrected: Layers whose values a release corrected, with a word that tells the features
            computed since from those computed before.
        taps: What `model.head='auto'` reads, each 'LAYER:POOLING'; empty: the layer that feeds
            heads, pooled and whole.
        code: The digest of the file that defines it; '' for those of tlflax.
        heat_map: Extend: which parts of an image speak for a class, in place of Grad-CAM (see
            `tlflax.inference.heat_maps`), for features that are no maps [h, w, c], such as the
            tokens of a transformer. (logits, features, class) to a map f[b, h, w], whose negative
            values count as 0: `logits` is a function of features like those given, f[b, ...], that
            `jax.grad` can differentiate, `features` the outputs of the layer that feeds the head,
            and `class` i[b] the class of each. It is compiled by `jax.jit`.
    """

    name: str
    layers: tuple[str, ...]
    layer: str
    init: Callable[[Array, str], Variables]
    module: Callable[[Variables], nnx.Module]
    trained: Callable[[Variables], nnx.Module] | None = None
    preprocess: str = 'torch'
    interpolation: str = 'bilinear'
    find: Callable[[Container, str | None, str], Found] | None = None
    identify: Callable[[Tensors, Container, Path], Identified] | None = None
    known: Mapping[str, Identity] = dataclasses.field(default_factory=dict)
    imagenet: Asset | None = None
    fast_cpu: Callable[..., FastProgram | None] | None = None
    corrected: Mapping[str, str] = dataclasses.field(default_factory=dict)
    taps: tuple[str, ...] = ()
    code: str = ''
    heat_map: HeatMap | None = None

    def __post_init__(self) -> None:
        unique = len(set(self.layers)) == len(self.layers)
        if not unique or IMAGE in self.layers or self.layer not in self.layers:
            raise UserError(
                f'the layers {self.layers} must be distinct, none of them {IMAGE!r}, and '
                f'{self.layer!r} one of them',
                where=f'backbone {self.name!r}',
                fix='correct its definition',
            )

    def choose(self, layer: str) -> str:
        """Returns the layer that a configuration asks for; 'auto' is `self.layer`.

        Raises:
            UserError: It is not a layer.
        """
        if layer != 'auto' and layer not in self.layers:
            raise UserError(
                f'{layer!r} is not a layer of {self.name}',
                where='config.features.layer',
                fix=did_you_mean(layer, ('auto', *self.layers)),
            )
        return self.layer if layer == 'auto' else layer

    def auto_taps(self, layer: str) -> tuple[str, ...]:
        """Returns what `model.head='auto'` reads, for the `features.layer` of a configuration."""
        if layer == 'auto' and self.taps:
            return self.taps
        chosen = self.choose(layer)
        return (f'{chosen}:mean', f'{chosen}:flatten')

    def shapes(self, layer: str) -> Variables:
        """Returns the shapes and types of the variables needed for a layer."""
        return _shapes(self, layer)

    def between(self, start: str, stop: str) -> tuple[str, ...]:
        """Returns the layers after `start` up to `stop`."""
        return layers_between(self.layers, start, stop)

    def apply(
        self,
        variables: Variables,
        x: Float[Array, 'b ...'],
        *,
        start: str = IMAGE,
        stop: str,
        training: Training | None = None,
        dtype: DTypeLike = jnp.float32,
        precision: lax.Precision = lax.Precision.HIGHEST,
        trained: bool = False,
    ) -> tuple[Float[Array, 'b ...'], Tree]:
        """Runs the layers after `start` up to `stop`.

        Args:
            variables: Like those of `init`.
            x: Preprocessed images [b, h, w, 3], or the output of `start`.
            start: `IMAGE` or a layer.
            stop: A later layer.
            training: None for evaluation; see `tlflax.models.base.modules.call`.
            dtype: Type of the computation; the variables keep theirs.
            precision: Of float32 products on accelerators; HIGH is TF32 on GPUs. Sums are float32.
            trained: Whether some of these layers are trained; frozen ones keep their bits.

        Returns:
            The output of `stop`, and the new state.
        """
        cast = variables
        if dtype != jnp.float32:
            params = jax.tree.map(lambda leaf: leaf.astype(dtype), variables.params)
            cast = variables._replace(params=params)
        module = self.trained if trained and self.trained else self.module
        with jax.default_matmul_precision(precision.name.lower()):
            return modules.call(
                module(cast),
                variables.state,
                x.astype(dtype),
                training,
                start=start,
                stop=stop,
            )

    def feature_shape(self, image_size: tuple[int, int], layer: str) -> tuple[int, ...]:
        """Returns the shape of one image's features at a layer, without computing them.

        Raises:
            UserError: The images do not fit the network.
        """
        if layer == IMAGE:
            return (*image_size, 3)
        with as_user_error(
            f'{self.name} fails on images of {image_size[0]}x{image_size[1]} pixels with '
            '{kind}: {reason}',
            where='config.data.image_size and config.features.layer',
            fix='give larger images, an earlier layer, or correct the backbone',
        ):
            return _feature_shape(self, image_size, layer)


@functools.lru_cache(_KEPT)
def _shapes(backbone: Backbone, layer: str) -> Variables:
    return jax.eval_shape(lambda: backbone.init(jax.random.key(0), layer))


@functools.lru_cache(_KEPT)
def _feature_shape(backbone: Backbone, image_size: tuple[int, int], layer: str) -> tuple[int, ...]:
    image = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)

    def run(variables: Variables, image: Array) -> Array:
        return backbone.apply(variables, image, stop=layer)[0]

    shape = jax.eval_shape(run, backbone.shapes(layer), image).shape[1:]
    if 0 in shape:
        raise ValueError(f'nothing is left of them at {layer}: {shape}')
    return tuple(shape)

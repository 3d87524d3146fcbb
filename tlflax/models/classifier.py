"""A classifier as pure functions: preprocessing, a backbone that is cut in two, and a head.

A `Classifier` holds no arrays: it is the static half of the model, hashable, so that `jax.jit`
compiles once per architecture. Variables are nested dicts `{'backbone': ..., 'head': ...}`; labels,
digests and checkpoints refer to their paths.

The cut is the deepest place below which everything is frozen. What lies below it is a pure function
of the image, so its output can be kept; training runs from there.
"""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from tlflax.models import heads
from tlflax.models.base.backbone import IMAGE, Backbone
from tlflax.models.base.modules import Static, Training, Variables
from tlflax.models.base.taps import Tap
from tlflax.models.weights import preprocess
from tlflax.utils.errors import UserError
from tlflax.utils.parallel.placement import ClassShards, splitting
from tlflax.utils.trees import Tree, flatten, unflatten

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
        backbone: The backbone.
        preprocess: The preprocessing of RGB pixels in 0..255, a key of
            `tlflax.models.weights.preprocess.PREPROCESS`.
        layer: The backbone's layer that feeds the head.
        cut: The layer below which nothing is trained, or `IMAGE`; see `find_cut`.
        dtype: The backbone's compute type, a key of `COMPUTE`.
        head: The head.
        taps: What is taken of several layers, the last of them `layer`; empty: the output of
            `layer`.
        shards: How the head is split over devices by class; None: each has all of it.
        adders: The devices whose sums over a batch are added up at once; None: as XLA does it.
    """

    backbone: Backbone
    preprocess: str
    layer: str
    cut: str
    dtype: str
    head: Static
    taps: tuple[Tap, ...] = ()
    shards: ClassShards | None = None
    adders: Mesh | None = None

    @property
    def cut_is_image(self) -> bool:
        """Whether nothing can be computed once: the first layer is trained."""
        return self.cut == IMAGE

    def above(self, tree: Mapping[str, Tree]) -> Tree:
        """Returns the branches of params or state that are used above the cut."""
        layers, backbone = self.backbone.between(self.cut, self.layer), tree.get('backbone', {})
        own = {
            'backbone': {name: backbone[name] for name in layers if name in backbone},
            'head': tree.get('head', {}),
        }
        return {name: branch for name, branch in own.items() if branch}

    def features(
        self, backbone: Variables, image: Shaped[Array, 'b h w 3']
    ) -> Float[Array, 'b ...']:
        """Runs preprocessing and the frozen part of the backbone on RGB images in 0..255.

        Args:
            backbone: The variables of the backbone; those above the cut may be missing.
            image: Any real type.

        Returns:
            The output at the cut, which must be a layer; or of all taps, f[b, d].
        """
        return self.features_from(backbone, self._preprocessed(image), IMAGE)

    def features_from(
        self, backbone: Variables, x: Float[Array, 'b ...'], start: str
    ) -> Float[Array, 'b ...']:
        """Returns what `features` does, from the output of a layer on.

        Args:
            backbone: See `features`; variables of `start` and of layers below it may be missing.
            x: Preprocessed images, or the output of `start`.
            start: `IMAGE`, or a layer below the cut and not above the first tap.
        """
        if not self.taps:
            return self._run(backbone, x, start, self.cut, None)[0]
        rows = []
        for tap in self.taps:
            if tap.layer != start:
                x = self._run(backbone, x, start, tap.layer, None)[0]
            rows.append(tap.pooled(x))
            start = tap.layer
        return jnp.concatenate(rows, axis=1)

    def __call__(
        self, variables: Variables, batch: dict[str, Array], training: Training | None = None
    ) -> tuple[Float[Array, 'b num_classes'], Tree]:
        """Runs the model on a batch that holds 'features' at the cut, or else an 'image'.

        Args:
            variables: Of backbone and head; of the backbone only what the batch needs.
            batch: See above.
            training: None for evaluation.

        Returns:
            The logits, float32, with padding where the head is split; and the new state.
        """
        x, after = self.before_head(variables, batch, training)
        state = dict(variables.state) | ({'backbone': after} if after else {})
        inside = training and training.inside('head')
        with splitting(self.shards):
            x, after = self.head.apply(variables.branch('head'), x, inside)
        if self.shards is not None:
            x = self.shards.masked(x)
        return x, state | ({'head': after} if after else {})

    def before_head(
        self, variables: Variables, batch: dict[str, Array], training: Training | None = None
    ) -> tuple[Float[Array, 'b ...'], Tree]:
        """Returns what the head reads, float32, and the backbone's new state; see `__call__`.

        The state is {} where no layer of the backbone is above the cut.
        """
        x = batch.get('features')
        if x is None and self.cut_is_image:
            x = self._preprocessed(batch['image'])
        elif x is None:
            x = self.features(variables.branch('backbone'), batch['image'])
        after: Tree = {}
        if self.cut != self.layer:
            own, inside = variables.branch('backbone'), training and training.inside('backbone')
            x, after = self._run(own, x, self.cut, self.layer, inside, trained=True)
        return x.astype(jnp.float32), after

    def _preprocessed(self, image: Shaped[Array, 'b h w 3']) -> Float[Array, 'b h w 3']:
        return preprocess.PREPROCESS[self.preprocess](image)

    def _run(
        self,
        backbone: Variables,
        x: Array,
        start: str,
        stop: str,
        training: Training | None,
        *,
        trained: bool = False,
    ) -> tuple[Array, Tree]:
        dtype, precision = COMPUTE[self.dtype]
        return self.backbone.apply(
            backbone,
            x,
            start=start,
            stop=stop,
            training=training,
            dtype=dtype,
            precision=precision,
            trained=trained,
        )


def create(
    backbone: Backbone,
    trainable: Mapping[str, Tree],
    *,
    image_size: tuple[int, int],
    num_classes: int,
    head: str,
    units: int,
    dropout: float,
    preprocess: str,
    layer: str,
    dtype: str = 'float32',
    taps: tuple[Tap, ...] = (),
) -> Classifier:
    """Returns the static half of a classifier.

    Args:
        backbone: The backbone.
        trainable: The parameters that are trained, which decide the cut; only paths are read.
        image_size: (height, width) in pixels.
        num_classes: Number of logits.
        head: Name of the head; see `tlflax.models.heads.builder`.
        units: Width of the head's hidden layer.
        dropout: Fraction of the last layer's inputs that dropout sets to zero.
        preprocess: See `Classifier`.
        layer: See `Classifier`.
        dtype: See `Classifier`.
        taps: See `Classifier`.

    Raises:
        UserError: The head is unknown or does not fit the features, or taps are asked of a
            backbone that is trained.
    """
    shape, cut = (
        feature_shape(backbone, image_size, layer, taps),
        find_cut(backbone, layer, trainable),
    )
    if taps and cut != layer:
        raise UserError(
            'several layers can feed a head only where all of the backbone is frozen',
            where='config.features.layers and config.optim.labels',
            fix="label all of the backbone 'frozen', or name one layer in features.layer",
        )
    return Classifier(
        backbone=backbone,
        preprocess=preprocess,
        layer=layer,
        cut=cut,
        taps=taps,
        dtype=dtype,
        head=heads.static(head, shape, num_classes, units=units, dropout=dropout),
    )


def feature_shape(
    backbone: Backbone, image_size: tuple[int, int], layer: str, taps: tuple[Tap, ...]
) -> tuple[int, ...]:
    """Returns the shape of one image's features, at a layer or of all taps.

    Raises:
        UserError: The images do not fit the network.
    """
    if not taps:
        return backbone.feature_shape(image_size, layer)
    return (sum(tap.columns(backbone.feature_shape(image_size, tap.layer)) for tap in taps),)


def find_cut(backbone: Backbone, layer: str, trainable: Mapping[str, Tree]) -> str:
    """Returns the deepest layer below which no parameter is trained, or `IMAGE`.

    Args:
        backbone: The backbone.
        layer: The layer that feeds the head.
        trainable: The parameters that are trained; only paths are read.
    """
    learning, cut = trainable.get('backbone', {}), IMAGE
    for name in backbone.between(IMAGE, layer):
        if name in learning:
            return cut
        cut = name
    return layer


def split_state(
    state: Mapping[str, Tree], trainable: Mapping[str, Tree], frozen: Mapping[str, Tree]
) -> tuple[Tree, Tree]:
    """Splits the state of a model into what changes in training and what is frozen.

    State is frozen with the parameters of its layer; that of a layer without parameters, with those
    of the module around it.

    Args:
        state: The state of backbone and head.
        trainable: The parameters that are trained; only paths are read.
        frozen: The other parameters; only paths are read.
    """
    learning = _branches(trainable)
    known = learning | _branches(frozen)
    parts: tuple[Tree, Tree] = ({}, {})
    for path, leaf in flatten(state).items():
        branch = path.rpartition('/')[0]
        while branch and branch not in known:
            branch = branch.rpartition('/')[0]
        parts[branch not in learning][path] = leaf
    return unflatten(parts[0]), unflatten(parts[1])


def _branches(tree: Mapping[str, Tree]) -> set[str]:
    """Returns the paths of all branches of a tree."""
    names = (path.split('/') for path in flatten(tree))
    return {'/'.join(path[:n]) for path in names for n in range(1, len(path))}

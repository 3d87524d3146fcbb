"""tlflax on an accelerator, for bench_accelerator.py: extracting features and training."""

import collections
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import UInt8

from tlflax.features import programs
from tlflax.features.batches import OnDevice
from tlflax.models import classifier, heads
from tlflax.models.base.backbone import Backbone
from tlflax.models.base.modules import Variables
from tlflax.models.vgg import network as vgg
from tlflax.train import steps
from tlflax.train.losses import Loss
from tlflax.train.optim.learner import partition_variables

Images = UInt8[np.ndarray, 'b h w 3']
Extract = Callable[[list[Images]], Iterator[np.ndarray]]
"""Turns batches in host memory into their features, as float32 in host memory."""
Repeat = Callable[[], object]
"""Works through all images once and waits for the end."""

CLASSES = 10
AHEAD = 2  # batches under way before the oldest is fetched
RATE = 1e-4


def is_vgg(backbone: Backbone) -> bool:
    """Returns whether a backbone is a VGG, which `Peer` knows."""
    return backbone.layer == vgg.POOLS[-1]


def last_block(backbone: Backbone) -> str:
    """Returns the layer below the part that is fine-tuned: a block of VGG, else the last layer."""
    if is_vgg(backbone):
        return vgg.POOLS[-2]
    return backbone.layers[backbone.layers.index(backbone.layer) - 1]


class Ours:
    """tlflax with one backbone and compute type.

    Args:
        backbone: A row of the table of backbones.
        variables: Its variables.
        size: Height and width in pixels.
        dtype: A key of `tlflax.models.classifier.COMPUTE`.
    """

    def __init__(self, backbone: Backbone, variables: Variables, size: int, dtype: str) -> None:
        self.backbone, self.size, self.dtype = backbone, size, dtype
        self.variables: Variables = jax.device_put(variables)
        self.frozen = self._classifier({})

    def _classifier(self, trainable: dict[str, Any]) -> classifier.Classifier:
        return classifier.create(
            self.backbone, trainable, image_size=(self.size, self.size), num_classes=CLASSES,
            head='gap_linear', units=1, dropout=0.0, layer=self.backbone.layer, dtype=self.dtype,
            preprocess='caffe' if is_vgg(self.backbone) else self.backbone.preprocess,
        )  # fmt: skip

    def extract(self, batches: list[Images]) -> Iterator[np.ndarray]:
        """Yields features in host memory, as the feature cache is filled on accelerators."""
        waiting: collections.deque[jax.Array] = collections.deque()
        for batch in batches:
            image = jax.device_put(batch)
            waiting.append(programs.backbone_step(self.variables, image, classifier=self.frozen))
            if len(waiting) > AHEAD:
                yield np.asarray(waiting.popleft(), np.float32)
        while waiting:
            yield np.asarray(waiting.popleft(), np.float32)

    def extract_on_device(self, batches: list[Images]) -> Repeat:
        """Returns what computes features of images on the device, and leaves them there."""
        images = jax.device_put(batches)

        def repeat() -> None:
            found = None
            for image in images:
                found = programs.backbone_step(self.variables, image, classifier=self.frozen)
            jax.block_until_ready(found)

        return repeat

    def operations(self) -> float:
        """Returns the operations of the backbone for one image, by direct convolution."""
        return programs.work(self.frozen, 'image', (self.size, self.size))

    def train(self, cut: str, rows: int, batch: int, passes: int) -> tuple[Repeat, float]:
        """Returns what takes training steps from features at a layer, and its operations an image.

        Args:
            cut: The layer above which everything is trained.
            rows: Examples, whose features are on the device.
            batch: Examples a step.
            passes: Over all examples, as one program.
        """
        trainable, frozen = self._partition(cut)
        model = self._classifier(trainable.params)
        below = self.backbone.feature_shape((self.size, self.size), cut)
        features, label = noise(rows, below)
        on_device = OnDevice(jnp.asarray(features), jnp.asarray(label))
        one = np.arange(rows // batch * batch, dtype=np.int32).reshape(-1, batch)
        order = jnp.asarray(np.tile(one, (passes, 1)))
        tx = optax.adam(RATE)
        state = steps.init_state(trainable, tx)
        first = steps.gather(on_device, order[0])
        lowered = steps.train_step.lower(
            state, frozen, first, 0, Loss(), classifier=model, tx=tx, average=None
        )
        operations = float((lowered.cost_analysis() or {}).get('flops', 0)) / batch

        def repeat() -> None:
            nonlocal state
            state, sums = steps.train_scan(
                state, frozen, on_device, order, 0, Loss(), classifier=model, tx=tx
            )
            jax.block_until_ready(sums)

        return repeat, operations

    def _partition(self, cut: str) -> tuple[Variables, Variables]:
        shape = self.backbone.feature_shape((self.size, self.size), self.backbone.layer)
        head = heads.init('gap_linear', shape, CLASSES, jax.random.key(0), units=1, dropout=0.0)
        both = Variables(
            {'backbone': self.variables.params, 'head': head.params},
            {'backbone': self.variables.state} if self.variables.state else {},
        )
        learns = set(self.backbone.between(cut, self.backbone.layer))

        def label(path: tuple[Any, ...], _: object) -> str:
            names = [key.key for key in path]
            return 'trained' if names[0] == 'head' or names[1] in learns else 'frozen'

        labels = jax.tree_util.tree_map_with_path(label, both.params)
        trainable, frozen = partition_variables(both, labels)
        return jax.tree.map(jnp.array, trainable), frozen  # a copy: training donates it


def noise(rows: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns features as a ReLU leaves them, f32[rows, *shape], and classes, i32[rows]."""
    rng = np.random.default_rng(1)
    part = np.maximum(rng.standard_normal((min(rows, 64), *shape), np.float32), 0)
    label = rng.integers(0, CLASSES, rows, np.int32)
    return np.resize(part, (rows, *shape)), label

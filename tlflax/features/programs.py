"""Programs of the frozen part of the backbone: from images, or from a layer on, to features."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Shaped, UInt8

from tlflax.models.base.backbone import IMAGE
from tlflax.models.base.modules import Variables
from tlflax.models.base.taps import Tap
from tlflax.models.classifier import Classifier
from tlflax.models.weights import preprocess
from tlflax.utils.parallel.mesh import on_one_device, pad, put_batch

BATCH = 32  # images computed at once on a CPU: the activations of more do not fit its cache
ACCELERATOR_BATCH = 256  # on each accelerator, to fill it
_SMALL = (32, 8, 1)  # sizes of batches of a few images, besides the full one
_WORTH_MEASURING = 20_000 * 224**2  # pixels, about half an hour on two cores
Compute = Callable[[UInt8[np.ndarray, 'b h w 3']], jax.Array]
"""Turns a batch of images into features on the device, f[b, ...]."""
Rest = Callable[[Float[np.ndarray, 'b ...'] | Float[Array, 'b ...']], jax.Array]
"""Turns the outputs of a layer into features on the device, f[b, ...]."""


@functools.partial(jax.jit, static_argnames=('classifier',))
def backbone_step(
    backbone: Variables, image: Shaped[Array, 'b h w 3'], *, classifier: Classifier
) -> Float[Array, 'b ...']:
    """Returns the features of a batch of RGB images in 0..255."""
    return classifier.features(backbone, image)


def batch_size() -> int:
    """Returns how many images are computed at once on the devices of this process."""
    on_cpu = jax.default_backend() == 'cpu'
    return BATCH if on_cpu else ACCELERATOR_BATCH * jax.local_device_count()


def in_batches(
    values: Shaped[np.ndarray, 'n ...'], program: Callable[[np.ndarray], Array]
) -> Shaped[np.ndarray, 'n ...']:
    """Runs a program on batches of few different sizes, the last one padded.

    Args:
        values: At least one.
        program: Is compiled once for each size.
    """
    parts, done = [], 0
    for size in batch_sizes(len(values), batch_size()):
        part = values[done : done + size]
        parts.append(np.asarray(program(pad(part, size)))[: len(part)])
        done += len(part)
    return np.concatenate(parts)


def batch_sizes(n: int, full: int) -> Iterator[int]:
    """Yields the sizes of the batches that `n` images are computed in; at most the last is padded.

    Args:
        n: Number of images.
        full: The largest size.
    """
    for size in (full, *(small for small in _SMALL if small < full)):
        while 2 * n > size and n > 0:  # half of a batch costs more in smaller ones
            yield size
            n -= size


def backbone_program(
    backbone: Variables,
    classifier: Classifier,
    *,
    image_size: tuple[int, int],
    images: int,
    mesh: Mesh,
) -> Compute:
    """Returns the fastest program for features on these devices.

    Where the backbone's fast program serves only lower layers than the cut, it computes the highest
    of these, and the rest follows from there.

    Args:
        backbone: The backbone's variables.
        classifier: The preprocessing, the cut and the compute type.
        image_size: (height, width) in pixels.
        images: Number of images to come; for many, it pays to measure what is fastest.
        mesh: The devices over which batches are split.
    """
    if has_fast_program(classifier):
        measured = images * math.prod(image_size) > _WORTH_MEASURING
        program = _fast_program(backbone, classifier, image_size, mesh, measured=measured)
        if program is not None:
            return program
    return plain_program(backbone, classifier, mesh=mesh)


def plain_program(backbone: Variables, classifier: Classifier, *, mesh: Mesh) -> Compute:
    """Returns the program as XLA compiles it: for few images, as nothing is prepared for it."""
    return lambda image: backbone_step(
        backbone, put_batch({'image': image}, mesh)['image'], classifier=classifier
    )


def has_fast_program(classifier: Classifier) -> bool:
    """Returns whether some of the backbone's layers have a faster program on these devices."""
    fast = classifier.backbone.fast_cpu is not None and classifier.dtype != 'bfloat16'
    return fast and jax.default_backend() == 'cpu'


def _fast_program(
    backbone: Variables,
    classifier: Classifier,
    image_size: tuple[int, int],
    mesh: Mesh,
    *,
    measured: bool,
) -> Compute | None:
    """Returns the fast program up to the highest layer that it serves, followed by the rest."""
    model, order = classifier.backbone, classifier.backbone.layers
    assert model.fast_cpu is not None
    params = on_one_device(backbone.params)  # its threads use all cores, however many devices
    for base in reversed(model.between(IMAGE, classifier.cut)):
        below = tuple(t for t in classifier.taps if order.index(t.layer) <= order.index(base))
        whole = base == classifier.cut
        keep = (Tap(base, 'flatten'),) if classifier.taps and not whole else ()
        fast = model.fast_cpu(
            params,
            layer=base,
            taps=(*below, *keep),
            shape=(BATCH, *image_size),
            before=preprocess.PREPROCESS[classifier.preprocess],
            measured=measured,
        )
        if fast is None:
            continue
        if whole:
            return fast
        above = dataclasses.replace(classifier, taps=classifier.taps[len(below) :])
        rest = rest_program(backbone, above, base, image_size=image_size, mesh=mesh)
        return lambda image: rest(fast(image))
    return None


def rest_program(
    backbone: Variables,
    classifier: Classifier,
    start: str,
    *,
    image_size: tuple[int, int],
    mesh: Mesh,
) -> Rest:
    """Returns the program that computes features from the output of a layer below the cut.

    Args:
        backbone: The backbone's variables.
        classifier: The cut, the compute type, and the taps above `start`.
        start: The layer.
        image_size: (height, width) in pixels.
        mesh: The devices over which batches are split.
    """
    shape = classifier.backbone.feature_shape(image_size, start)
    return lambda below: _rest_step(
        backbone,
        put_batch({'below': below}, mesh)['below'],
        classifier=classifier,
        start=start,
        shape=shape,
    )


@functools.partial(jax.jit, static_argnames=('classifier', 'start', 'shape'))
def _rest_step(
    backbone: Variables,
    below: Float[Array, 'b ...'],
    *,
    classifier: Classifier,
    start: str,
    shape: tuple[int, ...],
) -> Float[Array, 'b ...']:
    """Returns features from the output of `start`; with taps, from rows that end with it.

    What comes before it in these rows, the taps up to `start`, stays.
    """
    if not classifier.taps:
        return classifier.features_from(backbone, below, start)
    size = math.prod(shape)
    x = below[:, -size:].reshape(-1, *shape)
    above = classifier.features_from(backbone, x, start)
    return jnp.concatenate([below[:, :-size], above], axis=1)


def work(classifier: Classifier, start: str, image_size: tuple[int, int]) -> float:
    """Returns the floating-point operations from a layer, or `IMAGE`, to the cut, for one image."""
    model = classifier.backbone
    x = jax.ShapeDtypeStruct((1, *model.feature_shape(image_size, start)), jnp.float32)

    def run(backbone: Variables, x: Array) -> Array:
        return classifier.features_from(backbone, x, start)

    cost = jax.jit(run).lower(model.shapes(classifier.cut), x).cost_analysis()
    return float((cost or {}).get('flops', 0))

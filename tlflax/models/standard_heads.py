"""The heads that tlflax has, as Flax NNX modules.

`HEADS` maps a name to a module `Head(shape, num_classes, units=, dropout=, rngs=)`, which maps
features [b, *shape] to logits [b, num_classes]. A head that has a parameter `key` gets the key of
dropout there.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from tlflax.models.vgg import trained_cpu
from tlflax.utils.errors import UserError
from tlflax.utils.parallel import parts
from tlflax.utils.parallel.placement import class_product

Shape = tuple[int, ...]
_HERE: contextvars.ContextVar[bool] = contextvars.ContextVar('here', default=False)
SMALLEST = {'conv': 4, 'gap_linear': 1, 'flatten_linear': 1, 'mlp': 1}
"""Height and width of a feature map below which a head does not fit, by its name."""


def conv3x3_before_pool(
    x: Float[Array, 'b h w c'], kernel: Float[Array, '3 3 c k']
) -> Float[Array, 'b 2*(h//2) 2*(w//2) k']:
    """Computes a 3x3 stride-1 SAME convolution as one matrix product per row of the kernel.

    Omits an odd last row and column, which 2x2 pooling would drop. On a CPU, XLA runs the gradients
    of small convolutions slowly, and every convolution inside `lax.scan` on one thread; matrix
    products are fast in both cases.
    """
    b, h, w, c = x.shape
    height, width = h // 2 * 2, w // 2 * 2
    x = x.transpose(1, 2, 0, 3)  # rows of the map are now a contiguous matrix
    terms = []
    for i in range(3):
        first, last = max(0, i - 1), min(h, height + i - 1)
        above = first - (i - 1)
        # With channels last, XLA's matrix product for the gradient is the faster of two.
        row = kernel[i].transpose(0, 2, 1).reshape(-1, c)
        taps = _products(x[first:last], row).reshape(last - first, w, b, 3, -1)
        edges = (above, height - (last - first) - above), (1, 1), (0, 0), (0, 0), (0, 0)
        taps = jnp.pad(taps, edges)
        terms += [taps[:, j : j + width, :, j] for j in range(3)]
    return sum(terms[1:], start=terms[0]).transpose(2, 0, 1, 3)


def _products(x: Float[Array, 'h w b c'], row: Float[Array, 'k c']) -> Float[Array, 'h w b k']:
    """Multiplies every place of a map with a matrix.

    As one axis, places and examples are faster on one device; several devices, over which the
    examples are split, would first gather all of them.
    """
    if jax.device_count() > 1:
        return jnp.einsum('hwbc,kc->hwbk', x, row)
    return jnp.einsum('nc,kc->nk', x.reshape(-1, x.shape[-1]), row).reshape(*x.shape[:-1], -1)


def _conv_general_dilated(x: Array, kernel: Array, *args: Any, **kwargs: Any) -> Array:
    """Replaces `lax.conv_general_dilated` in 3x3 layers before pooling; see above for CPUs."""
    height, width = (size // 2 * 2 for size in x.shape[1:3])

    def direct(x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(x, kernel, *args, **kwargs)[:, :height, :width]

    if _HERE.get():
        return (conv3x3_before_pool if jax.default_backend() == 'cpu' else direct)(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=conv3x3_before_pool, default=direct)


@contextlib.contextmanager
def for_these_devices() -> Iterator[None]:
    """Lets heads be traced for JAX's default devices alone.

    Tracing the way of other devices too, which is what exports need, takes twice as long.
    """
    token = _HERE.set(True)
    try:
        yield
    finally:
        _HERE.reset(token)


def _conv3x3(features_in: int, features_out: int, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(
        features_in,
        features_out,
        (3, 3),
        kernel_init=nnx.initializers.he_normal(),
        conv_general_dilated=_conv_general_dilated,
        rngs=rngs,
    )


def _hidden(features_in: int, features_out: int, rngs: nnx.Rngs) -> nnx.Linear:
    init = nnx.initializers.he_normal()
    return nnx.Linear(features_in, features_out, kernel_init=init, rngs=rngs)


def _logits(features_in: int, num_classes: int, rngs: nnx.Rngs) -> nnx.Linear:
    """Returns the last layer, of zeros, so that training starts at equal probabilities."""
    init = nnx.initializers.zeros_init()
    return nnx.Linear(
        features_in, num_classes, kernel_init=init, dot_general=class_product, rngs=rngs
    )


def _dropout(x: Array, rate: float, key: Array | None) -> Array:
    if key is None or rate == 0:
        return x
    if parts.inside():
        return jnp.where(parts.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)
    return nnx.Dropout(rate)(x, deterministic=False, rngs=key)


def _pool(x: Float[Array, 'b h w c']) -> Float[Array, 'b h//2 w//2 c']:
    if jax.default_backend() == 'gpu':  # XLA's gradient of it there may differ from run to run
        return trained_cpu.max_pool(x)
    return nnx.max_pool(x, (2, 2), strides=(2, 2))


class ConvHead(nnx.Module):
    """The head of the traffic recipe: conv 32, pool, conv 64, pool, dense, dropout, dense."""

    def __init__(
        self, shape: Shape, num_classes: int, *, units: int, dropout: float, rngs: nnx.Rngs
    ) -> None:
        height, width, channels = _spatial(shape, 'conv', SMALLEST['conv'])
        self.dropout = dropout
        self.conv1 = _conv3x3(channels, 32, rngs)
        self.conv2 = _conv3x3(32, 64, rngs)
        self.hidden = _hidden((height // 4) * (width // 4) * 64, units, rngs)
        self.logits = _logits(units, num_classes, rngs)

    def __call__(
        self, x: Float[Array, 'b h w c'], key: Array | None = None
    ) -> Float[Array, 'b num_classes']:
        x = _pool(nnx.relu(self.conv1(x)))
        x = _pool(nnx.relu(self.conv2(x)))
        x = nnx.relu(self.hidden(x.reshape(x.shape[0], -1)))
        return self.logits(_dropout(x, self.dropout, key))


class GapLinearHead(nnx.Module):
    """Global average pool and a linear layer: the fewest parameters, the strongest prior."""

    def __init__(
        self, shape: Shape, num_classes: int, *, units: int, dropout: float, rngs: nnx.Rngs
    ) -> None:
        del units
        *_, channels = _spatial(shape, 'gap_linear', SMALLEST['gap_linear'])
        self.dropout = dropout
        self.logits = _logits(channels, num_classes, rngs)

    def __call__(
        self, x: Float[Array, 'b h w c'], key: Array | None = None
    ) -> Float[Array, 'b num_classes']:
        return self.logits(_dropout(x.mean((1, 2)), self.dropout, key))


class FlattenLinearHead(nnx.Module):
    """Logistic regression on every feature: the linear probe."""

    def __init__(
        self, shape: Shape, num_classes: int, *, units: int, dropout: float, rngs: nnx.Rngs
    ) -> None:
        del units
        self.dropout = dropout
        self.logits = _logits(_size(shape), num_classes, rngs)

    def __call__(
        self, x: Float[Array, 'b ...'], key: Array | None = None
    ) -> Float[Array, 'b num_classes']:
        return self.logits(_dropout(x.reshape(x.shape[0], -1), self.dropout, key))


class MLPHead(nnx.Module):
    """Flatten, a dense hidden layer, dropout and a linear layer."""

    def __init__(
        self, shape: Shape, num_classes: int, *, units: int, dropout: float, rngs: nnx.Rngs
    ) -> None:
        self.dropout = dropout
        self.hidden = _hidden(_size(shape), units, rngs)
        self.logits = _logits(units, num_classes, rngs)

    def __call__(
        self, x: Float[Array, 'b ...'], key: Array | None = None
    ) -> Float[Array, 'b num_classes']:
        x = nnx.relu(self.hidden(x.reshape(x.shape[0], -1)))
        return self.logits(_dropout(x, self.dropout, key))


HEADS: dict[str, Callable[..., nnx.Module]] = {
    'conv': ConvHead,
    'gap_linear': GapLinearHead,
    'flatten_linear': FlattenLinearHead,
    'mlp': MLPHead,
}


def _spatial(shape: Shape, name: str, smallest: int) -> tuple[int, int, int]:
    if len(shape) != 3 or min(shape[:2]) < smallest:
        raise UserError(
            f'the {name!r} head needs feature maps of at least {smallest}x{smallest}, '
            f'but the features have shape {shape}',
            where='config.model.head',
            fix='use larger images (config.data.image_size), an earlier layer '
            "(config.features.layer) or the 'mlp' or 'flatten_linear' head",
        )
    return shape[0], shape[1], shape[2]


def _size(shape: Shape) -> int:
    return math.prod(shape)

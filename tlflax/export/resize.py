"""The resize of `tlflax.data.pipeline` as a pure function of JAX, for images of any size.

It is written with the sizes as traced numbers, so that it becomes part of an exported program.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Shaped

from tlflax.data.images.format import ImageFormat

_METHODS = {'bilinear': 'linear', 'bicubic': 'cubic'}


class _Place(NamedTuple):
    """Where an image goes along one axis: position in the result = scale * own + offset."""

    scale: Float[Array, '']
    offset: Float[Array, '']


def resize(
    image: Shaped[Array, 'b h w 3'], form: ImageFormat, size: tuple[int, int]
) -> Float[Array, 'b height width 3']:
    """Resizes images and rounds them, as `tlflax.data.pipeline.resize.resize_image` does.

    Args:
        image: Images in 0..255 of one size, which may be symbolic.
        form: How they are resized; its own size is not used.
        size: (height, width) of the result.

    Returns:
        Integers in 0..255, float32.
    """
    height, width = _places(image.shape[1], image.shape[2], size, form.resize)
    x = image.astype(jnp.float32)
    for axis, place in _in_order((1, height), (2, width), cubic=form.interpolation == 'bicubic'):
        shape = list(x.shape)
        shape[axis] = size[axis - 1]
        x = jax.image.scale_and_translate(
            x,
            tuple(shape),
            (axis,),
            place.scale[None],
            place.offset[None],
            method=_METHODS[form.interpolation],
            antialias=form.antialias,
        )
        # Cubic interpolation overshoots at edges; Pillow cuts that off after each pass.
        x = jnp.clip(x, 0, 255)
    return jnp.floor(x + 0.5)


def _in_order(
    rows: tuple[int, _Place], columns: tuple[int, _Place], *, cubic: bool
) -> tuple[tuple[int, _Place], tuple[int, _Place]]:
    """Returns what is resampled first: as Pillow, columns, where what is cut off depends on it."""
    return (columns, rows) if cubic else (rows, columns)


def _places(rows: Any, columns: Any, size: tuple[int, int], mode: str) -> tuple[_Place, _Place]:
    """Returns where an image goes, in integers as long as possible: halves must stay halves.

    Args:
        rows: Height of the image, an integer or a symbol.
        columns: Its width.
        size: (height, width) of the result.
        mode: See `ImageFormat.resize`.
    """
    own = jnp.asarray(rows, jnp.int32), jnp.asarray(columns, jnp.int32)
    target = jnp.int32(size[0]), jnp.int32(size[1])
    if mode == 'stretch':
        return _stretched(own[0], target[0]), _stretched(own[1], target[1])
    return (_cropped if mode == 'crop' else _padded)(own, target)


def _stretched(own: Array, target: Array) -> _Place:
    return _Place(_ratio(target, own), jnp.float32(0))


def _cropped(own: tuple[Array, Array], target: tuple[Array, Array]) -> tuple[_Place, _Place]:
    """Returns the places of an image that covers the result, its center in the center."""
    wide, high = own[1] * target[0], own[0] * target[1]
    by_height, zero = wide >= high, jnp.int32(0)
    factor = jnp.where(by_height, _ratio(target[0], own[0]), _ratio(target[1], own[1]))
    # Along the other axis, half of what is too much is cut off.
    down = _ratio(jnp.where(by_height, zero, wide - high), 2 * own[1])
    across = _ratio(jnp.where(by_height, high - wide, zero), 2 * own[0])
    return _Place(factor, down), _Place(factor, across)


def _padded(own: tuple[Array, Array], target: tuple[Array, Array]) -> tuple[_Place, _Place]:
    """Returns the places of an image that fits inside the result, of whole pixels."""
    wide, high = own[1] * target[0], own[0] * target[1]
    height = jnp.where(wide <= high, target[0], _rounded(high, own[1]))
    width = jnp.where(wide <= high, _rounded(wide, own[0]), target[1])
    return _inside(own[0], height, target[0]), _inside(own[1], width, target[1])


def _inside(own: Array, inner: Array, target: Array) -> _Place:
    inner = jnp.clip(inner, 1, target)
    before = _rounded(target - inner, jnp.int32(2))
    return _Place(_ratio(inner, own), before.astype(jnp.float32))


def _ratio(a: Array, b: Array) -> Float[Array, '']:
    return a.astype(jnp.float32) / b.astype(jnp.float32)


def _rounded(a: Array, b: Array) -> Array:
    """Returns a / b, a >= 0 and b > 0, rounded to the nearest integer, halves to an even one."""
    whole, two = lax.div(a, b), jnp.int32(2)
    rest, odd = a - whole * b, whole - lax.div(whole, two) * two == 1
    return whole + ((2 * rest > b) | ((2 * rest == b) & odd)).astype(jnp.int32)

"""Sizes that may depend on those of the input."""

import itertools
import math
from typing import Any

import numpy as np

from tlflax.export.jaxpr.refused import Refused

Dim = Any
"""An integer, or an expression of the sizes of the input, as `jax.export.symbolic_shape` has it."""
Shape = tuple[Dim, ...]


def is_symbolic(size: Dim) -> bool:
    """Whether a size depends on those of the input."""
    return not isinstance(size, int | np.integer)


def factors(size: Dim, shape: Shape) -> tuple[tuple[int, ...], int]:
    """Returns a symbolic size as the product of sizes of the input and a number.

    Args:
        size: Such as 3 * images * height.
        shape: Of the input, such as (images, height, width, 3).

    Returns:
        The axes of the input, and the number.

    Raises:
        Refused: It is no such product.
    """
    symbols = [axis for axis, one in enumerate(shape) if is_symbolic(one)]
    for count in range(1, len(symbols) + 1):
        for axes in itertools.combinations(symbols, count):
            product = math.prod(shape[axis] for axis in axes)
            if size % product == 0 and not is_symbolic(size // product):
                return axes, int(size // product)
    raise Refused(f'a shape has the size {size}, which is no product of sizes of the input')


def with_the_rest(shape: Shape) -> Shape:
    """Returns a shape to reshape to: -1, whatever is left, for its only symbolic size."""
    unknown = [axis for axis, one in enumerate(shape) if is_symbolic(one)]
    if len(unknown) != 1:
        return shape
    return tuple(-1 if axis == unknown[0] else one for axis, one in enumerate(shape))

"""What operations that sum, or otherwise reduce, ask for, in integers."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tlflax.export.jaxpr.operation import Operation
from tlflax.export.jaxpr.refused import Refused
from tlflax.export.jaxpr.sizes import Dim, Shape


class Factor(NamedTuple):
    """A factor of a product of matrices.

    Attributes:
        axes: Those of the input, in the order in which the matrix has them.
        shape: Of the matrix.
    """

    axes: tuple[int, ...]
    shape: Shape


class Product(NamedTuple):
    """A product of matrices, [*batch, rows, summed] x [*batch, summed, columns].

    Attributes:
        left: The first factor.
        right: The second factor.
        shape: Of the product.
    """

    left: Factor
    right: Factor
    shape: Shape


def product(operation: Operation) -> Product:
    """Returns a `dot_general` as a product of matrices."""
    (left, right), (left_batch, right_batch) = operation.params['dimension_numbers']
    one, two = operation.in_shapes
    left_free = _rest(len(one), left, left_batch)
    right_free = _rest(len(two), right, right_batch)
    batch, summed = pick(one, left_batch), math.prod(pick(one, left))
    rows, columns = math.prod(pick(one, left_free)), math.prod(pick(two, right_free))
    return Product(
        Factor((*left_batch, *left_free, *left), (*batch, rows, summed)),
        Factor((*right_batch, *right, *right_free), (*batch, summed, columns)),
        (*batch, rows, columns),
    )


def _rest(rank: int, *used: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axis for axis in range(rank) if not any(axis in axes for axes in used))


def pick(shape: Sequence[Dim], axes: Sequence[int]) -> Shape:
    """Returns the sizes of some axes, in this order."""
    return tuple(shape[axis] for axis in axes)


def inverse(axes: Sequence[int]) -> tuple[int, ...]:
    """Returns the permutation that undoes another."""
    return tuple(np.argsort(axes).tolist())


def still_axes(operation: Operation) -> list[int]:
    """Returns the axes along which a window does not slide.

    Raises:
        Refused: It slides over other numbers than float32.
    """
    if operation.dtype != np.float32:
        raise Refused(f'{operation.name!r} of {operation.dtype}')
    params = operation.params
    return [
        axis
        for axis, size in enumerate(params['window_dimensions'])
        if size == params['window_strides'][axis] == 1 and not any(params['padding'][axis])
    ]

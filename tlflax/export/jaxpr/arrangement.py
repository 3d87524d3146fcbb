"""What operations that move elements ask for, in integers."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax import lax

from tlflax.export.jaxpr.operation import Operation
from tlflax.export.jaxpr.refused import Refused
from tlflax.export.jaxpr.sizes import Shape, is_symbolic

Ranges = dict[int, tuple[int, int | None, int]]
"""(first, after the last, step) by axis, without axes that stay as they are; None is the end."""


class Rows(NamedTuple):
    """The places that a look-up reads along one axis of a block.

    Attributes:
        axis: Of the block.
        column: Of the places, those along this axis.
        last: The last place that there is.
        clipped: Whether places beyond are moved to the nearest that there is.
        order: Where each axis of what is found belongs, if the axes of the places stand where the
            axis was.
    """

    axis: int
    column: int
    last: int
    clipped: bool
    order: tuple[int, ...]


class LookUp(NamedTuple):
    """A look-up in parts.

    Attributes:
        ranges: The block of the input that is looked up in.
        sizes: Its shape.
        dropped: Its axes of size 1 that the result has not; `rows` counts axes without them.
        rows: What is read of the block; None: all of it.
    """

    ranges: Ranges
    sizes: Shape
    dropped: list[int]
    rows: Rows | None


def sliced(operation: Operation) -> Ranges:
    """Returns what a `slice` takes."""
    params, before = operation.params, operation.in_shapes[0]
    strides = params['strides'] or (1,) * len(before)
    ranges: Ranges = {}
    for axis, (start, stop, stride) in enumerate(
        zip(params['start_indices'], params['limit_indices'], strides, strict=True)
    ):
        if is_symbolic(start) or (is_symbolic(stop) and stop != before[axis]):
            raise Refused("'slice' at a place that depends on the number of images")
        if start != 0 or stop != before[axis] or stride != 1:
            ranges[axis] = (int(start), None if is_symbolic(stop) else int(stop), int(stride))
    return ranges


def dynamically_sliced(operation: Operation) -> Ranges:
    """Returns what a `dynamic_slice` takes."""
    starts = [one for one in operation.constants[1:] if one is not None]
    if len(starts) < len(operation.inputs) - 1:
        raise Refused("'dynamic_slice' at a place that depends on the image")
    return _block(operation.in_shapes[0], list(map(int, starts)), operation.params['slice_sizes'])


def _block(before: Shape, starts: list[int], sizes: Sequence) -> Ranges:
    """Returns the block of a size that begins at a place, or as near as it fits."""
    ranges: Ranges = {}
    for axis, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        if size != before[axis]:
            first = min(max(start, 0), before[axis] - size)
            ranges[axis] = (first, first + int(size), 1)
    return ranges


def padding(operation: Operation) -> list[tuple[int, int]]:
    """Returns what a `pad` adds before and after each axis; negative amounts cut off."""
    config = operation.params['padding_config']
    if any(interior for *_, interior in config):
        raise Refused("'pad' between elements")
    return [(int(low), int(high)) for low, high, _ in config]


def counted(operation: Operation) -> tuple[Shape, np.ndarray | None]:
    """Returns what an `iota` is before it is broadcast.

    Returns:
        Its shape, 1 along all axes but that along which it counts; and the numbers, None where
        their count is known only when the program runs.
    """
    axis, shape = operation.params['dimension'], operation.shape
    own = tuple(size if one == axis else 1 for one, size in enumerate(shape))
    if is_symbolic(shape[axis]):
        return own, None
    return own, np.arange(shape[axis], dtype=operation.dtype).reshape(own)


def looked_up(operation: Operation) -> LookUp:
    """Returns a `gather` of blocks whose places are known, but along one axis at most."""
    numbers, before = operation.params['dimension_numbers'], operation.in_shapes[0]
    along, gone = numbers.start_index_map, numbers.collapsed_slice_dims
    places = operation.in_shapes[1][:-1]
    known = _known_starts(operation.constants[1], along)
    if places and along and len(known) == len(along):  # the same block again and again
        known.pop(next((axis for axis in along if axis in gone), along[0]))
    unknown = [axis for axis in along if axis not in known]
    batching = numbers.operand_batching_dims or numbers.start_indices_batching_dims
    if batching or len(unknown) > 1 or not set(unknown) <= set(gone):
        raise Refused("'gather' other than along one axis")
    sizes = list(operation.params['slice_sizes'])
    for axis in unknown:
        sizes[axis] = before[axis]
    starts = [known.get(axis, 0) for axis in range(len(before))]
    dropped = [axis for axis in gone if axis not in unknown]
    rows = _rows(operation, unknown[0], dropped) if unknown else None
    return LookUp(_block(before, starts, sizes), tuple(sizes), dropped, rows)


def _known_starts(index: np.ndarray | None, along: tuple[int, ...]) -> dict[int, int]:
    """Returns the axes along which all places are known and the same, and where they are."""
    if index is None or index.size == 0:
        return {}
    columns = dict(zip(along, index.reshape(-1, len(along)).T, strict=True))
    return {axis: int(one[0]) for axis, one in columns.items() if (one == one[0]).all()}


def _rows(operation: Operation, axis: int, dropped: list[int]) -> Rows:
    """Returns what is read along an axis of the input, after others were dropped."""
    numbers = operation.params['dimension_numbers']
    place, offset = axis - sum(one < axis for one in dropped), numbers.offset_dims
    own = [one for one in range(len(operation.shape)) if one not in offset]
    return Rows(
        axis=place,
        column=numbers.start_index_map.index(axis),
        last=operation.in_shapes[0][axis] - 1,
        clipped=operation.params['mode'] == lax.GatherScatterMode.CLIP,
        order=(*offset[:place], *own, *offset[place:]),
    )

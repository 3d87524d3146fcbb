"""Joins what follows a convolution to it, as runtimes do it with eight bits only where it is given.

Constants that are added to each channel, subtracted from it or multiplied with it become part of
the kernel and of its bias; the larger of a number and zero is a ReLU.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx
from jaxtyping import Float
from onnx import numpy_helper

_JOINED = ('Add', 'Sub', 'Mul')


def fuse(model: onnx.ModelProto) -> None:
    """Rewrites the nodes and initializers of a model; it computes the same but for rounding."""
    graph = model.graph
    arrays = {one.name: one for one in graph.initializer}
    _rectify(graph, arrays)
    for conv, joined, following in list(_convolutions(graph, arrays)):
        _join(graph, conv, joined, following, arrays)
    used = {name for node in graph.node for name in node.input}
    kept = [one for one in arrays.values() if one.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _rectify(graph: onnx.GraphProto, arrays: dict[str, onnx.TensorProto]) -> None:
    for node in graph.node:
        if node.op_type != 'Max' or len(node.input) != 2:
            continue
        for number, name in enumerate(node.input):
            if name in arrays and _is_zero(arrays[name]):
                other = node.input[1 - number]
                node.op_type = 'Relu'
                del node.input[:]
                node.input.append(other)
                break


def _is_zero(tensor: onnx.TensorProto) -> bool:
    return (
        tensor.data_type == onnx.TensorProto.FLOAT
        and not tensor.dims
        and not numpy_helper.to_array(tensor).any()
    )


def _convolutions(
    graph: onnx.GraphProto, arrays: dict[str, onnx.TensorProto]
) -> Iterator[tuple[onnx.NodeProto, list[onnx.NodeProto], list[np.ndarray]]]:
    """Yields convolutions, the nodes after each that can be joined to it, and their constants."""
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    for conv in graph.node:
        if conv.op_type != 'Conv' or len(conv.input) != 2 or conv.input[1] not in arrays:
            continue
        dims = arrays[conv.input[1]].dims
        joined, constants, name = [], [], conv.output[0]
        while len(after := users.get(name, [])) == 1:
            found = _by_channel(after[0], name, arrays, dims[0], len(dims))
            if found is None:
                break
            joined.append(after[0])
            constants.append(found)
            name = after[0].output[0]
        if joined:
            yield conv, joined, constants


def _by_channel(
    node: onnx.NodeProto, name: str, arrays: dict[str, onnx.TensorProto], channels: int, rank: int
) -> Float[np.ndarray, ' channels'] | None:
    """Returns the constants that a node joins to the channels of `name`, or None."""
    if node.op_type not in _JOINED or (node.op_type == 'Sub' and node.input[0] != name):
        return None
    other = next((one for one in node.input if one != name), '')
    if other not in arrays or arrays[other].data_type != onnx.TensorProto.FLOAT:
        return None
    array = numpy_helper.to_array(arrays[other])
    if array.ndim not in (0, rank) or array.size not in (1, channels):
        return None
    if array.ndim and array.shape[1] != array.size:
        return None
    return np.broadcast_to(array.reshape(-1), channels)


def _join(
    graph: onnx.GraphProto,
    conv: onnx.NodeProto,
    joined: list[onnx.NodeProto],
    constants: list[np.ndarray],
    arrays: dict[str, onnx.TensorProto],
) -> None:
    """Gives a convolution the constants of nodes, which are removed."""
    kernel = numpy_helper.to_array(arrays[conv.input[1]])
    bias: np.ndarray = np.zeros(len(kernel))
    factor: np.ndarray = np.ones(len(kernel))
    for node, constant in zip(joined, constants, strict=True):
        if node.op_type == 'Mul':
            bias, factor = bias * constant, factor * constant
        else:
            bias = bias + constant if node.op_type == 'Add' else bias - constant
    counts = Counter(name for node in graph.node for name in node.input)
    if not (factor == 1).all():
        scaled = kernel * factor.reshape(-1, *[1] * (kernel.ndim - 1))
        _replace(conv, 1, scaled, conv.input[1], counts, arrays)
    label = next(
        (name for node in reversed(joined) for name in node.input if name in arrays), conv.name
    )
    conv.input.append('')
    _replace(conv, 2, bias, label, counts, arrays)
    conv.output[0] = joined[-1].output[0]
    for node in joined:
        graph.node.remove(node)


def _replace(
    node: onnx.NodeProto,
    number: int,
    array: np.ndarray,
    label: str,
    counts: Counter[str],
    arrays: dict[str, onnx.TensorProto],
) -> None:
    """Gives a node another constant, under the name of the one before unless others use that."""
    name = label if counts[label] == 1 else f'{node.name}/{number}'
    arrays[name] = numpy_helper.from_array(array.astype(np.float32), name)
    node.input[number] = name

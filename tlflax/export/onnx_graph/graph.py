"""An ONNX graph under construction, and the values in it.

Two things are put off until an operator needs them: transpositions, so that those around
convolutions (JAX has channels last here, ONNX first) cancel, and broadcasts, which most operators
of ONNX do by themselves.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tlflax.export.jaxpr.sizes import Dim, Shape, factors, is_symbolic, with_the_rest

OPSET = 21
INPUT, OUTPUT = 'image', 'probabilities'


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the graph, or a constant that is not part of it yet.

    Attributes:
        held: The name of the tensor, or a constant array.
        shape: Its shape; an axis along which the value is the same may have size 1.
        order: Axis i of the value is axis `order[i]` of the tensor.
        label: What a constant is called in the file.
    """

    held: str | np.ndarray
    shape: Shape
    order: tuple[int, ...]
    label: str = ''

    @property
    def constant(self) -> np.ndarray | None:
        """The array of a constant, in the order of the value; it may have sizes of 1."""
        return self.held.transpose(self.order) if isinstance(self.held, np.ndarray) else None

    @property
    def logical(self) -> Shape:
        """The shape in the order of the value."""
        return tuple(self.shape[axis] for axis in self.order)


def constant(array: np.ndarray, label: str = '') -> Value:
    """Returns a constant."""
    return Value(array, array.shape, tuple(range(array.ndim)), label)


class Graph:
    """Collects nodes and constants.

    Args:
        image: The shape of the input.
    """

    def __init__(self, image: Shape) -> None:
        self._image = image
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._names: dict[tuple[str, Shape, str], str] = {}
        self._used: set[str] = {INPUT, OUTPUT}
        self._transposed: dict[tuple[str, tuple[int, ...]], str] = {}
        self._sizes: dict[int, str] = {}

    def tensor(self, value: Value) -> str:
        """Returns the name of a value's tensor; a constant becomes an initializer, once."""
        if isinstance(value.held, str):
            return value.held
        array = np.ascontiguousarray(value.held).reshape(value.held.shape)
        key = (array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).hexdigest())
        if key not in self._names:
            name = self._unused(value.label or 'constant')
            self._names[key] = name
            self._initializers[name] = numpy_helper.from_array(array, name)
        return self._names[key]

    def integers(self, values: Sequence[int]) -> str:
        """Returns the name of a constant i64[n], such as axes."""
        return self.tensor(constant(np.array(values, np.int64)))

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds an operator with one output and returns its name."""
        return self.nodes(kind, 1, *inputs, **attributes)[0]

    def nodes(self, kind: str, outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """Adds an operator and returns the names of its outputs."""
        names = [self._unused(kind) for _ in range(outputs)]
        self._nodes.append(helper.make_node(kind, inputs, names, name=names[0], **attributes))
        return names

    def ordered(self, value: Value, order: tuple[int, ...]) -> Value:
        """Returns the value held in another order of axes."""
        if value.order == order:
            return value
        logical, inverse = value.logical, tuple(np.argsort(order).tolist())
        # Axis j of the new tensor is axis i of the value, where order[i] = j.
        axes = tuple(value.order[axis] for axis in inverse)
        shape = tuple(logical[axis] for axis in inverse)
        if isinstance(value.held, np.ndarray):
            return Value(value.held.transpose(axes), shape, order, value.label)
        key = (value.held, axes)
        if key not in self._transposed:
            self._transposed[key] = self.node('Transpose', value.held, perm=axes)
        return Value(self._transposed[key], shape, order)

    def dense(self, value: Value, shape: Shape) -> Value:
        """Returns the value with every axis in full size, in the order in which it is held.

        Args:
            value: The value.
            shape: Its shape, in its own order.
        """
        if value.logical == shape:
            return value
        full = tuple(shape[axis] for axis in np.argsort(value.order).tolist())
        if isinstance(value.held, np.ndarray) and not any(map(is_symbolic, full)):
            return dataclasses.replace(value, held=np.broadcast_to(value.held, full), shape=full)
        wanted = [one if one != own else 1 for one, own in zip(full, value.shape, strict=True)]
        name = self.node('Expand', self.tensor(value), self.sizes(wanted))
        return Value(name, full, value.order)

    def plain(self, value: Value, shape: Shape) -> Value:
        """Returns the value as a tensor of its shape and its own order of axes."""
        return self.dense(self.ordered(value, tuple(range(len(value.order)))), shape)

    def reshaped(self, name: str, shape: Shape) -> str:
        """Adds a Reshape."""
        return self.node('Reshape', name, self.sizes(with_the_rest(shape)))

    def sizes(self, shape: Sequence[Dim]) -> str:
        """Returns the name of a tensor i64[n] with sizes, which may depend on the images."""
        if not any(map(is_symbolic, shape)):
            return self.integers(shape)
        return self.node('Concat', *(self.size(one) for one in shape), axis=0)

    def size(self, size: Dim) -> str:
        """Returns the name of a tensor i64[1] with one size."""
        if not is_symbolic(size):
            return self.integers([size])
        axes, factor = factors(size, self._image)
        for axis in axes:
            if axis not in self._sizes:
                self._sizes[axis] = self.node('Shape', INPUT, start=axis, end=axis + 1)
        name = self._sizes[axes[0]]
        for axis in axes[1:]:
            name = self.node('Mul', name, self._sizes[axis])
        return name if factor == 1 else self.node('Mul', name, self.integers([factor]))

    def model(self, classes: int, metadata: dict[str, str]) -> onnx.ModelProto:
        """Returns the graph as a model of images u8 to probabilities f32.

        Args:
            classes: Number of probabilities.
            metadata: Text by name.
        """
        kinds = onnx.TensorProto
        sizes = [str(one) if is_symbolic(one) else one for one in self._image]
        image = helper.make_tensor_value_info(INPUT, kinds.UINT8, sizes)
        found = helper.make_tensor_value_info(OUTPUT, kinds.FLOAT, ['images', classes])
        graph = helper.make_graph(
            self._nodes, 'tlflax', [image], [found], list(self._initializers.values())
        )
        model = helper.make_model(
            graph, producer_name='tlflax', opset_imports=[helper.make_opsetid('', OPSET)]
        )
        model.ir_version = 10  # of opset 21; the default is that of the installed onnx
        helper.set_model_props(model, metadata)
        return model

    def finish(self, value: Value, shape: Shape) -> None:
        """Makes a value the output."""
        name = self.tensor(self.plain(value, shape))
        self._nodes.append(helper.make_node('Identity', [name], [OUTPUT], name=OUTPUT))

    def _unused(self, name: str) -> str:
        number, found = 0, name
        while found in self._used:
            number += 1
            found = f'{name}_{number}'
        self._used.add(found)
        return found

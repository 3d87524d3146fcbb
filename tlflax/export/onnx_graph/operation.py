"""One equation of a jaxpr, as the translations read it."""

import dataclasses
from typing import Any

import numpy as np

from tlflax.export.onnx_graph.graph import Graph, Value
from tlflax.export.onnx_graph.jaxprs import Shape


@dataclasses.dataclass(frozen=True, eq=False)
class Operation:
    """A primitive with its inputs.

    Attributes:
        name: Of the primitive.
        params: Its parameters.
        inputs: Its inputs.
        in_shapes: Their shapes.
        in_dtypes: Their types.
        shapes: Of the outputs.
        dtypes: Of the outputs.
    """

    name: str
    params: dict[str, Any]
    inputs: list[Value]
    in_shapes: list[Shape]
    in_dtypes: list[np.dtype]
    shapes: list[Shape]
    dtypes: list[np.dtype]

    @property
    def shape(self) -> Shape:
        """The shape of the only output."""
        return self.shapes[0]

    @property
    def dtype(self) -> np.dtype:
        """The type of the only output."""
        return self.dtypes[0]

    def plain(self, graph: Graph, number: int = 0) -> str:
        """Returns the name of an input's tensor, as the model has it; see `Graph.plain`."""
        return graph.tensor(graph.plain(self.inputs[number], self.in_shapes[number]))

    def dense(self, graph: Graph, number: int = 0) -> Value:
        """Returns an input in full size, its axes in any order; see `Graph.dense`."""
        return graph.dense(self.inputs[number], self.in_shapes[number])


def of(name: str, shape: Shape) -> Value:
    """Returns a tensor in its own order as a value."""
    return Value(name, shape, tuple(range(len(shape))))

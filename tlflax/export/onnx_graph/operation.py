"""One equation of a jaxpr, as the translations to ONNX read it."""

from tlflax.export.jaxpr import operation
from tlflax.export.jaxpr.sizes import Shape
from tlflax.export.onnx_graph.graph import Graph, Value


class Operation(operation.Operation[Value]):
    """A primitive with its inputs."""

    def plain(self, graph: Graph, number: int = 0) -> str:
        """Returns the name of an input's tensor, as the model has it; see `Graph.plain`."""
        return graph.tensor(graph.plain(self.inputs[number], self.in_shapes[number]))

    def dense(self, graph: Graph, number: int = 0) -> Value:
        """Returns an input in full size, its axes in any order; see `Graph.dense`."""
        return graph.dense(self.inputs[number], self.in_shapes[number])


def of(name: str, shape: Shape) -> Value:
    """Returns a tensor in its own order as a value."""
    return Value(name, shape, tuple(range(len(shape))))

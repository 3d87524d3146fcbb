"""One equation of a jaxpr, as translations read it."""

import dataclasses
from typing import Any, Generic, TypeVar

import numpy as np

from tlflax.export.jaxpr.sizes import Shape

V = TypeVar('V')
"""What a translation has for an array of JAX."""


@dataclasses.dataclass(frozen=True, eq=False)
class Operation(Generic[V]):
    """A primitive with its inputs.

    Attributes:
        name: Of the primitive.
        params: Its parameters.
        inputs: Its inputs.
        constants: The arrays of inputs that depend on no image, None for others. An axis along
            which the numbers are the same may have size 1.
        in_shapes: Their shapes.
        in_dtypes: Their types.
        shapes: Of the outputs.
        dtypes: Of the outputs.
    """

    name: str
    params: dict[str, Any]
    inputs: list[V]
    constants: list[np.ndarray | None]
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

"""What no translation has, of the operations that it has: each function raises `Refused`."""

import numpy as np
from jax import lax

from tlflax.export.jaxpr.operation import Operation
from tlflax.export.jaxpr.refused import Refused


def logical(operation: Operation) -> None:
    """Refuses what acts on the bits of integers."""
    if operation.dtype != np.bool_:
        raise Refused(f'{operation.name!r} on the bits of {operation.dtype}')


def rounding(operation: Operation) -> None:
    """Refuses another rounding than to even numbers."""
    if operation.params['rounding_method'] != lax.RoundingMethod.TO_NEAREST_EVEN:
        raise Refused("'round' of halves away from zero")


def selection(operation: Operation) -> None:
    """Refuses a choice of more than two."""
    if operation.in_dtypes[0] != np.bool_:
        raise Refused("'select_n' by an integer")


def reshaping(operation: Operation) -> None:
    """Refuses to transpose in a reshape."""
    if operation.params.get('dimensions') is not None:
        raise Refused("'reshape' in another order of the axes")


def convolution(operation: Operation) -> None:
    """Refuses convolutions that are made for gradients."""
    params = operation.params
    if params['batch_group_count'] != 1 or any(one != 1 for one in params['lhs_dilation']):
        raise Refused("'conv_general_dilated' with groups of images or a dilated input")
    if any(amount < 0 for pair in params['padding'] for amount in pair):
        raise Refused("'conv_general_dilated' with negative padding")

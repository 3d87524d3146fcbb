"""The optimizer's state at the change from one phase of a training to the next."""

import jax
import numpy as np
import optax
from jaxtyping import Array

from tlflax.models.classifier import Params
from tlflax.utils.trees import Tree, flatten

_LABELED = 'inner_states'  # of optax.multi_transform; what is beside it is no moment


def carry(old: optax.OptState, new: optax.OptState, labels: Params) -> optax.OptState:
    """Returns the state of a phase with the moments of the parameters that stay trainable.

    What an optimizer keeps for a parameter is found by its name and the parameter's path, whatever
    is chained before it. With the moments goes the number of their updates, which corrects their
    bias; schedules and sums over several batches begin again.

    Args:
        old: The state at the end of the phase before, of the same optimizer.
        new: The first state of the phase.
        labels: The label of each parameter that is trained; only paths are read.

    Returns:
        A state like `new`.
    """
    before, after, parameters = flatten(old), flatten(new), flatten(labels)
    kept = {key: path for path in before if (key := _moment(path, parameters))}
    moved: dict[str, np.ndarray | Array] = {}
    for path in after:
        key = _moment(path, parameters)
        if key not in kept:
            continue
        source, target = (one.removesuffix('/'.join(key)) for one in (kept[key], path))
        for name in ('/'.join(key), *_scalars(after, target)):
            value = before.get(source + name)
            if value is not None and value.shape == after[target + name].shape:
                moved[target + name] = value
    leaves, tree = jax.tree.flatten(new)
    return jax.tree.unflatten(
        tree, [moved.get(path, leaf) for path, leaf in zip(after, leaves, strict=True)]
    )


def _moment(path: str, parameters: Tree) -> tuple[str, str] | None:
    """Returns the name of a moment and its parameter; None for another leaf of the state."""
    parts = path.split('/')
    for start in range(2, len(parts)):
        parameter = '/'.join(parts[start:])
        if parameter in parameters and _LABELED in parts[:start]:
            return parts[start - 1], parameter
    return None


def _scalars(state: Tree, owner: str) -> list[str]:
    """Returns the names of the scalars that stand beside a moment, such as that of its updates."""
    names = (path.removeprefix(owner) for path in state if path.startswith(owner))
    return [name for name in names if '/' not in name and state[owner + name].ndim == 0]

"""The optimizer's state at the change from one phase of a training to the next."""

import jax
import numpy as np
import optax
from jaxtyping import Array

from tlflax.models.classifier import Params
from tlflax.utils.trees import Tree, flatten

_ACCUMULATED = 'acc_grads'  # of optax.MultiSteps: sums of gradients, which are no moments
_LABEL = 'inner_states/{}/'


def carry(
    old: optax.OptState, old_labels: Params, new: optax.OptState, labels: Params
) -> optax.OptState:
    """Returns the state of a phase with the moments of the parameters that stay trainable.

    What one optimizer keeps for a parameter is found by its path; it goes over where the next one
    keeps the same. With the moments goes the number of their updates, which corrects their bias;
    schedules and sums over several batches begin again.

    Args:
        old: The state at the end of the phase before.
        old_labels: The label of each parameter that was trained.
        new: The first state of the phase.
        labels: The label of each parameter that is trained.

    Returns:
        A state like `new`.
    """
    before, after = flatten(old), flatten(new)
    was, now = flatten(old_labels), flatten(labels)
    moved: dict[str, np.ndarray | Array] = {}
    for path in after:
        parameter = _parameter(path, now)
        kept = path.removesuffix(f'/{parameter}')
        if parameter not in was or kept.endswith(_ACCUMULATED):
            continue
        change = _LABEL.format(now[parameter]), _LABEL.format(was[parameter])
        for name in (path, *_shared(kept, after, now)):
            value = before.get(name.replace(*change, 1))
            if value is not None and _alike(value, after[name]):
                moved[name] = value
    leaves, tree = jax.tree.flatten(new)
    return jax.tree.unflatten(
        tree, [moved.get(path, leaf) for path, leaf in zip(after, leaves, strict=True)]
    )


def _parameter(path: str, parameters: Tree) -> str | None:
    """Returns the parameter that a leaf of the state belongs to; None for one of all together."""
    parts = path.split('/')
    tails = ('/'.join(parts[start:]) for start in range(1, len(parts)))
    return next((tail for tail in tails if tail in parameters), None)


def _shared(moment: str, state: Tree, parameters: Tree) -> list[str]:
    """Returns the scalars that stand beside a kind of moment, such as the number of updates."""
    owner = moment.rpartition('/')[0]
    beside = (path for path in state if path.rpartition('/')[0] == owner)
    return [p for p in beside if state[p].ndim == 0 and _parameter(p, parameters) is None]


def _alike(one: np.ndarray | Array, other: np.ndarray | Array) -> bool:
    return (one.shape, one.dtype) == (other.shape, other.dtype)

"""Which parameters are decayed, and how far the rates of layers fall with their depth."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax

from tlflax.models.classifier import Params
from tlflax.train.optim.schedules import Number
from tlflax.utils.errors import UserError
from tlflax.utils.trees import Tree, flatten

Mask = Callable[[Any], Any]
"""Maps a tree of parameters to the tree of whether each is decayed."""


def mask(patterns: Sequence[str]) -> Mask:
    """Returns which parameters are decayed.

    Args:
        patterns: Regular expressions; a parameter whose whole path matches one is decayed. Empty:
            those of two or more dimensions. Biases, and the scales of norms, are not decayed in
            current recipes (He et al. 2019, arXiv:1812.01187; Goyal et al. 2017, arXiv:1706.02677).
    """

    def decays(path: Any, leaf: Any) -> bool:
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        if not patterns:
            return bool(leaf.ndim > 1)
        return any(re.fullmatch(pattern, name) for pattern in patterns)

    return lambda params: jax.tree_util.tree_map_with_path(decays, params)


def check(patterns: Sequence[str], params: Params) -> None:
    """Checks that each pattern is one and matches a parameter.

    Raises:
        UserError: It is not, or does not.
    """
    for pattern in patterns:
        try:
            found = any(re.fullmatch(pattern, path) for path in flatten(params))
        except re.error as error:
            raise UserError(
                f'{pattern!r} is not a valid regular expression ({error})',
                where='config.optim.decayed',
                fix='correct it',
            ) from None
        if not found:
            raise UserError(
                f'the pattern {pattern!r} matches no parameter',
                where='config.optim.decayed',
                fix="match whole paths, as in ('.*/kernel',), or () for all but biases and norms",
            )


def add_decayed_weights(weight_decay: Number, mask: Mask) -> optax.GradientTransformation:
    """Returns `optax.add_decayed_weights`, whose state is the same with any mask."""

    def update(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        if isinstance(weight_decay, float | int) and not weight_decay:
            return updates
        return jax.tree.map(
            lambda update, weight, decays: update + weight_decay * weight if decays else update,
            updates,
            params,
            mask(params),
        )

    return optax.stateless(update)


def layer_factors(
    params: Mapping[str, Tree], layers: Sequence[str], layer_decay: float
) -> dict[str, float]:
    """Returns the factor of the learning rate of each branch of the backbone.

    The rate of a layer is multiplied by `layer_decay` for each layer with parameters above it, the
    head counting as one, as in ELECTRA (Clark et al. 2020, arXiv:2003.10555) and BEiT (Bao et al.
    2022, arXiv:2106.08254).

    Args:
        params: Those of backbone and head, trained or not; only paths are read.
        layers: The layers of the backbone, in order.
        layer_decay: The factor from one layer to the one below it.

    Returns:
        Layer to factor; that of everything else is 1.
    """
    own = [layer for layer in layers if flatten(params.get('backbone', {}).get(layer, {}))]
    return {layer: layer_decay ** (len(own) - number) for number, layer in enumerate(own)}


def scale_layers(factors: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies the updates of each layer of the backbone with its factor."""

    def scaled(path: Any, update: Any) -> Any:
        names = jax.tree_util.keystr(path, simple=True, separator='/').split('/')
        return update * factors.get(names[1], 1.0) if names[0] == 'backbone' else update

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scaled, updates))

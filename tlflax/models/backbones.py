"""The backbones by name, and backbones that are made of a few Flax NNX modules.

`BACKBONES` has one row for each built-in backbone; `find` also takes the user's own file.
"""

import dataclasses
from collections.abc import Callable, Mapping

from flax import nnx
from jaxtyping import Array

from tlflax.models.base import modules
from tlflax.models.base.backbone import Backbone, HeatMap, layers_between
from tlflax.models.vgg import rows as vgg
from tlflax.models.weights.preprocess import PREPROCESS
from tlflax.utils import python_file
from tlflax.utils.assets import Asset
from tlflax.utils.errors import UserError, did_you_mean

BACKBONES: dict[str, Backbone] = {row.name: row for row in (vgg.VGG16, vgg.VGG19)}

_OWN: dict[tuple[str, str], Backbone] = {}


def find(name: str) -> Backbone:
    """Returns the backbone that `config.model.backbone` names.

    Args:
        name: A key of `BACKBONES`, or 'py:FILE.py:NAME' for a `Backbone` in a Python file.

    Raises:
        UserError: There is no such backbone.
    """
    key = 'config.model.backbone'
    if not python_file.is_spec(name):
        if name not in BACKBONES:
            fix = did_you_mean(name, [*BACKBONES, 'py:FILE.py:NAME'])
            raise UserError(f'{name!r} is not a backbone', where=key, fix=fix)
        return BACKBONES[name]
    loaded = python_file.load(name, where=key)
    if not isinstance(loaded.value, Backbone):
        raise UserError(
            f'{name} is a {type(loaded.value).__name__}, not a Backbone',
            where=key,
            fix='make one with tlflax.models.backbones.from_layers',
        )
    # One object for one file, so that what is compiled for it is found again.
    return _OWN.setdefault(
        (name, loaded.digest), dataclasses.replace(loaded.value, code=loaded.digest)
    )


def from_layers(
    name: str,
    build: Callable[[nnx.Rngs], Mapping[str, nnx.Module]],
    *,
    layer: str | None = None,
    preprocess: str = 'torch',
    interpolation: str = 'bilinear',
    imagenet: Asset | None = None,
    heat_map: HeatMap | None = None,
) -> Backbone:
    """Returns a backbone of NNX modules that are called one after another.

    Its weights are files whose tensors are named by path, such as `block1/conv/kernel`, the
    statistics of BatchNorm among them.

    Args:
        name: Its name in messages.
        build: Random keys to the layers by name, in order. Each maps an array to the next.
        layer: The layer that feeds heads; by default the last one.
        preprocess: See `Backbone`.
        interpolation: See `Backbone`.
        imagenet: See `Backbone`.
        heat_map: See `Backbone`.
    """

    def stack(rngs: nnx.Rngs) -> nnx.Module:
        return Stack(build(rngs))

    for value, what, known in (
        (preprocess, 'preprocessing', PREPROCESS),
        (interpolation, 'interpolation', ('bilinear', 'bicubic')),
    ):
        if value not in known:
            raise UserError(
                f'{value!r} is not a known {what}',
                where=f'backbone {name!r}',
                fix=did_you_mean(value, known),
            )
    with python_file.explaining(name):
        layers, static = tuple(build(nnx.Rngs(0))), modules.static(stack)
    return Backbone(
        name=name,
        layers=layers,
        layer=layers[-1] if layer is None else layer,
        init=lambda key, layer: modules.init(stack, key),
        module=static.module,
        preprocess=preprocess,
        interpolation=interpolation,
        imagenet=imagenet,
        heat_map=heat_map,
    )


class Stack(nnx.Module):
    """Layers by name, called one after another.

    Args:
        layers: The layers in order.
    """

    def __init__(self, layers: Mapping[str, nnx.Module]) -> None:
        self.names = tuple(layers)
        for name, layer in layers.items():
            setattr(self, name, layer)

    def __call__(self, x: Array, *, start: str, stop: str) -> Array:
        """Runs the layers after `start` up to `stop`."""
        for name in layers_between(self.names, start, stop):
            x = getattr(self, name)(x)
        return x

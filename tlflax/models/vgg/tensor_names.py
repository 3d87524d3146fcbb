"""From the tensor names and layouts of Keras, torchvision and ONNX to the canonical ones.

Canonical: `block1_conv1/kernel` [3, 3, in, out] and `/bias`; fc1, fc2 and predictions [in, out],
the rows of fc1 in (row, column, channel) order.
"""

import dataclasses
import re
from collections.abc import Mapping

import jax
import numpy as np

from tlflax.models.vgg import network
from tlflax.utils import trees
from tlflax.utils.errors import UserError

Tensors = dict[str, np.ndarray]

# `block1_conv1/block1_conv1_W_1:0`, `vgg16/block1_conv1/kernel:0`,
# `layers/conv2d/block1_conv1/0`, `functional_1/block1_conv1_1/Squeeze:0`
_KERAS = re.compile(r'(?:^|[/.])(block\d_conv\d|fc1|fc2|predictions)(?:_\d+)?[/.]')
# `features.0.weight`, `module.classifier.6.bias`
_TORCHVISION = re.compile(r'(?:^|\.)((features|classifier)\.\d+)\.(\w+)$')

_FIX = 'give float32 weights of VGG16 itself, not of VGG19 or one with batch normalization'


@dataclasses.dataclass(frozen=True)
class Found:
    """The VGG16 in a file.

    Attributes:
        tensors: Canonical path to array in canonical layout; nothing checked yet.
        torch_names: Whether the layers had torchvision's names.
        aside: Names of the tensors of other layers.
    """

    tensors: Tensors
    torch_names: bool
    aside: tuple[str, ...]


def canonical(tensors: Mapping[str, np.ndarray], *, onnx: bool, top: bool, where: str) -> Found:
    """Finds the tensors of VGG16 among those of a file and lays them out canonically.

    Args:
        tensors: As they stand in the file.
        onnx: Whether the file is ONNX, whose convolutions are OIHW whatever their names.
        top: Also take fc1, fc2 and predictions.
        where: The file's name, for errors.

    Raises:
        UserError: No layer of VGG16, or two tensors for one parameter.
    """
    torch_names = not any('block1_conv1' in name for name in tensors)
    names = _torchvision_names() if torch_names else {}
    laid_out: Tensors = {}
    origins: dict[str, str] = {}
    for name, tensor in tensors.items():
        path = _torch_path(name, names) if torch_names else _keras_path(name, tensor.ndim)
        if path is None or (not top and _in_top(path)):
            continue
        if path in origins:
            raise UserError(
                f'two tensors stand for {path}: {origins[path]} and {name}',
                where=where,
                fix='give a file with one VGG16',
            )
        origins[path] = name
        laid_out[path] = _laid_out(
            path, tensor, channels_first=torch_names or onnx, torch=torch_names
        )
    if not laid_out:
        some = ', '.join(list(tensors)[:3]) or 'none at all'
        raise UserError(f'no tensor is of a VGG16 (it has {some})', where=where, fix=_FIX)
    aside = tuple(name for name in tensors if name not in origins.values())
    return Found(laid_out, torch_names, aside)


def check(tensors: Tensors, expected: Mapping[str, network.Shape], *, where: str) -> None:
    """Checks names, shapes, types and finiteness.

    Raises:
        UserError: With what is missing, unexpected or of another shape or type than float32; or
            with the first tensor that is not finite.
    """
    wanted = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in expected.items()}
    trees.check_same(wanted, tensors, where=where, fix=_FIX)
    for path, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise UserError(f'{path} holds NaN or infinity', where=where, fix='get the file again')


def has_top(tensors: Mapping[str, np.ndarray]) -> bool:
    """Tells whether any tensor is of fc1, fc2 or predictions."""
    return any(map(_in_top, tensors))


def without_top(tensors: Tensors) -> Tensors:
    """Returns the convolutions' tensors."""
    return {path: tensor for path, tensor in tensors.items() if not _in_top(path)}


def _keras_path(name: str, ndim: int) -> str | None:
    match = _KERAS.search(name)
    if match is None:
        return None
    # Keras has called them W and b, kernel and bias, 0 and 1: their rank is what stays.
    return f'{match[1]}/{"bias" if ndim == 1 else "kernel"}'


def _torch_path(name: str, names: Mapping[str, str]) -> str | None:
    match = _TORCHVISION.search(name)
    if match is None:
        return None
    leaf = {'weight': 'kernel', 'bias': 'bias'}.get(match[3], match[3])
    # Not a layer of VGG16, as with batch normalization: kept under its own name for `check`.
    return f'{names.get(match[1], match[1])}/{leaf}'


def _torchvision_names() -> dict[str, str]:
    """Returns `{'features.0': 'block1_conv1', ...}`; ReLUs, pools and dropouts count too."""
    names = {'classifier.0': 'fc1', 'classifier.3': 'fc2', 'classifier.6': 'predictions'}
    position = 0
    for block in range(1, len(network.DEPTHS) + 1):
        for name in network.conv_names(block):
            names[f'features.{position}'] = name
            position += 2
        position += 1
    return names


def _in_top(path: str) -> bool:
    return path.split('/')[0] in network.TOP or path.startswith('classifier.')


def _laid_out(path: str, tensor: np.ndarray, *, channels_first: bool, torch: bool) -> np.ndarray:
    """Returns the tensor in canonical layout; what does not fit is left for `check`."""
    if tensor.ndim == 4 and channels_first:
        tensor = tensor.transpose(2, 3, 1, 0)
    elif tensor.ndim == 2 and torch:
        units, rows = tensor.shape
        if path == 'fc1/kernel' and rows % network.GRID**2 == 0:
            # Its columns count channels first: a plain transpose would fit and be wrong.
            grid = tensor.reshape(units, rows // network.GRID**2, network.GRID, network.GRID)
            tensor = grid.transpose(0, 2, 3, 1).reshape(units, rows)
        tensor = tensor.T
    return np.ascontiguousarray(tensor, tensor.dtype.newbyteorder('='))

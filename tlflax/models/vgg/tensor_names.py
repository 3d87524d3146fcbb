"""Converts the tensor names and layouts of Keras, torchvision and ONNX to the canonical ones.

Canonical names are `block1_conv1/kernel` [3, 3, in, out] and `block1_conv1/bias` [out], and so on;
the kernels of fc1, fc2 and predictions are [in, out], the rows of fc1 in (row, column, channel)
order.
"""

import re
from collections.abc import Mapping

import numpy as np

from tlflax.models.base.backbone import Found, Tensors
from tlflax.models.vgg import network
from tlflax.models.weights.file_formats import Container
from tlflax.utils.errors import UserError

# `block1_conv1/block1_conv1_W_1:0`, `vgg16/block1_conv1/kernel:0`,
# `layers/conv2d/block1_conv1/0`, `functional_1/block1_conv1_1/Squeeze:0`
_KERAS = re.compile(r'(?:^|[/.])(block\d_conv\d|fc1|fc2|predictions)(?:_\d+)?[/.]')
# `features.0.weight`, `module.classifier.6.bias`
_TORCHVISION = re.compile(r'(?:^|\.)((features|classifier)\.\d+)\.(\w+)$')


def canonical(container: Container, depths: network.Depths, *, top: bool, where: str) -> Found:
    """Finds the tensors of a VGG among those of a file and lays them out canonically.

    Args:
        container: The tensors of the file by name. In ONNX, convolution kernels are OIHW under any
            name.
        depths: Convolutions of the five blocks.
        top: Whether to take fc1, fc2 and predictions too.
        where: The file's name, for errors.

    Raises:
        UserError: No tensor is of a VGG, or two tensors are the same parameter.
    """
    tensors, onnx = container.tensors, container.kind == 'ONNX'
    torch_names = are_torch(container)
    names = _torchvision_names(depths) if torch_names else {}
    laid_out: Tensors = {}
    origins: dict[str, str] = {}
    for name, tensor in tensors.items():
        path = _torch_path(name, names) if torch_names else _keras_path(name, tensor.ndim)
        if path is None or (not top and _in_top(path)):
            continue
        if path in origins:
            raise UserError(
                f'two tensors are {path}: {origins[path]} and {name}',
                where=where,
                fix='give a file with a single VGG',
            )
        origins[path] = name
        laid_out[path] = _laid_out(
            path, tensor, channels_first=torch_names or onnx, torch=torch_names
        )
    if not laid_out:
        some = ', '.join(list(tensors)[:3]) or 'no tensors'
        raise UserError(
            f'no tensor is of a VGG (it has {some})',
            where=where,
            fix='give weights whose layers are named as in Keras or torchvision',
        )
    ignored = tuple(name for name in tensors if name not in origins.values())
    return Found(laid_out, ignored)


def are_torch(container: Container) -> bool:
    """Returns whether the layers have torchvision's names."""
    return not any('block1_conv1' in name for name in container.tensors)


def has_top(tensors: Mapping[str, np.ndarray]) -> bool:
    """Returns whether any tensor is of fc1, fc2 or predictions."""
    return any(map(_in_top, tensors))


def without_top(tensors: Tensors) -> Tensors:
    """Returns the tensors of the convolutions."""
    return {path: tensor for path, tensor in tensors.items() if not _in_top(path)}


def _keras_path(name: str, ndim: int) -> str | None:
    match = _KERAS.search(name)
    if match is None:
        return None
    # Keras versions call them W and b, kernel and bias, or 0 and 1; only their rank is the same.
    return f'{match[1]}/{"bias" if ndim == 1 else "kernel"}'


def _torch_path(name: str, names: Mapping[str, str]) -> str | None:
    match = _TORCHVISION.search(name)
    if match is None:
        return None
    leaf = {'weight': 'kernel', 'bias': 'bias'}.get(match[3], match[3])
    # Other layers, such as batch normalization, keep their names, which `load` rejects.
    return f'{names.get(match[1], match[1])}/{leaf}'


def _torchvision_names(depths: network.Depths) -> dict[str, str]:
    """Returns `{'features.0': 'block1_conv1', ...}`; ReLUs and pools have numbers too."""
    names = {'classifier.0': 'fc1', 'classifier.3': 'fc2', 'classifier.6': 'predictions'}
    position = 0
    for block, depth in zip(network.BLOCKS, depths, strict=True):
        for name in network.conv_names(block, depth):
            names[f'features.{position}'] = name
            position += 2
        position += 1
    return names


def _in_top(path: str) -> bool:
    return path.split('/')[0] in network.TOP or path.startswith('classifier.')


def _laid_out(path: str, tensor: np.ndarray, *, channels_first: bool, torch: bool) -> np.ndarray:
    """Returns the tensor in canonical layout; `load` rejects tensors that do not fit."""
    if tensor.ndim == 4 and channels_first:
        tensor = tensor.transpose(2, 3, 1, 0)
    elif tensor.ndim == 2 and torch:
        units, rows = tensor.shape
        if path == 'fc1/kernel' and rows % network.GRID**2 == 0:
            # Its columns are in channels-first order: a mere transpose would fit and be wrong.
            grid = tensor.reshape(units, rows // network.GRID**2, network.GRID, network.GRID)
            tensor = grid.transpose(0, 2, 3, 1).reshape(units, rows)
        tensor = tensor.T
    return np.ascontiguousarray(tensor, tensor.dtype.newbyteorder('='))

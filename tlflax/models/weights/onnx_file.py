"""Reads the floating-point initializers of an ONNX graph, including data in side files."""

import math
import os
import stat
from pathlib import Path

import numpy as np
import onnx
import onnx.external_data_helper
import onnx.numpy_helper

from tlflax.models.weights import archives

Found = tuple[dict[str, np.ndarray], dict[str, str]]


def read(path: Path, most: int) -> Found:
    """Reads an ONNX file of at most some bytes of tensors; it has no metadata."""
    model = onnx.load(path, load_external_data=False)
    wanted = [tensor for tensor in model.graph.initializer if _dtype(tensor).kind == 'f']
    beside = [t for t in wanted if onnx.external_data_helper.uses_external_data(t)]
    places = {_key(tensor, 'location') for tensor in beside}
    sizes = {place: _file_bytes(path.parent / place) for place in places}
    announced = sum(math.prod(t.dims) * _dtype(t).itemsize for t in wanted)
    announced += sum(int(_key(t, 'length') or sizes[_key(t, 'location')]) for t in beside)
    archives.check_announced(
        announced, archives.most_bytes(os.path.getsize(path) + sum(sizes.values()), most)
    )
    for tensor in beside:
        onnx.external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
    return {str(t.name): onnx.numpy_helper.to_array(t) for t in wanted}, {}


def _dtype(tensor: onnx.TensorProto) -> np.dtype:
    return onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)


def _key(tensor: onnx.TensorProto, name: str) -> str:
    """Returns what an initializer says of its side file; '' where it does not say it."""
    return next((entry.value for entry in tensor.external_data if entry.key == name), '')


def _file_bytes(path: Path) -> int:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f'{path.name!r}, beside it, is not a file')
    return status.st_size

"""Reads and writes files of named tensors; a file's format is recognized by its content.

Names and layouts are those of the file; `tlflax.models.pretrained` interprets them.
"""

import dataclasses
import io
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np
import onnx
import onnx.numpy_helper
import safetensors
import safetensors.numpy

from tlflax.utils.errors import UserError, as_user_error
from tlflax.utils.files import atomic_write

KNOWN = 'Keras .h5, .weights.h5 or .keras, ONNX, safetensors, .npz and PyTorch .pth'

_HDF5, _ZIP = b'\x89HDF\r\n\x1a\n', b'PK\x03\x04'
_TORCH_PICKLE = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # torch.save's own magic number
_ONNX = b'\x08'  # field 1, ir_version, of the protocol buffer; ONNX has no magic number


@dataclasses.dataclass(frozen=True)
class Container:
    """The contents of a file.

    Attributes:
        kind: The name of the format, a key of `READERS`.
        tensors: Tensor name to array, as stored.
        metadata: Text entries of the file: safetensors' metadata, HDF5's root attributes.
    """

    kind: str
    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]


def read(path: str | os.PathLike[str]) -> Container:
    """Reads every tensor of a file; its extension does not matter.

    Raises:
        UserError: The file does not exist, has no known format or is damaged, or it is PyTorch's
            and PyTorch is not installed.
    """
    path = Path(path)
    kind = _sniff(path)
    with as_user_error(  # on a damaged file these libraries raise anything
        f'cannot be read as {kind}: {{reason}}',
        where=str(path),
        fix='the file is damaged or not a weights file; get it again',
        but=(MemoryError,),
    ):
        tensors, metadata = READERS[kind](path)
    return Container(kind, tensors, metadata)


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    """Writes a safetensors file; a failed write leaves an existing file unchanged.

    Raises:
        UserError: The file cannot be written.
    """
    path = Path(path)
    # safetensors writes the buffer in memory order and ignores the strides.
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    with as_user_error(
        'cannot be written: {reason}', where=str(path), fix='give another place', of=(OSError,)
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        # save_file would make the file readable to its owner only.
        atomic_write(path, safetensors.numpy.save(contiguous, metadata=dict(metadata)))


def _sniff(path: Path) -> str:
    """Returns the key of `READERS` for a file, by its first bytes or by the members of a zip."""
    message, fix = 'cannot be opened: {reason}', 'give a weights file'
    with as_user_error(message, where=str(path), fix=fix, of=(OSError,)), path.open('rb') as file:
        head = file.read(16)
        size = os.fstat(file.fileno()).st_size
    if head.startswith(_HDF5):
        return 'Keras HDF5'
    if head.startswith(_TORCH_PICKLE):
        return 'PyTorch'
    if head[8:9] == b'{' and int.from_bytes(head[:8], 'little') <= size - 8:
        return 'safetensors'
    if head.startswith(_ZIP) and (kind := _sniff_zip(path)):
        return kind
    if head.startswith(_ONNX):
        return 'ONNX'
    begins = f'it begins with {head[:8]!r}' if head else 'it is empty'
    raise UserError(
        f'is not a weights file: {begins}', where=str(path), fix=f'tlflax reads {KNOWN}'
    )


def _sniff_zip(path: Path) -> str | None:
    damaged = (zipfile.BadZipFile,)
    with (
        as_user_error(
            'is a damaged archive: {reason}', where=str(path), fix='get it again', of=damaged
        ),
        zipfile.ZipFile(path) as archive,
    ):
        names = archive.namelist()
    if 'model.weights.h5' in names:
        return 'Keras archive'
    if any(name.endswith('/data.pkl') for name in names):
        return 'PyTorch'
    return 'npz' if names and all(name.endswith('.npy') for name in names) else None


Found = tuple[dict[str, np.ndarray], dict[str, str]]


def _read_hdf5(path: Path) -> Found:
    with h5py.File(path, 'r') as file:
        return _from_hdf5(file)


def _read_keras(path: Path) -> Found:
    with zipfile.ZipFile(path) as archive:
        content = io.BytesIO(archive.read('model.weights.h5'))
    with h5py.File(content, 'r') as file:
        return _from_hdf5(file)


def _from_hdf5(file: h5py.File) -> Found:
    """Reads Keras's layer lists (Keras 1 and 2, `.h5` of 3) or Keras 3's nested `vars` groups."""
    root = file.get('model_weights', file)
    legacy = 'layer_names' in root.attrs or 'layer_names0' in root.attrs
    tensors = dict(_legacy_tensors(root) if legacy else _keras3_tensors(file))
    metadata = {key: _text(value) for key, value in root.attrs.items() if np.ndim(value) == 0}
    return tensors, metadata


def _legacy_tensors(root: h5py.Group) -> Iterator[tuple[str, np.ndarray]]:
    for layer in _names(root, 'layer_names'):
        for name in _names(root[layer], 'weight_names'):
            yield f'{layer}/{name}', root[layer][name][()]


def _names(group: h5py.Group, attribute: str) -> list[str]:
    """Reads a list of names, which Keras splits into `attribute0`, `attribute1`, ... if long."""
    parts = [key for key in group.attrs if re.fullmatch(rf'{attribute}\d*', key)]
    parts.sort(key=lambda key: int(key.removeprefix(attribute) or 0))
    return [_text(name) for part in parts for name in group.attrs[part]]


def _keras3_tensors(file: h5py.File) -> Iterator[tuple[str, np.ndarray]]:
    """Yields `<group path>/<layer name>/<number>`; the name is an attribute of the group."""
    found: list[tuple[str, h5py.Dataset]] = []
    file.visititems(lambda name, item: found.append((name, item)))
    for path, dataset in found:
        if isinstance(dataset, h5py.Dataset):
            layer = _text(dataset.parent.attrs.get('name', ''))
            parent, _, number = path.rpartition('/')
            yield f'{parent.removesuffix("/vars")}/{layer}/{number}', dataset[()]


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _read_onnx(path: Path) -> Found:
    """Reads the floating-point initializers of the graph, including data in side files."""
    model = onnx.load(path)
    arrays = {str(i.name): onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    return {name: array for name, array in arrays.items() if array.dtype.kind == 'f'}, {}


def _read_safetensors(path: Path) -> Found:
    with safetensors.safe_open(path, framework='numpy') as file:
        metadata = file.metadata() or {}
    return safetensors.numpy.load_file(path), metadata


def _read_npz(path: Path) -> Found:
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive), {}


def _read_torch(path: Path) -> Found:
    with as_user_error(
        'PyTorch is needed to read a PyTorch file',
        where=str(path),
        fix="pip install 'tlflax[torch]', or convert it to safetensors elsewhere",
        of=(ImportError,),
    ):
        import torch

    def flatten(tree: object) -> Iterator[tuple[str, np.ndarray]]:
        """Yields the tensors of nested dicts (a training checkpoint wraps its state dict)."""
        for key, value in tree.items() if isinstance(tree, Mapping) else ():
            if isinstance(value, torch.Tensor):
                yield str(key), value.detach().numpy()
            else:
                yield from ((f'{key}.{name}', array) for name, array in flatten(value))

    with as_user_error(
        'cannot be read as PyTorch: it is damaged or holds more than tensors',
        where=str(path),
        fix='write it with torch.save(model.state_dict(), ...)',
        of=(pickle.UnpicklingError,),
    ):
        # With weights_only, no code in the file is run.
        content = torch.load(path, map_location='cpu', weights_only=True)
    return dict(flatten(content)), {}


READERS: dict[str, Callable[[Path], Found]] = {
    'Keras HDF5': _read_hdf5,
    'Keras archive': _read_keras,
    'ONNX': _read_onnx,
    'safetensors': _read_safetensors,
    'npz': _read_npz,
    'PyTorch': _read_torch,
}

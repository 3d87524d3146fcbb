"""Reads and writes files of named tensors; a file's format is recognized by its content.

Names and layouts are those of the file; `tlflax.models.pretrained` interprets them.
"""

import dataclasses
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tlflax.models.weights import archives, catalogue, isolated, pytorch
from tlflax.utils.errors import UserError, as_user_error, printable
from tlflax.utils.files import atomic_write, regular

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
        metadata: Text entries of the file: safetensors' metadata, HDF5's `backend`.
    """

    kind: str
    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]


def read(path: str | os.PathLike[str], *, most: int = archives.ANY) -> Container:
    """Reads every tensor of a file; its extension does not matter.

    Args:
        path: The file.
        most: The most bytes that it or its tensors may have; more is refused unread.

    Raises:
        UserError: The file does not exist, has no known format or is damaged, announces far more
            than it has, or it is PyTorch's and PyTorch is not installed.
    """
    path = Path(path)
    kind = _sniff(path, most)
    with as_user_error(  # on a damaged file these libraries raise anything
        f'cannot be read as {kind}: {{reason}}',
        where=str(path),
        fix='the file is damaged or not a weights file; get it again',
        but=(MemoryError,),
    ):
        tensors, metadata = READERS[kind](path, most)
    # Names go into messages.
    named = {printable(name): tensor for name, tensor in tensors.items()}
    return Container(kind, named, metadata)


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    """Writes a safetensors file; a failed write leaves an existing file unchanged.

    Raises:
        UserError: The file cannot be written.
    """
    import safetensors.numpy

    path = Path(path)
    # safetensors writes the buffer in memory order and ignores the strides.
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    with as_user_error(
        'cannot be written: {reason}', where=str(path), fix='give another place', of=(OSError,)
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        # save_file would make the file readable to its owner only.
        atomic_write(path, safetensors.numpy.save(contiguous, metadata=dict(metadata)))


def _sniff(path: Path, most: int) -> str:
    """Returns the key of `READERS` for a file, by its first bytes or by the members of a zip."""
    message, fix = 'cannot be opened: {reason}', 'give a weights file'
    with (
        as_user_error(message, where=str(path), fix=fix, of=(OSError,)),
        open(path, 'rb', opener=regular) as file,
    ):
        head = file.read(16)
        size = os.fstat(file.fileno()).st_size
    if size > most:
        raise UserError(
            f'has {size:,} bytes, far more than the network needs ({most:,} are allowed)',
            where=str(path),
            fix='give a file of its weights alone',
        )
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
    with (  # the names in a damaged directory raise more than BadZipFile
        as_user_error(
            'is a damaged archive: {reason}', where=str(path), fix='get it again', of=(Exception,)
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


# Each imports its library itself: a run needs one of them.


def _read_safetensors(path: Path, _: int) -> Found:  # as large as its file
    import safetensors.numpy

    with safetensors.safe_open(path, framework='numpy') as file:
        metadata = file.metadata() or {}
    return safetensors.numpy.load_file(path), metadata


def _read_npz(path: Path, most: int) -> Found:
    return archives.read_npz(path, most), {}


def _hdf5(name: str) -> isolated.Reader:
    """Returns a reader of `hdf5`; what nobody has verified it reads in another process."""

    def read(path: Path, most: int) -> Found:
        from tlflax.models.weights import hdf5

        reader: isolated.Reader = getattr(hdf5, name)
        if catalogue.is_published(path):
            return reader(path, most)
        return isolated.read(reader, path, most)

    return read


def _read_onnx(path: Path, most: int) -> Found:
    from tlflax.models.weights import onnx_file

    return onnx_file.read(path, most)


READERS: dict[str, isolated.Reader] = {
    'Keras HDF5': _hdf5('read'),
    'Keras archive': _hdf5('read_keras'),
    'ONNX': _read_onnx,
    'safetensors': _read_safetensors,
    'npz': _read_npz,
    'PyTorch': pytorch.read,
}

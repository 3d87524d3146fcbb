"""Reads Keras's HDF5 files, by their layer lists or by Keras 3's nested groups.

What a dataset announces is checked before it is read: HDF5 stores shapes apart from values, so that
a kilobyte can announce terabytes.
"""

import io
import math
import mmap
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tlflax.models.weights import archives
from tlflax.models.weights.hdf5_attributes import Texts

Found = tuple[dict[str, np.ndarray], dict[str, str]]

_ARCHIVED = 'model.weights.h5'
_METADATA = ('backend',)  # of attributes
_MOST_CHUNKS = 1 << 16  # each takes kilobytes and microseconds, however small it is


def read(path: Path, most: int) -> Found:
    """Reads a `.h5` file of at most some bytes of tensors: tensors and metadata."""
    with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _read(path, content, archives.most_bytes(len(content), most))


def read_keras(path: Path, most: int) -> Found:
    """Reads the weights in a `.keras` archive; see `read`."""
    most = archives.most_bytes(os.path.getsize(path), most)
    with zipfile.ZipFile(path) as archive:
        archives.check_zip(archive, most)
        content = archive.read(_ARCHIVED)
    return _read(io.BytesIO(content), content, most)


class _Budget:
    """Counts what datasets announce.

    Args:
        most: The most bytes of them all.
    """

    def __init__(self, most: int) -> None:
        self.most, self.bytes, self.chunks = most, 0, 0

    def spend(self, dataset: h5py.Dataset) -> None:
        """Counts a dataset; refuses it where the file cannot have that much."""
        shape, pieces = dataset.shape, dataset.chunks or dataset.shape
        largest = max(math.prod(shape), math.prod(pieces))
        self.bytes += largest * dataset.dtype.itemsize
        archives.check_announced(self.bytes, self.most)
        counts = (-(-side // piece) for side, piece in zip(shape, pieces, strict=True) if piece)
        self.chunks += math.prod(counts)
        if self.chunks > _MOST_CHUNKS:
            raise ValueError(f'{dataset.name} is cut into more than {_MOST_CHUNKS:,} pieces')


def _read(source: Path | io.BytesIO, content: bytes | mmap.mmap, most: int) -> Found:
    texts = Texts(content)
    with h5py.File(source, 'r') as file:
        root = _member(file, 'model_weights') if 'model_weights' in set(file) else file
        legacy = 'layer_names' in root.attrs or 'layer_names0' in root.attrs
        datasets = _legacy(root, texts) if legacy else _keras3(file, texts)
        budget, tensors = _Budget(most), {}
        for name, dataset in datasets:
            if name in tensors:
                raise ValueError(f'{name} is listed twice')
            if not isinstance(dataset, h5py.Dataset):
                continue
            if dataset.is_virtual or dataset.external:  # before its shape, which they may decide
                raise ValueError(f'{name} is stored in other files')
            if _is_number(dataset):
                budget.spend(dataset)
                tensors[name] = np.asarray(dataset[()])
        metadata = {key: texts.read(root, key)[0] for key in _METADATA if key in root.attrs}
        return tensors, metadata


def _is_number(dataset: h5py.Dataset) -> bool:
    return dataset.shape is not None and dataset.dtype.kind in 'fiu'


def _legacy(root: h5py.Group, texts: Texts) -> Iterator[tuple[str, h5py.Dataset]]:
    for layer in _names(root, 'layer_names', texts):
        group = _member(root, layer)
        for name in _names(group, 'weight_names', texts):
            yield f'{layer}/{name}', _member(group, name)


def _member(group: Any, path: str) -> Any:
    """Returns what is at a path of a group; a link, which may lead to any file, is refused."""
    for part in filter(None, path.split('/')):
        if group.id.links.get_info(part.encode()).type != h5py.h5l.TYPE_HARD:
            raise ValueError(f'{path!r} is a link to somewhere else')
        group = group[part]
    return group


def _names(group: h5py.Group, attribute: str, texts: Texts) -> list[str]:
    """Reads a list of names, which Keras splits into `attribute0`, `attribute1`, ... if long."""
    parts = [key for key in group.attrs if re.fullmatch(rf'{attribute}\d*', key)]
    parts.sort(key=lambda key: int(key.removeprefix(attribute) or 0))
    filled = [part for part in parts if math.prod(group.attrs.get_id(part).shape)]
    return [name for part in filled for name in texts.read(group, part)]


def _keras3(file: h5py.File, texts: Texts) -> Iterator[tuple[str, h5py.Dataset]]:
    """Yields `<group path>/<layer name>/<number>`; the name is an attribute of the group."""
    found: list[tuple[str, h5py.Dataset]] = []
    file.visititems(lambda name, item: found.append((name, item)))
    for path, dataset in found:
        if isinstance(dataset, h5py.Dataset):
            group = dataset.parent
            layer = texts.read(group, 'name')[0] if 'name' in group.attrs else ''
            parent, _, number = path.rpartition('/')
            yield f'{parent.removesuffix("/vars")}/{layer}/{number}', dataset

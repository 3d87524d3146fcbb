"""Reads PyTorch's files of tensors; no code in a file is run."""

import mmap
import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tlflax.models.weights import archives
from tlflax.utils.errors import as_user_error

Found = tuple[dict[str, np.ndarray], dict[str, str]]

_ZIP = b'PK\x03\x04'
# Of nested dicts: one dict that stands twice in each of many has any number of names.
_MOST_ENTRIES, _MOST_LEVELS = 1 << 16, 16
# The one thing that a pickle may still ask PyTorch for and that can be of any size.
_FILLER = b'bytearray'


def read(path: Path, most: int) -> Found:
    """Reads a PyTorch file of at most some bytes of tensors; it has no metadata.

    Raises:
        UserError: PyTorch is not installed, or it holds more than tensors.
        ValueError: It announces more than a file of its size has.
    """
    with as_user_error(
        'PyTorch is needed to read a PyTorch file',
        where=str(path),
        fix="pip install 'tlflax[torch]', or convert it to safetensors elsewhere",
        of=(ImportError,),
    ):
        import torch

    most = archives.most_bytes(os.path.getsize(path), most)
    with as_user_error(
        'cannot be read as PyTorch: it is damaged or holds more than tensors',
        where=str(path),
        fix='write it with torch.save(model.state_dict(), ...)',
        of=(pickle.UnpicklingError,),
    ):
        _check(path, most)
        content = torch.load(path, map_location='cpu', weights_only=True)
    tensors, announced = {}, 0
    for number, (name, value) in enumerate(_flatten(content)):
        if number == _MOST_ENTRIES:
            raise ValueError(f'it has more than {_MOST_ENTRIES:,} entries')
        if isinstance(value, torch.Tensor):
            # A tensor may repeat one number, which is all that is stored.
            announced += value.numel() * value.element_size()
            archives.check_announced(announced, most)
            tensors[name] = value.detach().numpy()
    return tensors, {}


def _check(path: Path, most: int) -> None:
    """Refuses what would fill the memory while it is loaded."""
    with open(path, 'rb') as file:
        if file.read(4) == _ZIP:
            with zipfile.ZipFile(file) as archive:
                archives.check_zip(archive, most)
                names = [name for name in archive.namelist() if name.lower().endswith('.pkl')]
                filled = any(_FILLER in archive.read(name) for name in names)
        else:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                filled = view.find(_FILLER) >= 0
    if filled:
        raise pickle.UnpicklingError('a bytearray')


def _flatten(tree: object, prefix: str = '', level: int = 0) -> Iterator[tuple[str, Any]]:
    """Yields the entries of nested dicts (a training checkpoint wraps its state dict)."""
    if level > _MOST_LEVELS:
        raise ValueError(f'its dicts are nested more than {_MOST_LEVELS} deep')
    for key, value in tree.items() if isinstance(tree, Mapping) else ():
        yield f'{prefix}{key}', value
        yield from _flatten(value, f'{prefix}{key}.', level + 1)

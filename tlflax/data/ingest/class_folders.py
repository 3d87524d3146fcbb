"""Writes images that are not files yet as class folders in the cache."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def as_folder(name: str) -> str:
    """Returns a class name as the name of one folder that is not hidden."""
    name = name.replace('/', '%2F')
    return f'%2E{name[1:]}' if name.startswith('.') else name


def png(pixels: UInt8[np.ndarray, 'h w c']) -> bytes:
    """Encodes grayscale (c=1) or RGB (c=3) as PNG, without loss."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    image.save(buffer, format='PNG')
    return buffer.getvalue()


def publish(made: Path, target: Path) -> None:
    """Renames a finished folder to its place, unless another process has done so with the same."""
    try:
        made.rename(target)
    except OSError:
        if not target.is_dir():
            raise

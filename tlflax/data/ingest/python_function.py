"""The images of a Python function that makes a tf.data.Dataset, written as class folders.

They are kept in the cache as PNGs named by their content, so that the audit, the digests, the
splits and the feature cache treat them like other images. The function runs at every start; images
that are there already are not written again, and images that it no longer yields are deleted.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import logging

from tlflax.data._tensorflow import on_cpu
from tlflax.data.ingest import class_folders
from tlflax.utils import python_file
from tlflax.utils.errors import UserError, as_user_error


def materialize(spec: str, cache_dir: Path) -> Path:
    """Returns the folder of class folders that a `py:` specification stands for.

    The function takes no arguments and returns a finite dataset of (image, label) or of
    {'image': ..., 'label': ...}: uint8[h, w, 3 or 1], any size, one image at a time; the class as
    an integer or a string. Integers are named by the attribute `class_names` of the dataset or of
    the function, else by themselves.

    Args:
        spec: 'py:FILE.py:FUNCTION' or 'py:MODULE:FUNCTION'.
        cache_dir: Where to write, in a folder `python`.

    Raises:
        UserError: The function does not exist or fails, or it yields something else.
    """
    place, name = python_file.place_and_name(spec, 'function')
    function = python_file.load(spec, what='function').value
    if not callable(function):
        raise UserError(f'{place} has no function {name!r}', fix='name a function')
    with python_file.explaining(spec), on_cpu():
        dataset = function()
    if not isinstance(dataset, tf.data.Dataset):
        what = f'{spec} returns a {type(dataset).__name__}, not a tf.data.Dataset'
        raise UserError(what, fix='return a dataset of (image, label)')
    if int(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise UserError(f'{spec} never ends', fix='leave its repeat() out')
    names = getattr(dataset, 'class_names', None) or getattr(function, 'class_names', None)
    identity = f'{os.path.abspath(place) if place.endswith(".py") else place}:{name}'
    target = cache_dir / 'python' / f'{name}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}'
    fix = 'fix that, or set TLFLAX_CACHE to another folder'
    with as_user_error('cannot be written ({reason})', where=str(target), fix=fix, of=(OSError,)):
        _write(target, cache_dir, _examples(dataset, spec, names), spec)
    return target


def _examples(
    dataset: tf.data.Dataset, spec: str, class_names: Sequence[str] | None
) -> Iterator[tuple[np.ndarray, str]]:
    """Yields images and the names of their classes."""
    with python_file.explaining(spec):
        for number, element in enumerate(dataset.as_numpy_iterator()):
            where = f'element {number} of {spec}'
            try:
                image, label = (
                    (element['image'], element['label']) if isinstance(element, dict) else element
                )
            except (KeyError, TypeError, ValueError):
                raise UserError(
                    f'{where} is not an image with its label',
                    fix="yield (image, label) or {'image': ..., 'label': ...}",
                ) from None
            image, label = np.asarray(image), np.asarray(label)
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
                raise UserError(
                    f'{where}: the image is {image.dtype}{list(image.shape)}',
                    fix='yield uint8[h, w, 3] or uint8[h, w, 1], one image at a time',
                )
            if not image.size:
                raise UserError(f'{where}: the image is empty', fix='leave it out')
            yield image, _class_name(label, class_names, where)


def _class_name(label: np.ndarray, class_names: Sequence[str] | None, where: str) -> str:
    value = label.item() if label.ndim == 0 else None
    if isinstance(value, bytes):
        value = value.decode('utf-8', 'replace')
    if isinstance(value, int) and not isinstance(value, bool):
        if class_names is None:
            value = str(value)
        elif 0 <= value < len(class_names):
            value = str(class_names[value])
    if not isinstance(value, str) or not value or any(char < ' ' for char in value):
        raise UserError(
            f'{where}: the label is {label!r}',
            fix='yield the class as one integer, below the number of class names if there are '
            'any, or as one string',
        )
    return value


def _write(
    target: Path, cache_dir: Path, examples: Iterator[tuple[np.ndarray, str]], spec: str
) -> None:
    """Makes `target` hold these examples and no others, each in `class`/content.png."""
    wanted: set[Path] = set()
    count = new = 0
    cache_dir.mkdir(parents=True, exist_ok=True)
    # Beside unfinished downloads: what a killed process leaves is swept with theirs.
    with tempfile.TemporaryDirectory(prefix='.partial-', dir=cache_dir) as partial:
        for image, name in examples:
            content = hashlib.sha256(str(image.shape).encode() + image.tobytes()).hexdigest()
            path = target / class_folders.as_folder(name) / f'{content}.png'
            count += 1
            if path not in wanted and not path.exists():
                part = Path(partial, 'part')
                part.write_bytes(class_folders.png(image))
                path.parent.mkdir(parents=True, exist_ok=True)
                part.rename(path)
                new += 1
            wanted.add(path)
    target.mkdir(parents=True, exist_ok=True)
    gone = [path for path in target.glob('*/*') if path not in wanted]
    for path in gone:
        path.unlink(missing_ok=True)
    for folder in target.iterdir():
        if not any(folder.iterdir()):
            folder.rmdir()
    logging.info(
        '%s: %d images in %s (%d new, %d gone, %d twice)',
        *(spec, count, target, new, len(gone), count - len(wanted)),
    )

"""A split of a prepared TensorFlow data set, written as class folders."""

import dataclasses
import hashlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging

from tlflax.data._tensorflow import on_cpu
from tlflax.data.images.sniff import HEAD_BYTES, READABLE, sniff
from tlflax.data.ingest import class_folders
from tlflax.utils.errors import UserError, did_you_mean

_EXTENSIONS = {name: f'.{name.lower()}' for name in READABLE} | {'JPEG': '.jpg', 'TIFF': '.tif'}


@dataclasses.dataclass(frozen=True)
class Split:
    """A split of a prepared data set, and which of its features are the image and its class."""

    spec: str
    builder: Any
    name: str
    image: str
    label: str

    @property
    def classes(self) -> Any:
        """The ClassLabel feature."""
        return self.builder.info.features[self.label]

    def files(self) -> list[tuple[Any, ...]]:
        """Name, first example, number of examples, part of the file they are, its size and age."""
        result = []
        for part in self.builder.info.splits[self.name].file_instructions:
            path = tfds.core.Path(part.filename)
            stat = path.stat()
            fraction = part.take / part.examples_in_shard
            result.append((path.name, part.skip, part.take, fraction, stat.length, stat.mtime))
        return result

    def folder_name(self) -> str:
        """The split and a digest of what was prepared; preparing it anew makes another folder."""
        parts = repr((self.name, self.classes.names, self.files()))
        plain = re.sub(r'[^A-Za-z0-9_.-]+', '_', self.name)
        return f'{plain}-{hashlib.sha256(parts.encode()).hexdigest()[:12]}'

    def size(self) -> tuple[int, float]:
        """Examples, and megabytes as stored."""
        files = self.files()
        return sum(file[2] for file in files), sum(file[3] * file[4] for file in files) / 1e6

    def examples(self) -> Iterator[tuple[bytes | np.ndarray, int]]:
        """Images, encoded where they are stored so, and labels, always in the same order."""
        skip = isinstance(self.builder.info.features[self.image], tfds.features.Image)
        with on_cpu():
            dataset = self.builder.as_dataset(
                split=self.name,
                shuffle_files=False,
                decoders=tfds.decode.PartialDecoding(
                    {self.image: True, self.label: True},
                    decoders={self.image: tfds.decode.SkipDecoding()} if skip else None,
                ),
            )
            examples = dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()
        for example in examples:
            yield example[self.image], int(example[self.label])


def find_split(spec: str, builder: Any, name: str) -> Split:
    """Finds a split, and its image and class label by their types.

    Args:
        spec: What the user wrote, for messages.
        builder: The DatasetBuilder of a prepared data set.
        name: The split, or a slice of one.

    Raises:
        UserError: There is no such split, or no one feature is the image or the label.
    """
    splits = builder.info.splits
    try:
        splits[name]
    except Exception as error:  # KeyError, ValueError or AssertionError, by what is wrong with it
        raise UserError(f'no split {name!r}', where=spec, fix=did_you_mean(name, splits)) from error
    features = builder.info.features
    features = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    chosen = []
    for what, usual, suits in (('image', 'image', _is_image), ('class label', 'label', _is_label)):
        keys = sorted(key for key, feature in features.items() if suits(feature))
        preferred = [key for key in (*(builder.info.supervised_keys or ()), usual) if key in keys]
        if not preferred and len(keys) != 1:
            found = f'more than one feature may be its {what}: {", ".join(keys)}'
            raise UserError(
                found
                if keys
                else f'no {what} is among its features: {", ".join(sorted(features))}',
                where=spec,
                fix='choose a data set for image classification',
            )
        chosen.append((preferred or keys)[0])
    return Split(spec, builder, name, image=chosen[0], label=chosen[1])


def _is_label(feature: Any) -> bool:
    return isinstance(feature, tfds.features.ClassLabel)


def _is_image(feature: Any) -> bool:
    """An encoded image, or an array that can be encoded as one."""
    shape = feature.shape
    if not (isinstance(shape, tuple) and len(shape) == 3):
        return False
    if isinstance(feature, tfds.features.Image):
        return feature.np_dtype in (np.uint8, np.uint16)
    is_array = type(feature) is tfds.features.Tensor and feature.np_dtype == np.uint8
    return is_array and shape[-1] in (1, 3)


def write(split: Split, cache_dir: Path) -> Path:
    """Writes a split as class folders, unless that is done.

    Args:
        split: What to write.
        cache_dir: The cache folder; it is written to `tfds/NAME/...` in there, whole or not at all.

    Raises:
        UserError: An example has no label, the data set is damaged, or it cannot be written.
    """
    target = cache_dir / 'tfds' / split.builder.info.full_name / split.folder_name()
    if target.is_dir():
        return target
    count, megabytes = split.size()
    logging.info('%s: writing %d images (%.0f MB) to %s', split.spec, count, megabytes, target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside unfinished downloads: what a killed process leaves is swept with theirs.
        with tempfile.TemporaryDirectory(prefix='.partial-', dir=cache_dir) as partial:
            made = Path(partial) / 'split'
            made.mkdir()
            _write(split, made)
            class_folders.publish(made, target)
    except tf.errors.OpError as error:
        raise UserError(
            f'TFDS cannot read what it prepared ({error.message.splitlines()[0]})',
            where=str(split.builder.data_dir),
            fix='delete that folder, so that it is prepared anew',
        ) from error
    except OSError as error:
        raise UserError(
            f'cannot be written ({error.strerror or error})',
            where=str(target),
            fix=f'it takes about {megabytes:.0f} MB; TLFLAX_CACHE may name another folder',
        ) from error
    return target


def _write(split: Split, folder: Path) -> None:
    """Writes each image to `folder`/class/number.extension."""
    known: dict[int, Path] = {}
    for number, (image, label) in enumerate(split.examples()):
        if label < 0:
            raise UserError(
                f'example {number} has no label', where=split.spec, fix='choose a labeled split'
            )
        if label not in known:
            known[label] = folder / class_folders.as_folder(split.classes.int2str(label))
            known[label].mkdir()
        data = image if isinstance(image, bytes) else class_folders.png(image)
        extension = _EXTENSIONS.get(sniff(data[:HEAD_BYTES]), '')
        (known[label] / f'{number:08d}{extension}').write_bytes(data)

"""Writes a split of a prepared TensorFlow data set as class folders."""

import dataclasses
import hashlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging

from tlflax.data._tensorflow import on_cpu
from tlflax.data.images.sniff import HEAD_BYTES, READABLE, sniff
from tlflax.data.ingest import class_folders
from tlflax.utils.errors import UserError, as_user_error, did_you_mean

_EXTENSIONS = {name: f'.{name.lower()}' for name in READABLE} | {'JPEG': '.jpg', 'TIFF': '.tif'}


class _File(NamedTuple):
    """A part of a split, in one of its files. The digest in a folder's name covers all fields."""

    name: str
    skip: int  # its first example
    take: int  # the number of its examples
    fraction: float  # of the file
    length: int  # of the file, in bytes
    mtime: float


@dataclasses.dataclass(frozen=True)
class Split:
    """A split of a prepared data set, and which of its features are the image and its class."""

    spec: str
    builder: tfds.core.DatasetBuilder
    name: str
    image: str
    label: str

    @property
    def class_label(self) -> tfds.features.ClassLabel:
        """The feature that names the classes."""
        return self.builder.info.features[self.label]

    def files(self) -> list[_File]:
        """Returns the parts of files that make up the split."""
        result = []
        for part in self.builder.info.splits[self.name].file_instructions:
            path = tfds.core.Path(part.filename)
            stat = path.stat()
            fraction = part.take / part.examples_in_shard
            result.append(_File(path.name, part.skip, part.take, fraction, stat.length, stat.mtime))
        return result

    def folder_name(self) -> str:
        """The split and a digest of what was prepared; another after it is prepared again."""
        files = [tuple(file) for file in self.files()]
        parts = repr((self.name, self.class_label.names, files))
        plain = re.sub(r'[^A-Za-z0-9_.-]+', '_', self.name)
        return f'{plain}-{hashlib.sha256(parts.encode()).hexdigest()[:12]}'

    def size(self) -> tuple[int, float]:
        """Returns the number of examples, and megabytes as stored."""
        files = self.files()
        stored = sum(file.fraction * file.length for file in files)
        return sum(file.take for file in files), stored / 1e6

    def examples(self) -> Iterator[tuple[bytes | np.ndarray, int]]:
        """Yields images, encoded where they are stored so, and labels, in a fixed order."""
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


def find_split(spec: str, builder: tfds.core.DatasetBuilder, name: str) -> Split:
    """Finds a split, and its image and class label by their types.

    Args:
        spec: What the user wrote, for messages.
        builder: The DatasetBuilder of a prepared data set.
        name: The split, or a slice of one.

    Raises:
        UserError: The split does not exist, or it is not clear which feature is the image or the
            label.
    """
    splits = builder.info.splits
    try:
        splits[name]
    except Exception as error:  # KeyError, ValueError or AssertionError
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


def _is_label(feature: tfds.features.FeatureConnector) -> bool:
    return isinstance(feature, tfds.features.ClassLabel)


def _is_image(feature: tfds.features.FeatureConnector) -> bool:
    """Whether a feature is an encoded image, or an array that can be encoded as one."""
    shape = feature.shape
    if not (isinstance(shape, tuple) and len(shape) == 3):
        return False
    if isinstance(feature, tfds.features.Image):
        return feature.np_dtype in (np.uint8, np.uint16)
    is_array = type(feature) is tfds.features.Tensor and feature.np_dtype == np.uint8
    return is_array and shape[-1] in (1, 3)


def write(split: Split, cache_dir: Path) -> Path:
    """Writes a split as class folders, unless that is done already.

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
    damaged = as_user_error(
        'TFDS cannot read what it prepared ({reason})',
        where=str(split.builder.data_dir),
        fix='delete that folder, so that it is prepared again',
        of=(tf.errors.OpError,),
    )
    not_written = as_user_error(
        'cannot be written ({reason})',
        where=str(target),
        fix=f'it takes about {megabytes:.0f} MB; TLFLAX_CACHE may name another folder',
        of=(OSError,),
    )
    with damaged, not_written:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside unfinished downloads: what a killed process leaves is swept with theirs.
        with tempfile.TemporaryDirectory(prefix='.partial-', dir=cache_dir) as partial:
            made = Path(partial) / 'split'
            made.mkdir()
            _write(split, made)
            class_folders.publish(made, target)
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
            known[label] = folder / class_folders.as_folder(split.class_label.int2str(label))
            known[label].mkdir()
        data = image if isinstance(image, bytes) else class_folders.png(image)
        extension = _EXTENSIONS.get(sniff(data[:HEAD_BYTES]), '')
        (known[label] / f'{number:08d}{extension}').write_bytes(data)

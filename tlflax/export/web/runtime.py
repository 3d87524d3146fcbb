"""ONNX Runtime Web: one version of an npm package, verified, with the files that a page needs.

The package is fetched once by npm, which asks the registry that the user has configured, and its
files are kept in the cache folder. A tarball that somebody put there is used without npm.
"""

import dataclasses
import shutil
import subprocess
import tarfile
from pathlib import Path

from tlflax.utils.assets import Asset, cache_folder, fetch
from tlflax.utils.download import MirrorError, matches
from tlflax.utils.errors import UserError, reason

VERSION = '1.30.0'
TARBALL = f'onnxruntime-web-{VERSION}.tgz'  # as `npm pack` names it
FILES = ('ort.wasm.bundle.min.mjs', 'ort-wasm-simd-threaded.wasm')
"""All that is loaded for WebAssembly: the bundle has the loader in it."""

LICENSE = 'LICENSE-onnxruntime.txt'  # the package has none

_TARBALL_DIGEST = (  # the registry's `integrity`, as hexadecimal digits
    'sha512:ab4cbe26baedba45d2cec05610c71c55fa97db92d19a8b171c5f8269126683ca'
    '590a5cdc57bb2f35ce2b298de32f4d956fb42644c0ecd528a0a91e025c07ca61'
)
_SECONDS = 600.0  # npm has to have fetched 33 MB by then


@dataclasses.dataclass(frozen=True)
class NpmPackage:
    """The files in the tarball of the package; see `tlflax.utils.download.Mirror`.

    Attributes:
        tarball: A tarball that is there; None: fetched by npm.
    """

    tarball: Path | None = None
    size: int = 33_106_585
    target: str = f'onnxruntime-web-{VERSION}'
    digest: str = 'sha256:6ff99335ed7a9a3992aff60efb28a84f0614f7aee8c0745ef397d8e1e38b858d'

    def __str__(self) -> str:
        return str(self.tarball or f'the npm package onnxruntime-web@{VERSION} through npm')

    def obtain(self, folder: Path) -> Path:
        """Fetches and unpacks the package; see `tlflax.utils.download.Mirror.obtain`."""
        tarball = self.tarball or _pack(folder)
        if not matches(tarball, _TARBALL_DIGEST):
            raise MirrorError(f'not the expected contents, whose digest is {_TARBALL_DIGEST}')
        made = folder / 'made'
        made.mkdir()
        with tarfile.open(tarball) as archive:
            for name in FILES:
                member = archive.extractfile(f'package/dist/{name}')
                assert member is not None  # the digest is right
                (made / name).write_bytes(member.read())
        shutil.copyfile(Path(__file__).parent / LICENSE, made / LICENSE)
        if not matches(made, self.digest):
            raise MirrorError(f'not the expected files, whose digest is {self.digest}')
        return made


def _pack(folder: Path) -> Path:
    """Lets npm write the tarball into a folder."""
    npm = shutil.which('npm')
    if npm is None:
        raise MirrorError('npm is not installed')
    command = [npm, 'pack', f'onnxruntime-web@{VERSION}', '--ignore-scripts', '--no-audit']
    try:
        done = subprocess.run(
            [*command, f'--pack-destination={folder}'],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors='replace',
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise MirrorError(f'npm was not done after {_SECONDS:g} s') from None
    except OSError as error:
        raise MirrorError(f'npm cannot be run: {reason(error)}') from error
    if done.returncode or not (folder / TARBALL).is_file():
        said = [
            line for line in done.stderr.splitlines() if line.startswith(('npm error', 'npm ERR'))
        ]
        raise MirrorError((said or ['npm failed'])[0][:300])
    return folder / TARBALL


def runtime() -> Path:
    """Returns the folder with `FILES` and `LICENSE`, fetching the package at its first use.

    Raises:
        UserError: It cannot be fetched, or the cache folder cannot be used.
    """
    cache = cache_folder()
    given = [NpmPackage(cache / TARBALL)] if (cache / TARBALL).is_file() else []
    asset = Asset(
        what=f'onnxruntime-web {VERSION}',
        license='MIT, Microsoft Corporation',
        key='--format=web',
        own='',
        mirrors=(*given, NpmPackage()),
    )
    try:
        return fetch(asset, cache=cache)
    except UserError as error:
        if error.where != asset.key:
            raise
        raise UserError(
            error.what,
            where=error.where,
            fix=f'install npm, or put {TARBALL} into {cache}: '
            f'`npm pack onnxruntime-web@{VERSION}` writes it on a machine that has npm',
        ) from error

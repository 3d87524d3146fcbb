"""Loads pretrained VGG16 weights from any file format, checks and identifies them.

Weights are identified by the digest of their tensors, not by the file that held them, and their
identity decides the preprocessing. The digest is `trees.digest` of the parameters: SHA-256 of their
float32 bytes in the order of their paths.
"""

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tlflax.models.preprocess import PREPROCESS
from tlflax.models.vgg import network, tensor_names
from tlflax.models.weights import file_formats
from tlflax.utils import trees
from tlflax.utils.errors import UserError, did_you_mean
from tlflax.utils.trees import digest

# Digests of the 26 canonical tensors and of their first kernel. Torchvision publishes no digest of
# tensors, so its weights are known by the SHA-256 of the file vgg16-397923af.pth.
CANONICAL = '909252ac6e8f5c25798249025de7a83f73e4c060e0ccd8ecdca83cc24b827dfe'
_CANONICAL_FIRST = '564034bfdba3ca76c2787bb27101f4fff7fa318d2fbce72b98ee85a91ac7233c'
_TORCHVISION_FILE = '397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0'
_FORMAT = 'tlflax'  # in the metadata of safetensors files that `save` writes


@dataclasses.dataclass(frozen=True)
class Identity:
    """The identity of weights, with the preprocessing and license that belong to them.

    Attributes:
        name: 'imagenet-caffe', 'imagenet-torchvision' or 'custom'.
        preprocess: The preprocessing that the weights were trained with, a key of `PREPROCESS`.
        license: The license, and whom to cite.
        assumed: Whether `preprocess` is only assumed, from the names of the layers.
    """

    name: str
    preprocess: str
    license: str
    assumed: bool = False


CAFFE = Identity(
    'imagenet-caffe',
    'caffe',
    'CC BY 4.0, Visual Geometry Group, University of Oxford; cite arXiv:1409.1556',
)
TORCHVISION = Identity('imagenet-torchvision', 'torch', 'BSD 3-Clause, torchvision')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained(Identity):
    """Checked weights with their identity.

    Attributes:
        params: Nested dict of float32 NumPy arrays, as `network.apply` takes it.
        digest: The digest of `params`.
        source: The name and format of the file.
        recognized: How the identity was found and what was ignored, in words.
    """

    params: network.Params = dataclasses.field(repr=False, compare=False)
    digest: str
    source: str
    recognized: str = ''


def load(
    path: str | os.PathLike[str],
    *,
    top: bool = False,
    expected: Mapping[str, network.Shape] | None = None,
) -> Pretrained:
    """Reads VGG16 weights from a file of any known format.

    Args:
        path: Keras `.h5`, `.weights.h5` or `.keras`, ONNX, safetensors, `.npz` or PyTorch file,
            its layers named as in Keras or torchvision; tensors of other layers are ignored.
        top: Whether to read fc1, fc2 and predictions too, if the file has them.
        expected: Shape of every parameter, as `network.shapes` returns them; by default those of
            the real VGG16.

    Raises:
        UserError: The file does not exist or is not a weights file; tensors are missing,
            unexpected, of a wrong shape or type, or not finite; or kernels are Theano's.
    """
    path = Path(path)
    container = file_formats.read(path)
    declared = _declared(container, str(path))
    found = tensor_names.canonical(
        container.tensors, onnx=container.kind == 'ONNX', top=top, where=str(path)
    )
    if expected is None:
        expected = network.shapes(top=tensor_names.has_top(found.tensors))
    tensor_names.check(found.tensors, expected, where=str(path))
    tensors, turned = _oriented(found.tensors, container, path)
    if digest(tensor_names.without_top(tensors)) == CANONICAL:
        identity, how = CAFFE, 'the canonical weights of Oxford and Keras, by their digest'
    elif declared is not None:
        name = 'custom' if declared.name == CAFFE.name else declared.name  # the digest decides
        identity = dataclasses.replace(declared, name=name)
        how = 'as the file declares itself'
    elif container.kind == 'PyTorch' and _file_sha256(path) == _TORCHVISION_FILE:
        identity, how = TORCHVISION, "torchvision's weights, by the digest of the file"
    else:
        identity, how = _guess(tensors, found.torch_names)
    ignored = f'; {len(found.ignored)} other tensors are ignored' if found.ignored else ''
    return Pretrained(
        **dataclasses.asdict(identity),
        params=trees.unflatten(tensors),
        digest=digest(tensors),
        source=f'{path.name} ({container.kind})',
        recognized=how + turned + ignored,
    )


def save(path: str | os.PathLike[str], weights: Pretrained) -> None:
    """Writes weights as safetensors; a failed write leaves an existing file unchanged.

    Tensors are named `block1_conv1/kernel`, ...; the identity goes into the file's metadata, from
    which `load` restores it.

    Raises:
        UserError: The file cannot be written.
    """
    tensors = trees.flatten(weights.params)
    metadata = {f.name: str(getattr(weights, f.name)) for f in dataclasses.fields(Identity)}
    metadata |= {'format': _FORMAT, 'digest': digest(tensors), 'source': weights.source}
    file_formats.write_safetensors(path, tensors, metadata)


def resolve_preprocess(weights: Identity, requested: str) -> tuple[str, str | None]:
    """Returns the preprocessing to use, and a warning if it may not be the right one.

    Args:
        weights: The weights that the preprocessed images are for.
        requested: The value of `config.weights.preprocess`.

    Raises:
        UserError: The requested preprocessing is unknown.
    """
    key = 'config.weights.preprocess'
    if requested == 'auto':
        if not weights.assumed:
            return weights.preprocess, None
        others = ' or '.join(f'--{key}={name}' for name in PREPROCESS if name != weights.preprocess)
        return weights.preprocess, (
            f'these are custom weights, and {weights.preprocess!r} preprocessing is assumed from '
            f'the names of their layers: if they were trained with another, give {others}; if not, '
            f'--{key}={weights.preprocess} silences this warning'
        )
    if requested not in PREPROCESS:
        hint = did_you_mean(requested, ['auto', *PREPROCESS])
        raise UserError(f'{requested!r} is not a preprocessing', where=key, fix=hint)
    if requested == weights.preprocess or weights.assumed:
        return requested, None
    return requested, (
        f'WRONG PREPROCESSING: the weights {weights.name} were trained with '
        f'{weights.preprocess!r}, but {key} is {requested!r}, which makes the features worse: '
        f'give --{key}=auto'
    )


def _oriented(
    tensors: tensor_names.Tensors, container: file_formats.Container, path: Path
) -> tuple[tensor_names.Tensors, str]:
    """Converts canonical weights for RGB input to BGR, and rejects Theano's rotated kernels."""
    first = tensors['block1_conv1/kernel']
    theano = container.metadata.get('backend') == 'theano' or 'th_kernels' in path.name
    if theano or digest({'': first[::-1, ::-1]}) == _CANONICAL_FIRST:
        raise UserError(
            'holds kernels for Theano, rotated by 180 degrees',
            where=str(path),
            fix='give the file whose name has tf_kernels',
        )
    if digest({'': first[:, :, ::-1]}) == _CANONICAL_FIRST:
        turned = {'block1_conv1/kernel': np.ascontiguousarray(first[:, :, ::-1])}
        return tensors | turned, '; their first kernel is converted from RGB back to BGR'
    return tensors, ''


def _declared(container: file_formats.Container, where: str) -> Identity | None:
    """Returns the identity in the metadata of a file that `save` wrote; None for other files."""
    # Files that spell it 'licence' stay valid.
    metadata = {'license': container.metadata.get('licence', '')} | container.metadata
    if metadata.get('format') != _FORMAT:
        return None
    values = {f.name: metadata.get(f.name, '') for f in dataclasses.fields(Identity)}
    whole = all(values.values()) and values['preprocess'] in PREPROCESS
    if not whole or metadata.get('digest') != digest(container.tensors):
        raise UserError(
            'its tensors or metadata were changed after it was written',
            where=where,
            fix='write it again with scripts/convert_weights.py',
        )
    assumed = values.pop('assumed') == 'True'
    return Identity(**values, assumed=assumed)


def _guess(tensors: tensor_names.Tensors, torch_names: bool) -> tuple[Identity, str]:
    """Returns the identity that the layers' names suggest, and how it was found."""
    # Weights fine-tuned from the canonical ones mostly keep the first layer, under any name.
    caffe = not torch_names or digest({'': tensors['block1_conv1/kernel']}) == _CANONICAL_FIRST
    preprocess, names = 'caffe' if caffe else 'torch', 'torchvision' if torch_names else 'Keras'
    how = f'no known digest; layers named as in {names}, so {preprocess!r} preprocessing is assumed'
    return Identity('custom', preprocess, "their owner's", assumed=True), how


def _file_sha256(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()

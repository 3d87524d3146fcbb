"""Loads pretrained weights from any file format, checks and identifies them.

Weights are identified by the digest of their tensors, not by the file that held them, and their
identity decides the preprocessing. The digest is `trees.digest` of parameters and state: SHA-256 of
their float32 bytes in the order of their paths.
"""

import dataclasses
import math
import os
from pathlib import Path

import numpy as np

from tlflax.models.base.backbone import Backbone, Found, Identified, Tensors
from tlflax.models.base.modules import Variables
from tlflax.models.weights import file_formats
from tlflax.models.weights.file_formats import Container
from tlflax.models.weights.identity import Identity
from tlflax.models.weights.preprocess import PREPROCESS
from tlflax.utils import trees
from tlflax.utils.errors import UserError, did_you_mean
from tlflax.utils.trees import digest

_ROOM, _COPIES = 1 << 30, 4  # bytes, and copies of the parameters
_FORMAT = 'tlflax'  # in the metadata of safetensors files that `save` writes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained(Identity):
    """Checked weights with their identity.

    Attributes:
        variables: Nested dicts of float32 NumPy arrays, as `Backbone.apply` takes them.
        digest: The digest of `variables`.
        source: The name and format of the file.
        recognized: How the identity was found and what was ignored, in words.
    """

    variables: Variables = dataclasses.field(repr=False, compare=False)
    digest: str
    source: str
    recognized: str = ''


def load(
    path: str | os.PathLike[str], backbone: Backbone, *, layer: str | None = None
) -> Pretrained:
    """Reads a backbone's weights from a file of any known format.

    Args:
        path: Keras `.h5`, `.weights.h5` or `.keras`, ONNX, safetensors, `.npz` or PyTorch file;
            tensors of other layers are ignored.
        backbone: Says how its tensors are named and laid out.
        layer: The last layer that is needed; None: all that the file has.

    Raises:
        UserError: The file does not exist or is not a weights file; tensors are missing,
            unexpected, of a wrong shape or type, or not finite; or kernels are Theano's.
    """
    path = Path(path)
    container = file_formats.read(path, most=_most_bytes(backbone))
    declared = _declared(container, str(path))
    if backbone.find is None:
        found = _by_path(backbone, container)
    else:
        found = backbone.find(container, layer, str(path))
    shapes = backbone.shapes(found.layer or backbone.layers[-1])
    _check(found.tensors, shapes, backbone.name, where=str(path))
    if backbone.identify is None:
        tensors, identity, how = _unknown(backbone, found.tensors)
    else:
        tensors, identity, how = backbone.identify(found.tensors, container, path)
    if identity.assumed and declared is not None:
        # Only a digest proves that weights are the published ones.
        name = 'custom' if declared.name == 'imagenet-caffe' else declared.name
        identity, how = dataclasses.replace(declared, name=name), 'as the file declares itself'
    ignored = f'; {len(found.ignored)} other tensors are ignored' if found.ignored else ''
    return Pretrained(
        **dataclasses.asdict(identity),
        variables=Variables(*(trees.like(tensors, part) for part in shapes)),
        digest=digest(tensors),
        source=f'{path.name} ({container.kind})',
        recognized=how + ignored,
    )


def _most_bytes(backbone: Backbone) -> int:
    """Returns the most bytes a file may have: a training's state, and layers of another network."""
    shapes = trees.flatten(trees.merge(*backbone.shapes(backbone.layers[-1])))
    needed = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in shapes.values())
    return _ROOM + _COPIES * needed


def _by_path(backbone: Backbone, container: Container) -> Found:
    """Finds tensors that are named by their path, whatever separates its names."""
    wanted = set(trees.flatten(trees.merge(*backbone.shapes(backbone.layers[-1]))))
    named = {name.replace('.', '/'): name for name in container.tensors}
    tensors = {
        path: np.ascontiguousarray(container.tensors[name])
        for path, name in named.items()
        if path in wanted
    }
    return Found(tensors, tuple(name for path, name in named.items() if path not in wanted))


def _unknown(backbone: Backbone, tensors: Tensors) -> Identified:
    """Identifies weights whose preprocessing only the backbone says."""
    identity = Identity('custom', backbone.preprocess, "their owner's")
    how = f'no known digest; {backbone.preprocess!r} preprocessing, as {backbone.name} says'
    return Identified(tensors, identity, how)


def _check(tensors: Tensors, shapes: Variables, name: str, *, where: str) -> None:
    """Checks names, shapes, types and finiteness.

    Raises:
        UserError: Lists the tensors that are missing, unexpected, of a wrong shape or not float32,
            or names the first tensor that is not finite.
    """
    fix = (
        f'give float32 weights of {name} itself (config.model.backbone), not of a network of '
        'another depth or with other layers, such as batch normalization'
    )
    trees.check_same(trees.merge(*shapes), tensors, where=where, fix=fix)
    for path, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise UserError(f'{path} holds NaN or infinity', where=where, fix='get the file again')


def save(path: str | os.PathLike[str], weights: Pretrained) -> None:
    """Writes weights as safetensors; a failed write leaves an existing file unchanged.

    Tensors are named `block1_conv1/kernel`, ...; the identity goes into the file's metadata, from
    which `load` restores it.

    Raises:
        UserError: The file cannot be written.
    """
    tensors = trees.flatten(trees.merge(*weights.variables))
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


def _declared(container: Container, where: str) -> Identity | None:
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

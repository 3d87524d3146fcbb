"""VGG16 and VGG19 as backbones."""

import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from tlflax.models.base.backbone import Backbone, Found, Identified, Tensors
from tlflax.models.base.modules import Variables
from tlflax.models.vgg import autotune, network, tensor_names
from tlflax.models.weights.catalogue import VGG16_IMAGENET, VGG19_IMAGENET
from tlflax.models.weights.file_formats import Container
from tlflax.models.weights.identity import Identity
from tlflax.utils.assets import Asset
from tlflax.utils.errors import UserError
from tlflax.utils.trees import digest

# Digests of the 26 canonical tensors of VGG16 and of their first kernel. Of other weights only the
# digest of the published file is known.
CANONICAL = '909252ac6e8f5c25798249025de7a83f73e4c060e0ccd8ecdca83cc24b827dfe'
_CANONICAL_FIRST = '564034bfdba3ca76c2787bb27101f4fff7fa318d2fbce72b98ee85a91ac7233c'

CAFFE = Identity(
    'imagenet-caffe',
    'caffe',
    'CC BY 4.0, Visual Geometry Group, University of Oxford; cite arXiv:1409.1556',
)
TORCHVISION = Identity('imagenet-torchvision', 'torch', 'BSD 3-Clause, torchvision')

_ALGORITHMS = {'PyTorch': 'sha256', 'Keras HDF5': 'md5'}  # by which their publishers name files
_FILES = {
    '397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0': TORCHVISION,  # VGG16
    '253f8cb515780f3b799900260a226db6': CAFFE,  # VGG19 without top
    'cbe5617147190e668d6c5d5026f83318': CAFFE,  # VGG19
}


def _module(variables: Variables) -> network.VGG:
    return network.VGG(variables.params)


def _trained(variables: Variables) -> network.VGG:
    return network.VGG(variables.params, trained=True)


def _find(depths: network.Depths, container: Container, layer: str | None, where: str) -> Found:
    """Finds the tensors that a layer needs; None: all that the file has."""
    top = layer is None or layer in network.TOP
    found = tensor_names.canonical(container, depths, top=top, where=where)
    has_top = tensor_names.has_top(found.tensors)
    if layer in network.TOP and not has_top:
        raise network.without_top(where)
    return found._replace(layer=network.PROBABILITIES if has_top else network.POOLS[-1])


def _identify(tensors: Tensors, container: Container, path: Path) -> Identified:
    tensors, turned = _oriented(tensors, container, path)
    if digest(tensor_names.without_top(tensors)) == CANONICAL:
        how = 'the canonical weights of Oxford and Keras, by their digest'
        return Identified(tensors, CAFFE, how + turned)
    if algorithm := _ALGORITHMS.get(container.kind):
        with path.open('rb') as file:
            identity = _FILES.get(hashlib.file_digest(file, algorithm).hexdigest())
        if identity is not None:
            who = 'torchvision' if identity is TORCHVISION else 'Keras'
            return Identified(
                tensors, identity, f"{who}'s weights, by the digest of the file{turned}"
            )
    # Weights fine-tuned from the canonical ones mostly keep the first layer, under any name.
    torch_names = tensor_names.are_torch(container)
    same_first = digest({'': tensors['block1_conv1/kernel']}) == _CANONICAL_FIRST
    preprocess = 'torch' if torch_names and not same_first else 'caffe'
    how = (
        f'no known digest; layers named as in {"torchvision" if torch_names else "Keras"}, so '
        f'{preprocess!r} preprocessing is assumed'
    )
    guessed = Identity('custom', preprocess, "their owner's", assumed=True)
    return Identified(tensors, guessed, how + turned)


def _oriented(tensors: Tensors, container: Container, path: Path) -> tuple[Tensors, str]:
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


def make(
    name: str, depths: network.Depths, imagenet: Asset | None = None, **sizes: Any
) -> Backbone:
    """Returns a row of the table of backbones.

    Args:
        name: Its name.
        depths: Convolutions of the five blocks.
        imagenet: Where its ImageNet weights can be downloaded.
        **sizes: Of a narrow network; see `network.init`.
    """
    return Backbone(
        name=name,
        layers=network.layers(depths),
        layer=network.POOLS[-1],
        init=functools.partial(network.variables, depths=depths, **sizes),
        module=_module,
        trained=_trained,
        preprocess='torch',  # pixels of unit scale, as He's initialization assumes
        find=functools.partial(_find, depths),
        identify=_identify,
        known={CANONICAL: CAFFE},
        imagenet=imagenet,
        fast_cpu=autotune.program,
        # Block 4 tells fine shapes apart that block 5 has pooled away.
        taps=(
            *(f'block{block}_pool:mean' for block in range(1, 5)),
            'block4_pool:grid4',
            'block5_pool:mean',
            'block5_pool:flatten',
        ),
        # Released versions kept ReLU of the logits under this layer's name.
        corrected={network.PROBABILITIES: 'softmax'},
    )


VGG16 = make('vgg16', network.VGG16, VGG16_IMAGENET)
VGG19 = make('vgg19', network.VGG19, VGG19_IMAGENET)

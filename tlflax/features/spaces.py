"""Feature spaces: what determines a feature apart from image and view, and where it is kept."""

from collections.abc import Mapping, Sequence

from tlflax.data.images.format import ImageFormat
from tlflax.features.cache.store import Store
from tlflax.models.classifier import Classifier
from tlflax.utils import assets

_VERSION = 1  # of the arithmetic from file to feature: raise it when values of features change


def describe_space(
    image_format: ImageFormat, classifier: Classifier, *, weights_digest: str
) -> dict[str, object]:
    """Returns everything that determines a feature apart from the image and its view.

    Args:
        image_format: How image files are read.
        classifier: Its preprocessing, backbone, cut and compute type.
        weights_digest: The digest of the backbone's variables.
    """
    backbone, layer = classifier.backbone, classifier.cut
    background, corrected = image_format.background, backbone.corrected.get(layer)
    interpolation = image_format.interpolation
    return {
        'version': _VERSION,
        'weights': weights_digest,
        'preprocess': classifier.preprocess,
        'image_size': list(image_format.image_size),
        'resize': image_format.resize,
        'antialias': image_format.antialias,
        'layer': layer,
        'compute': classifier.dtype,
        **({'taps': list(map(str, classifier.taps))} if classifier.taps else {}),
        # Features computed before there was a choice of backgrounds stay valid.
        **({'background': list(background)} if any(background) else {}),
        **({'interpolation': interpolation} if interpolation != 'bilinear' else {}),
        # Released versions kept other values under this layer's name.
        **({corrected: True} if corrected else {}),
        # The digest of the weights tells built-in backbones apart; another may compute anything.
        **({'code': backbone.code, 'backbone': backbone.name} if backbone.code else {}),
    }


def open_store(space: Mapping[str, object], row_shape: Sequence[int], dtype: str) -> Store:
    """Opens the store of a feature space in the user's cache folder; see `Store`."""
    return Store(assets.cache_folder() / 'features', space, row_shape, dtype)

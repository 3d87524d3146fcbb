"""The settings by which an image file becomes an array."""

import dataclasses

from tlflax.config.schema import DataConfig
from tlflax.data.images.format import ImageFormat


def test_a_format_has_the_keys_of_the_configuration_and_its_defaults():
    assert ImageFormat.of(DataConfig()) == ImageFormat((224, 224))
    changes = {
        'image_size': (8, 9), 'resize': 'pad', 'antialias': False, 'background': (1, 2, 3),
        'max_pixels': 7, 'interpolation': 'bicubic',
    }  # fmt: skip
    assert dataclasses.asdict(ImageFormat.of(DataConfig(**changes))) == changes
    assert ImageFormat.of(DataConfig(), 'bicubic').interpolation == 'bicubic'
    chosen = DataConfig(interpolation='bilinear')
    assert ImageFormat.of(chosen, 'bicubic').interpolation == 'bilinear'

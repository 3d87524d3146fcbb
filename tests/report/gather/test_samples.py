"""Samples of the augmentation: the pixels that training sees, as pictures."""

import base64
import io

import numpy as np
import pytest
from helpers import make_folders, scan_folder
from PIL import Image

from tlflax.config.schema import AugmentConfig
from tlflax.data.images.format import ImageFormat
from tlflax.data.pipeline import tf_data
from tlflax.report.gather.samples import samples
from tlflax.utils.errors import UserError

FORM = ImageFormat((48, 32))


def decoded(picture):
    with Image.open(io.BytesIO(base64.b64decode(picture.source.partition(',')[2]))) as image:
        return np.asarray(image.convert('RGB')).astype(int)


def test_samples_are_what_epochs_see(tmp_path):
    table = scan_folder(make_folders(tmp_path / 'Train', 3, noise=5.0))
    augment = AugmentConfig(rotation_range=30.0, brightness_range=(0.4, 1.6))
    found = samples(table, FORM, augment, 5, images=4, epochs=2)
    assert sorted(one.label for one in found[:3]) == ['green', 'red', 'yellow']
    rows = [table.paths.tolist().index(f'{table.root}/{one.path}') for one in found]
    assert len(set(rows)) == 4
    columns = [tf_data.eval_epoch(table, augment=augment, image_format=FORM, batch_size=9)]
    columns += [
        tf_data.train_epoch(
            table, augment=augment, seed=5, epoch=epoch, image_format=FORM, batch_size=9
        )
        for epoch in range(2)
    ]
    for number, (batch,) in enumerate(columns):
        images = dict(zip(batch['index'].tolist(), batch['image'], strict=True))
        errors = {
            row: np.abs(decoded([one.original, *one.epochs][number]) - images[row]).mean()
            for row, one in zip(rows, found, strict=True)
        }
        assert max(errors.values()) < 8, number  # WebP loses some
    assert np.abs(decoded(found[0].epochs[0]) - decoded(found[0].original)).mean() > 10
    assert all(len(one.epochs) == 2 for one in found)


def test_sides_and_mistakes(tmp_path):
    table = scan_folder(make_folders(tmp_path / 'Train', 1))
    found = samples(table, FORM, AugmentConfig(), 0, images=99, epochs=0, side=24)
    assert [(one.original.width, one.original.height) for one in found] == [(16, 24)] * 3
    assert samples(table, FORM, AugmentConfig(), 0, images=0) == []
    with pytest.raises(UserError, match='cannot be turned'):
        samples(table, FORM, AugmentConfig(right_angles=True), 0)

"""Damaged files of every format: an error in a sentence, or Pillow's pixels.

Each file is damaged in many ways; what the decoder accepts is compared with plain Pillow and with
what comes out of the tf.data pipeline.
"""

import io
import warnings

import fuzz_suite
import numpy as np
import pytest
from helpers import loose_table
from image_samples import SAMPLES
from PIL import Image

from tlflax.data.images.decode import probe, read_image
from tlflax.data.images.format import ImageFormat
from tlflax.data.images.scan import read_file
from tlflax.data.pipeline import tf_data
from tlflax.utils.errors import UserError

SIZE = (24, 32)
LIMIT = 10**6
DAMAGED = 40  # of each sample


def damage(data, rng):
    """Cuts, changes, removes or inserts bytes, half of the times near the start."""
    if rng.random() < 0.2:
        return data[: rng.integers(len(data))]
    data = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        start = 0 if rng.random() < 0.5 else rng.integers(len(data))
        at = min(int(start + rng.integers(64)), len(data) - 1)
        action = rng.integers(4)
        if action == 0:
            data[at] = rng.integers(256)
        elif action == 1:
            data[at] ^= 1 << rng.integers(8)
        elif action == 2:
            del data[at : at + int(rng.integers(1, 9))]
        else:
            data[at:at] = rng.bytes(int(rng.integers(1, 9)))
    return bytes(data)


def damaged(name):
    rng = np.random.default_rng(sum(name.encode()))
    return [damage(SAMPLES[name], rng) for _ in range(DAMAGED)]


def write(folder, name):
    """Writes the damaged files and returns their paths."""
    paths = []
    for number, data in enumerate(damaged(name)):
        path = folder / f'{name} ä{number}.jpg'  # whatever it is
        path.write_bytes(data)
        paths.append(str(path))
    return paths


def by_pillow(data):
    """What plain Pillow sees, where that needs no interpretation; else None."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        image = Image.open(io.BytesIO(data))
        image.load()
        upright = image.getexif().get(0x0112, 1) == 1
    if image.mode not in ('1', 'L', 'P', 'RGB') or image.has_transparency_data or not upright:
        return None
    return np.asarray(image.convert('RGB'))


@pytest.mark.parametrize('name', SAMPLES)
def test_what_is_accepted_has_pillows_pixels(name):
    compared = 0
    for data in [SAMPLES[name], *damaged(name)]:
        try:
            pixels = read_image(data, max_pixels=LIMIT)
        except UserError as error:
            str(error).encode()
            continue
        try:
            wanted = by_pillow(data)
        except Exception:
            pytest.fail('Pillow itself refuses this file')
        if wanted is not None:
            np.testing.assert_array_equal(pixels, wanted)
            compared += 1
    interpreted = ('cmyk', 'rgba', '16', 'oriented')
    assert compared or any(word in name for word in interpreted)


@pytest.mark.parametrize('name', SAMPLES)
def test_the_pipeline_gives_the_decoders_pixels(tmp_path, name):
    paths = write(tmp_path, name)
    (tmp_path / 'whole').write_bytes(SAMPLES[name])
    table = loose_table([str(tmp_path / 'whole'), *paths], max_pixels=LIMIT)
    assert table.paths[0].endswith('whole')
    batches = tf_data.eval_epoch(
        table,
        image_format=ImageFormat(SIZE, background=(10, 200, 90), max_pixels=LIMIT),
        batch_size=8,
    )
    images = np.concatenate([batch['image'][batch['mask']] for batch in batches])
    for path, image in zip(table.paths, images, strict=True):
        pixels = read_image(path, background=(10, 200, 90), max_pixels=LIMIT)
        wanted = Image.fromarray(pixels).resize(SIZE[::-1], Image.Resampling.BILINEAR)
        assert np.abs(image.astype(int) - np.asarray(wanted)).max() <= 1, path


@pytest.mark.parametrize('name', SAMPLES)
def test_a_scan_accepts_what_the_decoder_accepts(tmp_path, name):
    for path in write(tmp_path, name):
        found = read_file(path, max_pixels=LIMIT)
        try:
            wanted = probe(path, max_pixels=LIMIT)
        except UserError:
            assert found.fault
            assert not found.is_good
        else:
            assert found == wanted
            assert found.is_good


@pytest.mark.parametrize('name', ['jpeg', 'jpeg-progressive', 'jpeg-gray', 'png', 'webp'])
def test_files_that_are_damaged_after_the_scan_stop_the_pipeline(tmp_path, name):
    path = tmp_path / 'photo.jpg'
    path.write_bytes(SAMPLES[name])
    table = loose_table([str(path)])
    for data in (b'', SAMPLES[name][:100], SAMPLES[name][: len(SAMPLES[name]) // 2], b'<html>'):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r'photo\.jpg: '):
            list(tf_data.eval_epoch(table, image_format=ImageFormat(SIZE), batch_size=1))


@pytest.mark.parametrize('name', ['images', 'scan cache'])
def test_seeds_are_taken(tmp_path, name):
    fuzz_suite.check_seeds(name, tmp_path)


@pytest.mark.parametrize('name', ['images', 'scan cache'])
def test_damaged_inputs_end_in_a_sentence(tmp_path, name):
    fuzz_suite.check_damaged(name, tmp_path)

"""Event files, read back by TensorFlow, which checks every checksum."""

import io
import math
import time

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tlflax.workdir.loggers import drawing
from tlflax.workdir.loggers.events import EventFile, _masked_crc, record


def read(folder):
    """All events of a folder, in the order in which TensorBoard reads its files."""
    return [
        event
        for path in sorted(folder.iterdir())
        for event in tf.compat.v1.train.summary_iterator(str(path))
    ]


def test_checksum_is_that_of_the_standard():
    # RFC 3720, B.4: 32 bytes of zeros have the CRC-32C 0x8a9136aa.
    crc = 0x8A9136AA
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert _masked_crc(bytes(32)) == masked.to_bytes(4, 'little')


def test_tensorflow_writes_the_same_records(tmp_path):
    data = [b'', b'x', bytes(range(256)) * 5]
    with tf.io.TFRecordWriter(str(tmp_path / 'a')) as file:
        for one in data:
            file.write(one)
    assert (tmp_path / 'a').read_bytes() == b''.join(map(record, data))


def test_numbers_come_back(tmp_path):
    values = {'loss': 0.1, 'zero': 0.0, 'a/b': -2.5e-8, 'big': 1e39, 'nan': math.nan, 'ü': 3}
    began = time.time()
    file = EventFile(tmp_path, 0)
    for step in (0, 1, 300, 2**40):
        file.scalars(step, values)
    file.close()
    first, *rest = read(tmp_path)
    assert first.file_version == 'brain.Event:2'
    assert [event.step for event in rest] == [0, 1, 300, 2**40]
    assert all(began <= event.wall_time <= time.time() for event in rest)
    for event in rest:
        assert [value.tag for value in event.summary.value] == list(values)
        with np.errstate(over='ignore'):
            expected = np.array(list(values.values())).astype(np.float32)
        np.testing.assert_array_equal([v.simple_value for v in event.summary.value], expected)


def test_images_and_texts_come_back(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    file = EventFile(tmp_path, 0)
    file.image(3, 'noise', drawing.png(pixels), (5, 7))
    file.text(4, 'config', '| a | ü |')
    file.close()
    _, image, text = read(tmp_path)
    (value,) = image.summary.value
    assert (image.step, value.tag) == (3, 'noise')
    assert (value.image.height, value.image.width, value.image.colorspace) == (5, 7, 3)
    np.testing.assert_array_equal(tf.io.decode_png(value.image.encoded_image_string), pixels)
    (value,) = text.summary.value
    assert value.metadata.plugin_data.plugin_name == 'text'
    assert tf.make_ndarray(value.tensor).tolist() == ['| a | ü |'.encode()]


@pytest.mark.parametrize('step', [0, 7])
def test_a_second_process_voids_what_comes_again(tmp_path, step):
    for _ in range(2):
        file = EventFile(tmp_path, step)
        file.scalars(9, {'loss': 1.0})
        file.close()
    kinds = [(event.WhichOneof('what'), event.step) for event in read(tmp_path)]
    one = [('file_version', 0), ('summary', 9)]
    assert kinds == [*one, one[0], ('session_log', step), one[1]]
    (start,) = [event for event in read(tmp_path) if event.WhichOneof('what') == 'session_log']
    assert start.session_log.status == tf.compat.v1.SessionLog.START


def test_files_of_released_versions_are_read_first(tmp_path):
    old = tmp_path / f'events.out.tfevents.{int(time.time())}.zzz'
    old.touch()
    file = EventFile(tmp_path, 0)
    file.close()
    assert sorted(tmp_path.iterdir())[0] == old


def test_png_is_what_was_drawn():
    pixels = np.random.default_rng(1).integers(0, 256, (4, 6, 3), np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(drawing.png(pixels)))), pixels)

"""TensorBoard's event files, without TensorFlow or PyTorch, whose imports take seconds.

A file is a sequence of TFRecords, each a protocol buffer `Event` (tensorflow/core/util/event.proto
and tensorflow/core/framework/summary.proto). A record is its length, u64, and its data, each
followed by its masked CRC-32C, u32, all little-endian.
"""

import math
import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

_POLYNOMIAL = 0x82F63B78  # Castagnoli, reflected
_MASK = 0xA282EAD8
_START = 1  # SessionLog.START
_RGB = 3  # Summary.Image.colorspace
_STRING = 7  # DT_STRING


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _table()


def _masked_crc(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack('<I', ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF)


def record(data: bytes) -> bytes:
    """Returns a TFRecord."""
    length = struct.pack('<Q', len(data))
    return length + _masked_crc(length) + data + _masked_crc(data)


def _varint(value: int) -> bytes:
    value &= 2**64 - 1
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _field(number: int, value: int | float | bytes | str) -> bytes:
    """Returns a field: int as varint, float as double, text and messages by their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    if isinstance(value, float):
        return _varint(number << 3 | 1) + struct.pack('<d', value)
    data = value.encode(errors='replace') if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _scalar(tag: str, value: float) -> bytes:
    try:
        number = struct.pack('<f', value)
    except OverflowError:
        number = struct.pack('<f', math.copysign(math.inf, value))
    return _field(1, tag) + _varint(2 << 3 | 5) + number


class EventFile:
    """An event file of one process, which is created by the first event.

    Args:
        folder: Where TensorBoard looks; one run.
        step: The first step to come. What earlier processes wrote of it and later is void.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._again = folder.is_dir() and any(folder.iterdir())
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads a folder in the order of names; released versions began with seconds.
        name = f'events.out.tfevents.{time.time_ns() // 1000:016d}.{socket.gethostname()}'
        self._file = open(folder / f'{name}.{os.getpid()}', 'ab')  # noqa: SIM115  see `close`
        self._write(0, _field(3, 'brain.Event:2'))
        if self._again:
            self._write(step, _field(7, _field(1, _START)))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds numbers by name."""
        self._summary(step, [_scalar(tag, value) for tag, value in values.items()])

    def image(self, step: int, tag: str, png: bytes, size: tuple[int, int]) -> None:
        """Adds an RGB image.

        Args:
            step: Completed steps.
            tag: Its name.
            png: The file.
            size: (height, width).
        """
        image = _field(1, size[0]) + _field(2, size[1]) + _field(3, _RGB) + _field(4, png)
        self._summary(step, [_field(1, tag) + _field(4, image)])

    def text(self, step: int, tag: str, text: str) -> None:
        """Adds a text, which is shown as Markdown."""
        shape = _field(2, _field(1, 1))  # TensorShapeProto: one dimension of size 1
        tensor = _field(1, _STRING) + _field(2, shape) + _field(8, text)
        metadata = _field(1, _field(1, 'text'))
        self._summary(step, [_field(1, tag) + _field(9, metadata) + _field(8, tensor)])

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _summary(self, step: int, values: list[bytes]) -> None:
        self._write(step, _field(5, b''.join(_field(1, value) for value in values)))

    def _write(self, step: int, what: bytes) -> None:
        self._file.write(record(_field(1, time.time()) + _field(2, step) + what))
        self._file.flush()

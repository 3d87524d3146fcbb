"""PNGs with metadata that are damaged, huge or odd: browsers show them, and so they are read."""

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from image_samples import as_exif, encode, noise, png

from tlflax.data.images.decode import probe, read_image
from tlflax.data.images.png import without_metadata
from tlflax.utils.errors import UserError

XMP = b'<x:xmpmeta><tiff:Orientation>6</tiff:Orientation></x:xmpmeta>'
EXIF = as_exif(6).tobytes().removeprefix(b'Exif\0\0')
RAW = b'\nexif\n%d\n%s' % (len(EXIF) + 6, (b'Exif\0\0' + EXIF).hex().encode())
# Every kind that the specification (third edition, 11.3), its extensions and Pillow know, and some
# that nobody does.
METADATA = {
    b'tEXt': b'Comment\0hello',
    b'zTXt': b'Comment\0\0' + zlib.compress(b'hello' * 9),
    b'iTXt': b'Comment\0\0\0\0\0hello',
    b'iCCP': b'icc\0\0' + zlib.compress(b'x' * 200),
    b'eXIf': as_exif(1).tobytes().removeprefix(b'Exif\0\0'),
    b'tIME': b'\x07\xe8\1\1\1\1\1',
    b'pHYs': struct.pack('>IIB', 2835, 2835, 1),
    b'gAMA': struct.pack('>I', 45455),
    b'cHRM': struct.pack('>8I', *[31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000]),
    b'sRGB': b'\0',
    b'cICP': bytes([1, 13, 0, 1]),
    b'mDCV': bytes(24),
    b'cLLI': bytes(8),
    b'sBIT': b'\x08\x08\x08',
    b'bKGD': bytes(6),
    b'hIST': bytes(16),
    b'sPLT': b'p\0\x08' + bytes(6),
    b'oFFs': bytes(9),
    b'pCAL': b'a\0' + bytes(12),
    b'sCAL': b'\x011\x001',
    b'acTL': struct.pack('>II', 1, 0),
    b'fcTL': struct.pack('>5I2H2B', 0, 17, 11, 0, 0, 1, 1, 0, 0),
    b'fdAT': bytes(9),
    b'prVt': b'abc',
}


def chunk(kind, data, sound=True):
    checksum = zlib.crc32(kind + data) ^ (not sound)
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', checksum)


def chunks(data):
    at = 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], 'big')
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += 12 + length


def insert(data, *new, before=b'IDAT'):
    """Puts chunks before another one."""
    at = data.index(before) - 4
    return data[:at] + b''.join(new) + data[at:]


def reads_as(data, like):
    np.testing.assert_array_equal(read_image(data), read_image(like))
    found, wanted = probe(data), probe(like)
    assert found.is_good
    assert (found.width, found.mode, found.orientation, found.thumbnail) == (
        wanted.width, wanted.mode, wanted.orientation, wanted.thumbnail,
    )  # fmt: skip


RGB = encode(noise(), 'PNG')


@pytest.mark.parametrize('before', [b'IDAT', b'IEND'])
@pytest.mark.parametrize('kind', METADATA)
def test_metadata_changes_no_pixel_sound_or_not(kind, before):
    for body in (METADATA[kind], b'', METADATA[kind][:-1], METADATA[kind] + b'\xff', bytes(300)):
        for sound in (True, False):
            reads_as(insert(RGB, chunk(kind, body, sound), before=before), RGB)


@pytest.mark.parametrize('kind', [b'IHDR', b'PLTE', b'IDAT', b'IEND', b'ABCD'])
def test_a_wrong_checksum_of_what_pixels_need_is_named(kind):
    whole = png(np.zeros((4, 4), np.uint8), 3, 4, palette=np.zeros((2, 3)))
    whole = insert(whole, chunk(b'ABCD', b''))
    found = list(chunks(whole))
    assert kind in dict(found)
    damaged = whole[:8] + b''.join(chunk(name, data, name != kind) for name, data in found)
    match = rf'is a PNG that cannot be decoded \(the checksum of its {kind.decode()} chunk is wrong'
    for reader in (read_image, probe):
        with pytest.raises(UserError, match=match):
            reader(damaged)


BIG = bytes(50_000_000)
LONG = {
    'zTXt': chunk(b'zTXt', b'Comment\0\0' + zlib.compress(BIG)),
    'iTXt': chunk(b'iTXt', b'Comment\0\1\0\0\0' + zlib.compress(BIG)),
    'tEXt': chunk(b'tEXt', b'Comment\0' + BIG[: 1 << 22]),
    'iCCP': chunk(b'iCCP', b'Comment\0\0' + zlib.compress(BIG)),
    'XMP': chunk(b'iTXt', b'XML:com.adobe.xmp\0\1\0\0\0' + zlib.compress(XMP + BIG)),
    'raw': chunk(b'zTXt', b'Raw profile type exif\0\0' + zlib.compress(RAW + BIG)),
    'many': chunk(b'zTXt', b'Raw profile type exif\0\0' + zlib.compress(BIG[:1_000_000])) * 100,
    'no zlib': chunk(b'iTXt', b'XML:com.adobe.xmp\0\1\0\0\0no zlib'),
}


@pytest.mark.parametrize('name', LONG)
def test_long_texts_and_profiles_are_not_unpacked(name):
    data = insert(RGB, LONG[name])
    read_image(RGB)
    tracemalloc.start()
    try:
        reads_as(data, RGB)
        assert tracemalloc.get_traced_memory()[1] < 1 << 25
    finally:
        tracemalloc.stop()


ORIENTED = {
    'eXIf': chunk(b'eXIf', EXIF),
    'XMP': chunk(b'iTXt', b'XML:com.adobe.xmp\0\0\0\0\0' + XMP),
    'XMP, packed': chunk(b'iTXt', b'XML:com.adobe.xmp\0\1\0\0\0' + zlib.compress(XMP)),
    'raw zTXt': chunk(b'zTXt', b'Raw profile type exif\0\0' + zlib.compress(RAW)),
    'raw tEXt': chunk(b'tEXt', b'Raw profile type exif\0' + RAW),
}


@pytest.mark.parametrize('before', [b'IDAT', b'IEND'])
@pytest.mark.parametrize('name', ORIENTED)
def test_orientation_is_kept(name, before):
    turned = insert(RGB, ORIENTED[name], before=before)
    np.testing.assert_array_equal(read_image(turned), np.rot90(read_image(RGB), -1))
    assert probe(turned).orientation == 6
    damaged = turned.replace(ORIENTED[name], ORIENTED[name][:-1] + b'\xff')
    reads_as(damaged, RGB)


@pytest.mark.parametrize(('color_type', 'right'), [(0, 2), (2, 6)])
def test_transparency_of_a_wrong_length_is_left_out(color_type, right):
    samples = noise() if color_type == 2 else noise(channels=0)
    plain = png(samples, color_type, 8)
    for length in (0, 1, right - 1, right + 1, 300):
        reads_as(png(samples, color_type, 8, transparent=bytes(length)), plain)


def test_nothing_to_leave_out_copies_nothing():
    assert without_metadata(RGB) is RGB
    appended = RGB + b'more'
    assert without_metadata(appended) is appended

"""The reference decoder, against pixels known before they were encoded."""

import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers import run_new_python
from image_samples import LOSSLESS, SAMPLES, as_exif, encode, noise, png, smooth
from PIL import Image

from tlflax.data.images import color_modes, sniff
from tlflax.data.images.decode import probe, read_image
from tlflax.utils.errors import UserError

UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


def header(data):
    found = probe(data)
    size = found.width, found.height
    return (found.format, *size, found.mode, found.orientation, found.plain_jpeg)


@pytest.mark.parametrize('name', LOSSLESS)
def test_lossless_formats_give_the_exact_pixels(name):
    fmt, options = LOSSLESS[name]
    pixels = noise()
    data = encode(pixels, fmt, **options)
    decoded = read_image(data)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, pixels)
    info = probe(data)
    assert (info.format, info.width, info.height, info.plain_jpeg) == (fmt, 17, 11, False)


@pytest.mark.parametrize('progressive', [False, True])
def test_jpeg_is_near_its_source(progressive):
    pixels = smooth()
    data = encode(pixels, 'JPEG', quality=98, subsampling=0, progressive=progressive)
    assert np.abs(read_image(data).astype(int) - pixels).max() <= 4
    assert header(data) == ('JPEG', 96, 64, 'RGB', 1, True)


def test_gray_is_repeated_over_the_channels():
    pixels = smooth()[..., 0]
    decoded = read_image(encode(pixels, 'JPEG', quality=98))
    assert np.abs(decoded.astype(int) - pixels[..., None]).max() <= 4
    np.testing.assert_array_equal(
        read_image(encode(pixels, 'PNG')), np.repeat(pixels[..., None], 3, -1)
    )
    assert probe(encode(pixels, 'JPEG')).plain_jpeg


def test_cmyk_jpeg_as_adobe_stores_it():
    cmyk = np.zeros((16, 48, 4), np.uint8)
    cmyk[:, 16:32] = (0, 255, 255, 0)  # red ink
    cmyk[:, 32:] = (0, 0, 0, 255)  # black ink; the first third is bare paper
    data = encode(Image.fromarray(cmyk, 'CMYK'), 'JPEG', quality=98, subsampling=0)
    assert b'Adobe' in data
    decoded = read_image(data)[8, [4, 24, 44]].astype(int)
    assert np.abs(decoded - [(255, 255, 255), (255, 0, 0), (0, 0, 0)]).max() <= 6
    assert probe(data).mode == 'CMYK'
    assert not probe(data).plain_jpeg


def test_ycck_jpeg():
    pixels = smooth()
    # Adobe stores inverted inks, and YCCK's colors are defined as inverted once more (TN 5116).
    ycc = np.asarray(Image.fromarray(255 - pixels).convert('YCbCr'))
    # No black; Pillow inverts what it writes.
    planes = 255 - np.concatenate([ycc, np.full((64, 96, 1), 255, np.uint8)], -1)
    data = bytearray(encode(Image.fromarray(planes, 'CMYK'), 'JPEG', quality=98, subsampling=0))
    transform = data.index(b'Adobe') + 11
    assert data[transform] == 0
    data[transform] = 2
    decoded = read_image(bytes(data)).astype(int)
    assert np.abs(decoded - pixels).max() <= 8


@pytest.mark.parametrize('orientation', UPRIGHT)
@pytest.mark.parametrize('fmt', ['PNG', 'WEBP', 'TIFF', 'JPEG'])
def test_orientation_is_applied(fmt, orientation):
    pixels = smooth(24, 40)
    options = {'WEBP': {'lossless': True}, 'JPEG': {'quality': 98, 'subsampling': 0}}.get(fmt, {})
    data = encode(pixels, fmt, exif=as_exif(orientation), **options)
    wanted = UPRIGHT[orientation](pixels)
    decoded = read_image(data)
    assert decoded.shape == wanted.shape
    assert np.abs(decoded.astype(int) - wanted).max() <= (4 if fmt == 'JPEG' else 0)
    info = probe(data)
    assert (info.height, info.width) == wanted.shape[:2]
    assert info.plain_jpeg == (fmt == 'JPEG' and orientation == 1)


def test_unreadable_exif_counts_as_none():
    pixels = smooth()
    for exif in (b'Exif\0\0II*\0\xff\xff\xff\xff', b'Exif\0\0garbage', as_exif(99).tobytes()):
        data = encode(pixels, 'JPEG', quality=98, subsampling=0, exif=exif)
        assert np.abs(read_image(data).astype(int) - pixels).max() <= 4
        assert probe(data).orientation == 1


def test_sixteen_bits_keep_the_high_byte():
    gray = noise(channels=0, high=65536, dtype=np.uint16)
    rgb = noise(channels=3, high=65536, dtype=np.uint16)
    wanted = np.repeat((gray >> 8)[..., None], 3, -1)
    np.testing.assert_array_equal(read_image(png(gray, 0, 16)), wanted)
    np.testing.assert_array_equal(read_image(png(rgb, 2, 16)), rgb >> 8)
    np.testing.assert_array_equal(read_image(encode(gray, 'TIFF')), wanted)
    np.testing.assert_array_equal(read_image(encode(gray, 'PPM')), wanted)
    inverted = encode(65535 - gray, 'TIFF', tiffinfo={262: 0})  # white is zero
    np.testing.assert_array_equal(read_image(inverted), wanted)


@pytest.mark.parametrize('bits', [1, 2, 4, 8, 16])
def test_gray_png_with_a_transparent_value(bits):
    gray = noise(channels=0, high=2**bits, dtype=np.uint16)
    key = int(gray.max())
    decoded = read_image(
        png(gray, 0, bits, transparent=struct.pack('>H', key)), background=(7, 130, 250)
    )
    scaled = gray >> 8 if bits == 16 else gray * (255 // (2**bits - 1))
    wanted = np.where((gray == key)[..., None], [7, 130, 250], scaled[..., None])
    np.testing.assert_array_equal(decoded, wanted)


def test_palette_png():
    palette, rows = noise(1, 16, 3, seed=1)[0], noise(channels=0, high=16)
    np.testing.assert_array_equal(read_image(png(rows, 3, 4, palette=palette)), palette[rows])
    alpha = np.zeros(16, np.uint8)
    alpha[5:] = 255
    decoded = read_image(
        png(rows, 3, 4, palette=palette, transparent=alpha.tobytes()), background=(1, 2, 3)
    )
    np.testing.assert_array_equal(
        decoded, np.where((rows < 5)[..., None], [1, 2, 3], palette[rows])
    )


@pytest.mark.parametrize('fmt', ['PNG', 'WEBP', 'TIFF'])
def test_alpha_is_composited(fmt):
    rgba = noise(channels=4)
    options = {'lossless': True, 'exact': True} if fmt == 'WEBP' else {}
    data = encode(rgba, fmt, **options)
    alpha = rgba[..., 3:] / 255
    for background in ((0, 0, 0), (255, 40, 90)):
        wanted = rgba[..., :3] * alpha + np.array(background) * (1 - alpha)
        assert np.abs(read_image(data, background=background) - wanted).max() <= 1
    np.testing.assert_array_equal(read_image(data), read_image(data, background=(0, 0, 0)))


def test_gray_with_alpha_and_a_transparent_color():
    la = noise(channels=2)
    wanted = la[..., :1] * (la[..., 1:] / 255)
    assert np.abs(read_image(encode(Image.fromarray(la, 'LA'), 'PNG')) - wanted).max() <= 1
    rgb = noise()
    key = rgb[2, 3].astype(np.uint16)
    decoded = read_image(png(rgb, 2, 8, transparent=key.astype('>u2').tobytes()))
    wanted = np.where((rgb == key).all(-1, keepdims=True), 0, rgb)
    np.testing.assert_array_equal(decoded, wanted)


def test_first_picture_of_several():
    palette, rows = noise(1, 64, 3, seed=1)[0], noise(channels=0, high=64)
    first = Image.fromarray(rows, 'P')
    first.putpalette(palette.tobytes())
    second = Image.fromarray(255 - noise())
    gif = encode(first, 'GIF', save_all=True, append_images=[second], duration=50)
    np.testing.assert_array_equal(read_image(gif), palette[rows])
    for fmt, options in (('TIFF', {}), ('WEBP', {'lossless': True}), ('PNG', {})):
        data = encode(noise(), fmt, save_all=True, append_images=[second], **options)
        np.testing.assert_array_equal(read_image(data), noise())
    mpo = encode(smooth(), 'MPO', save_all=True, append_images=[second], quality=98)
    assert np.abs(read_image(mpo).astype(int) - smooth()).max() <= 12
    assert header(mpo) == ('MPO', 96, 64, 'RGB', 1, False)


@pytest.mark.parametrize(
    ('data', 'reason'),
    [
        (encode(noise(channels=0).astype(np.float32), 'TIFF'), '32 bits'),
        (encode(noise(channels=0).astype(np.int32), 'TIFF'), '32 bits'),
        (encode(noise(), 'TIFF', tiffinfo={254: 1}), 'thumbnail'),
        (png(noise(high=65536, dtype=np.uint16), 2, 16, transparent=bytes(6)), '16 bits'),
        (b'Pf\n2 2\n-1.0\n' + bytes(16), 'not an image in a known format'),
    ],
)
def test_what_would_decode_to_wrong_pixels_is_refused(data, reason):
    for function in (read_image, probe):
        with pytest.raises(UserError, match=reason):
            function(data)


@pytest.mark.parametrize('size', [(1, 1), (1, 3000), (3000, 1)])
def test_extreme_shapes(size):
    pixels = noise(*size)
    np.testing.assert_array_equal(read_image(encode(pixels, 'PNG')), pixels)
    assert read_image(encode(pixels, 'JPEG')).shape == pixels.shape


def test_too_many_pixels_are_refused_before_decoding():
    header = struct.pack('>IIBBBBB', 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = bytearray(png(noise(), 2, 8))
    bomb[16:29] = header
    bomb[29:33] = struct.pack('>I', zlib.crc32(b'IHDR' + header))
    with pytest.raises(UserError, match='60000x60000 pixels, more than the limit of 178,956,970'):
        read_image(bytes(bomb))
    small = encode(noise(10, 10), 'PNG')
    with pytest.raises(UserError, match='10x10 pixels, more than the limit of 99'):
        probe(small, max_pixels=99)
    assert read_image(small, max_pixels=100).shape == (10, 10, 3)


def test_few_bytes_that_announce_many_pixels():
    """42 bytes of GIF would take gigabytes, as would a few kilobytes of WebP."""
    gif = bytearray(SAMPLES['gif'])
    gif[6:10] = struct.pack('<HH', 13_000, 13_000)
    match = r'has 13000x13000 pixels, far more than [0-9,]+ bytes can hold; shrink it'
    for read in (read_image, probe):
        with pytest.raises(UserError, match=match):
            read(bytes(gif))
    with pytest.raises(UserError, match='13000x13000 pixels, more than the limit of 99'):
        read_image(bytes(gif), max_pixels=99)


@pytest.mark.parametrize('name', SAMPLES)
def test_limit_is_ours_and_pillow_keeps_its_own(monkeypatch, name):
    wanted, limits = read_image(SAMPLES[name]), []
    to_rgb = color_modes.to_rgb

    def spy(*args):
        limits.append(Image.MAX_IMAGE_PIXELS)
        return to_rgb(*args)

    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 3)
    monkeypatch.setattr(color_modes, 'to_rgb', spy)
    np.testing.assert_array_equal(read_image(SAMPLES[name]), wanted)
    height, width, _ = wanted.shape
    assert (probe(SAMPLES[name]).height, probe(SAMPLES[name]).width) == (height, width)
    assert set(limits) == {Image.MAX_IMAGE_PIXELS} == {3}
    words = f'more than the limit of {height * width - 1}'
    for function in (read_image, probe):
        with pytest.raises(UserError, match=words):
            function(SAMPLES[name], max_pixels=height * width - 1)


def test_a_frame_beyond_the_canvas_of_a_gif_is_refused_before_memory_is_spent():
    data = bytearray(encode(Image.fromarray(noise(channels=0), 'P'), 'GIF'))
    at = data.index(b',') + 1  # the frame: left, top, width, height
    data[at + 4 : at + 8] = struct.pack('<HH', 65535, 65535)
    with pytest.raises(UserError, match='65535x65535 pixels, more than the limit'):
        read_image(bytes(data))


def test_pillows_warnings_are_ignored_in_the_thread_that_decodes_and_nowhere_else(monkeypatch):
    to_rgb, heard = color_modes.to_rgb, []

    def warn():
        module = {'__name__': 'PIL.Somewhere'}
        exec("import warnings; warnings.warn('odd metadata', UserWarning)", module)

    def spy(*args):
        warn()
        with ThreadPoolExecutor(1) as other, pytest.warns(UserWarning, match='odd'):
            other.submit(warn).result()
        heard.append(True)
        return to_rgb(*args)

    monkeypatch.setattr(color_modes, 'to_rgb', spy)
    before = list(warnings.filters)
    read_image(encode(noise(), 'PNG'))
    assert heard == [True]
    assert list(warnings.filters) == before
    with pytest.raises(UserError):
        read_image(b'')
    assert list(warnings.filters) == before


def test_decoding_in_many_threads_leaves_the_process_as_it_was():
    before = list(warnings.filters), Image.MAX_IMAGE_PIXELS
    data = [SAMPLES[name] for name in SAMPLES] * 5
    with ThreadPoolExecutor(8) as pool:
        for pixels, one in zip(pool.map(read_image, data), data, strict=True):
            np.testing.assert_array_equal(pixels, read_image(one))
    assert (list(warnings.filters), Image.MAX_IMAGE_PIXELS) == before


def outcome(data):
    """Returns the pixels, or None for a UserError; whatever else is raised fails the test."""
    try:
        info = probe(data, max_pixels=10**6)
    except UserError:
        with pytest.raises(UserError):
            read_image(data, max_pixels=10**6)
        return None
    pixels = read_image(data, max_pixels=10**6)  # probe promises that this succeeds
    assert pixels.dtype == np.uint8
    assert pixels.shape == (info.height, info.width, 3)
    return pixels


@pytest.mark.parametrize('name', SAMPLES)
def test_truncated_file_is_an_error_or_the_whole_picture(name):
    data = SAMPLES[name]
    whole = outcome(data)
    assert whole is not None
    lengths = range(0, len(data), max(1, len(data) // 150))
    kept = [length for length in lengths if outcome(data[:length]) is not None]
    for length in kept:
        np.testing.assert_array_equal(read_image(data[:length]), whole)
    # A few trailing bytes may carry no pixels: the end mark of a GIF, the second picture of an MPO.
    assert all(length > len(data) // 3 for length in kept)
    with pytest.raises(
        UserError, match=r'^cut: is (a truncated|a \w+ that|not an image|empty|text)'
    ):
        read_image(data[: len(data) // 4], name='cut')


@pytest.mark.parametrize('name', SAMPLES)
def test_mutated_bytes_raise_nothing_but_a_sentence(name):
    rng = np.random.default_rng(len(name))
    for _ in range(120):
        data = bytearray(SAMPLES[name])
        for _ in range(rng.integers(1, 6)):
            start = 0 if rng.random() < 0.5 else rng.integers(len(data))
            at = min(int(start + rng.integers(64)), len(data) - 1)
            action = rng.integers(3)
            if action == 0:
                data[at] = rng.integers(256)
            elif action == 1:
                del data[at : at + int(rng.integers(1, 9))]
            else:
                data[at:at] = rng.bytes(int(rng.integers(1, 9)))
        outcome(bytes(data))


@pytest.mark.parametrize('name', ['png', 'png-palette', 'png-rgba', 'png-16'])
def test_damaged_png_is_never_another_picture(name):
    data, whole = SAMPLES[name], outcome(SAMPLES[name])
    start = data.index(b'IDAT') + 4
    end = data.index(b'IEND') - 8
    for at in range(start, end, max(1, (end - start) // 80)):
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        pixels = outcome(bytes(damaged))
        assert pixels is None or (pixels == whole).all()


def test_foreign_marker_inside_a_jpeg_is_an_error():
    data = encode(smooth(), 'JPEG', quality=90)
    start = data.index(b'\xff\xda') + 30
    for at in range(start, start + 200, 20):
        for marker in (b'\xff\xea', b'\xff\xea\0\4ab', b'\xff\xd8'):
            assert outcome(data[:at] + marker + data[at + len(marker) :]) is None
    zero_tail = data[: len(data) // 2] + bytes(len(data) // 2)
    with pytest.raises(UserError, match='truncated JPEG'):
        read_image(zero_tail)


def test_bytes_after_the_end_of_a_jpeg_do_no_harm():
    data = encode(smooth(), 'JPEG', exif=as_exif(1))
    appended = data + b'\xff\xda\xff\xc9 a video, as phones append'
    np.testing.assert_array_equal(read_image(appended), read_image(data))
    assert probe(appended).plain_jpeg


@pytest.mark.parametrize(
    ('marker', 'plain'), [(0xC0, True), (0xC1, True), (0xC2, True), (0xC3, False), (0xC9, False)]
)
def test_only_common_codings_are_plain(marker, plain):
    data = bytearray(encode(smooth(), 'JPEG'))
    data[data.index(b'\xff\xc0') + 1] = marker
    assert sniff.check_jpeg(bytes(data)) == ('', plain)


def test_progressive_jpeg_without_its_last_scan_is_not_plain():
    """Decoders guess what is missing, each in its own way; what counts is Pillow's guess."""
    data = SAMPLES['jpeg-progressive']
    assert sniff.check_jpeg(data) == ('', True)
    for scan in (-1, -2):
        parts = data.split(b'\xff\xda')
        ends = parts[scan].index(b'\xff\xc4') if b'\xff\xc4' in parts[scan] else -2
        parts[scan] = parts[scan][ends:]
        less = b'\xff\xda'.join(parts[:scan]) + parts[scan]
        less += b''.join(b'\xff\xda' + part for part in parts[len(parts) + scan + 1 :])
        assert sniff.check_jpeg(less) == ('', False)
        assert not probe(less).plain_jpeg
        difference = np.abs(read_image(less).astype(int) - read_image(data))
        assert 0 < difference.max() < 64


HTML = b'<!DOCTYPE html><html><body>404</body></html>'


@pytest.mark.parametrize(
    ('data', 'words'),
    [
        (b'', 'is empty'),
        (bytes(5000), 'is nothing but zero bytes'),
        (HTML, 'is an HTML page'),
        (b'\n  ' + HTML.lower(), 'is an HTML page'),
        (b'<?xml version="1.0"?><svg></svg>', 'is an SVG drawing'),
        (b'<?xml version="1.0"?><annotation/>', 'is XML'),
        (b'version https://git-lfs.github.com/spec/v1\n', 'is a Git LFS pointer'),
        ('nur Text, größer'.encode() * 1000, 'is text'),
        (b'BM is not always a bitmap', 'is text'),
        (b'P1 is a name too', 'is text'),
        (b'%PDF-1.7', 'is a PDF'),
        (b'PK\x03\x04....', 'is a ZIP archive'),
        (b'\0\0\0\x18ftypheic\0\0', 'is HEIC, a format that is not read here'),
        (b'\0\0\0\x18ftypavif\0\0', 'is AVIF'),
        (b'\0\0\0\x18ftypisom\0\0', 'is audio or video'),
        (b'II*\0\x10\0\0\0CR\x02\0', 'is camera raw'),
        (b'\x93\x01\x02\xfe\0\x07', 'is not an image in a known format'),
        (encode(noise(), 'PNG')[:60], 'is a truncated PNG'),
        (encode(smooth(), 'JPEG')[:900], 'is a truncated JPEG'),
        (encode(noise(), 'WEBP')[:-9], 'is a truncated WEBP'),
        (encode(noise(), 'BMP')[:-90], 'is a truncated BMP'),
        (encode(noise(), 'GIF')[:-90], 'is a truncated GIF'),
        (encode(noise(), 'TIFF', compression='tiff_lzw')[:-9], 'is a truncated TIFF'),
    ],
)
def test_error_names_the_file_and_what_it_is(tmp_path, data, words):
    path = tmp_path / 'photo.jpg'
    path.write_bytes(data)
    with pytest.raises(UserError) as error:
        read_image(path)
    assert str(error.value).startswith(f'{path}: {words}')
    assert 'replace or remove it' in str(error.value)


def test_paths_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r'gone\.jpg: cannot be read: No such file'):
        read_image(tmp_path / 'gone.jpg')
    with pytest.raises(UserError, match='cannot be read: it is a folder, not a file'):
        probe(str(tmp_path))


def test_extension_does_not_matter_and_names_may_be_odd(tmp_path):
    path = tmp_path / 'größe 日本 \udcff.jpg'
    with open(os.fsencode(path), 'wb') as file:
        file.write(encode(noise(), 'PNG'))
    np.testing.assert_array_equal(read_image(path), noise())
    path.write_bytes(b'')
    with pytest.raises(UserError) as error:
        read_image(path)
    str(error.value).encode()  # can be printed


def test_no_noise_and_no_heavy_imports(tmp_path):
    (tmp_path / 'a.tif').write_bytes(SAMPLES['tiff-lzw'][:-9])
    exif = b'Exif\0\0II*\0\x08\0\0\0\x09\0'
    (tmp_path / 'b.jpg').write_bytes(encode(noise(), 'JPEG', exif=exif))
    program = """
import sys
import tlflax.data.audit.run, tlflax.data.splits.load, tlflax.data.inputs.loose_images
from tlflax.data.images import decode
from tlflax.utils.errors import UserError
decode.read_image(sys.argv[2])
try:
    decode.read_image(sys.argv[1])
except UserError:
    print(*(sys.modules.keys() & {'jax', 'flax', 'orbax', 'tensorflow', 'torch'}), 'end')
"""
    files = [str(tmp_path / 'a.tif'), str(tmp_path / 'b.jpg')]
    done = run_new_python('-W', 'default', '-c', program, *files)
    assert (done.stdout, done.stderr) == ('end\n', '')

"""Small images in every format and coding, from pixels known before they were encoded."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def encode(pixels, fmt, **options):
    """Encodes an array (or a Pillow image) by Pillow."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, fmt, **options)
    return file.getvalue()


def png(samples, color_type, bits, *, transparent=None, palette=None):
    """Encodes rows of samples as a PNG by hand, for depths that Pillow cannot write."""

    def chunk(name, data):
        return (
            struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
        )

    height, width = samples.shape[:2]
    if bits == 16:
        rows = [row.astype('>u2').tobytes() for row in samples]
    else:
        grown = samples.astype(np.uint8).reshape(height, -1, 1)
        binary = np.unpackbits(grown, axis=2)[:, :, 8 - bits :].reshape(height, -1)
        rows = [np.packbits(row).tobytes() for row in binary]
    chunks = [chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, bits, color_type, 0, 0, 0))]
    if palette is not None:
        chunks.append(chunk(b'PLTE', palette.astype(np.uint8).tobytes()))
    if transparent is not None:
        chunks.append(chunk(b'tRNS', transparent))
    chunks.append(chunk(b'IDAT', zlib.compress(b''.join(b'\0' + row for row in rows))))
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunks) + chunk(b'IEND', b'')


def noise(height=11, width=17, channels=3, seed=0, high=256, dtype=np.uint8):
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, high, shape, dtype=dtype)


def smooth(height=64, width=96, seed=0):
    """Slow color gradients, which a JPEG of high quality keeps."""
    y, x = np.mgrid[0:height, 0:width]
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    waves = [np.sin(x / 15 + p) + np.cos(y / 20 + 2 * p) for p in phase]
    return np.clip(127 + 55 * np.stack(waves, -1), 0, 255).astype(np.uint8)


def as_exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


LOSSLESS = {
    'png': ('PNG', {}),
    'bmp': ('BMP', {}),
    'tiff': ('TIFF', {}),
    'tiff-lzw': ('TIFF', {'compression': 'tiff_lzw'}),
    'tiff-deflate': ('TIFF', {'compression': 'tiff_adobe_deflate'}),
    'webp': ('WEBP', {'lossless': True}),
    'ppm': ('PPM', {}),
}


def samples():
    """A small image in every format and coding."""
    jpeg = {'quality': 90}
    found = {name: encode(noise(), fmt, **options) for name, (fmt, options) in LOSSLESS.items()}
    return found | {
        'jpeg': encode(smooth(24, 40), 'JPEG', **jpeg),
        'jpeg-gray': encode(smooth(24, 40)[..., 0], 'JPEG', **jpeg),
        'jpeg-progressive': encode(smooth(24, 40), 'JPEG', progressive=True, **jpeg),
        'jpeg-restarts': encode(smooth(24, 40), 'JPEG', restart_marker_blocks=1, **jpeg),
        'jpeg-oriented': encode(smooth(24, 40), 'JPEG', exif=as_exif(6), **jpeg),
        'jpeg-cmyk': encode(Image.fromarray(noise(channels=4), 'CMYK'), 'JPEG', **jpeg),
        'mpo': encode(noise(), 'MPO', save_all=True, append_images=[Image.fromarray(noise())]),
        'gif': encode(noise(), 'GIF'),
        'gif-interlaced': encode(noise(), 'GIF', interlace=1),
        'png-palette': encode(Image.fromarray(noise()).quantize(16), 'PNG'),
        'png-rgba': encode(noise(channels=4), 'PNG'),
        'png-16': png(noise(channels=0, high=65536, dtype=np.uint16), 0, 16),
        'tiff-jpeg': encode(noise(), 'TIFF', compression='jpeg'),
        'webp-lossy': encode(smooth(24, 40), 'WEBP'),
        'webp-rgba': encode(noise(channels=4), 'WEBP'),
        'bmp-palette': encode(Image.fromarray(noise()).quantize(16), 'BMP'),
    }


SAMPLES = samples()

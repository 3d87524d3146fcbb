"""What a file holds, told from its first bytes; extensions are not trusted."""

import codecs
import re
from typing import Literal

HEAD_BYTES = 4096

# Formats that `decode` reads, under Pillow's names for them.
READABLE = ('JPEG', 'PNG', 'GIF', 'BMP', 'WEBP', 'TIFF', 'PPM')
# Photographs and drawings that it does not read: found in a class folder, they are surely meant.
OTHER_IMAGES = ('HEIC', 'AVIF', 'JPEG 2000', 'JPEG XL', 'PSD', 'SVG', 'camera raw')

_PREFIXES = (
    (b'\xff\xd8\xff', 'JPEG'),
    (b'\x89PNG\r\n\x1a\n', 'PNG'),
    (b'GIF87a', 'GIF'),
    (b'GIF89a', 'GIF'),
    (b'II*\0\x10\0\0\0CR', 'camera raw'),
    (b'II*\0', 'TIFF'),
    (b'MM\0*', 'TIFF'),
    (b'II+\0', 'TIFF'),
    (b'MM\0+', 'TIFF'),
    (b'\0\0\0\x0cjP  ', 'JPEG 2000'),
    (b'\xff\x4f\xff\x51', 'JPEG 2000'),
    (b'\0\0\0\x0cJXL ', 'JPEG XL'),
    (b'\xff\x0a', 'JPEG XL'),
    (b'8BPS', 'PSD'),
    (b'%PDF', 'PDF'),
    (b'PK\x03\x04', 'ZIP'),
    (b'\x1f\x8b', 'gzip'),
    (b'version https://git-lfs', 'Git LFS'),
)
_HEIF_BRANDS = {b'avif': 'AVIF', b'avis': 'AVIF'} | dict.fromkeys(
    (b'heic', b'heix', b'hevc', b'heim', b'heis', b'mif1', b'msf1'), 'HEIC'
)
# A marker that is neither a stuffed 0xFF of the coded picture nor one of its restart marks.
_MARKER = re.compile(rb'\xff+[^\x00\xd0-\xd7\xff]')
_FIRST, _PROGRESSIVE, _NO_FRAMES = 0xC0, 0xC2, (0xC4, 0xC8, 0xCC)
_END, _SCAN, _LINES = 0xD9, 0xDA, 0xDC
_BMP_HEADER_SIZES = (12, 16, 40, 52, 56, 64, 108, 124)
_PPM = re.compile(rb'P[1-6]\s+(#[^\n]*\n\s*)*\d+\s')

_PHRASES = {
    'empty': 'empty',
    'HTML': 'an HTML page, not an image',
    'SVG': 'an SVG drawing, which has no pixels',
    'XML': 'XML, not an image',
    'PDF': 'a PDF, not an image',
    'ZIP': 'a ZIP archive, not an image',
    'gzip': 'a gzip archive, not an image',
    'video': 'audio or video, not an image',
    'Git LFS': "a Git LFS pointer: the image itself is not here ('git lfs pull' fetches it)",
    'zeros': 'nothing but zero bytes',
    'text': 'text, not an image',
}


def sniff(head: bytes) -> str:
    """Names the format of a file from its first `HEAD_BYTES` bytes; '' where it is unknown.

    The name is one of `READABLE` or `OTHER_IMAGES`, or of something that is no image.
    """
    if not head:
        return 'empty'
    for prefix, kind in _PREFIXES:
        if head.startswith(prefix):
            return kind
    if head[:4] == b'RIFF':
        return 'WEBP' if head[8:12] == b'WEBP' else 'video'
    if head[4:8] == b'ftyp':
        return _HEIF_BRANDS.get(head[8:12], 'video')
    # Two letters and three are too few to tell a BMP or a PPM from a text file: look further.
    if head[:2] == b'BM' and int.from_bytes(head[14:18], 'little') in _BMP_HEADER_SIZES:
        return 'BMP'
    if _PPM.match(head):
        return 'PPM'
    return _sniff_text(head)


def explain(kind: str) -> str:
    """Returns what a file of an unreadable `kind` is, for a sentence such as 'a.jpg is empty'."""
    if kind in _PHRASES:
        return _PHRASES[kind]
    if kind in OTHER_IMAGES:
        return f'{kind}, a format that is not read here: convert it to JPEG or PNG'
    return 'no image in a known format'


def is_cut_short(kind: str, data: bytes) -> bool:
    """Tells whether a file of `kind` ends before its own marks say it should."""
    if kind == 'PNG':
        return b'IEND' not in data[-4096:]
    if kind == 'WEBP':
        return len(data) < 8 + int.from_bytes(data[4:8], 'little')
    if kind == 'TIFF':
        order: Literal['little', 'big'] = 'little' if data[:1] == b'I' else 'big'
        directory = int.from_bytes(data[4:8], order)
        fields = int.from_bytes(data[directory : directory + 2], order)
        return len(data) < directory + 2 + 12 * fields + 4
    return False


def check_jpeg(data: bytes) -> tuple[str, bool]:
    """Walks the markers of a JPEG from start to end of image (ITU T.81, annex B).

    Decoders paint over what is missing or misplaced here without a word, each in its own way.

    Returns:
        What is wrong ('' if nothing is), and whether it is coded as every decoder expects:
        baseline or progressive Huffman, 8 bits, 1 or 3 components, and every bit of every
        coefficient is there. (Where some are not, decoders smooth the picture, each differently.)
    """
    at, components, baseline, one_scan, plain = 2, 0, False, False, False
    missing: set[tuple[int, int]] = set()  # (component, coefficient) without its last bit
    while found := _MARKER.search(data, at):
        at, marker = found.end(), found.group()[-1]
        if marker == _END:
            return '', plain and not missing
        if marker < _FIRST or (one_scan and marker != _LINES):
            return 'a marker out of place', False
        length = int.from_bytes(data[at : at + 2], 'big')
        segment = data[at : at + length].ljust(8, b'\0')
        at += length
        if _FIRST <= marker <= 0xCF and marker not in _NO_FRAMES:
            precision, components = segment[2], segment[7]
            plain = marker <= _PROGRESSIVE and precision == 8 and components in (1, 3)
            baseline = marker < _PROGRESSIVE
            if marker == _PROGRESSIVE:
                names = segment[8 : 8 + 3 * components : 3]
                missing = {(name, k) for name in names for k in range(64)}
        elif marker == _SCAN:  # the coded picture follows
            one_scan = baseline and segment[2] == components
            if missing and not segment[-1] & 15:
                names = segment[3 : 3 + 2 * segment[2] : 2]
                band = range(segment[-3], segment[-2] + 1)
                missing -= {(name, k) for name in names for k in band}
    return 'truncated', False


def _sniff_text(head: bytes) -> str:
    if not head.strip(b'\0'):
        return 'zeros'
    start = head.lstrip(b'\xef\xbb\xbf \t\r\n').lower()
    if start.startswith((b'<!doctype html', b'<html')):
        return 'HTML'
    if start.startswith(b'<svg') or (start.startswith(b'<?xml') and b'<svg' in start):
        return 'SVG'
    if start.startswith(b'<?xml'):
        return 'XML'
    try:
        # Incremental, for the head may end inside a character.
        text = codecs.getincrementaldecoder('utf-8')().decode(head)
    except UnicodeDecodeError:
        return ''
    return 'text' if all(char.isprintable() or char.isspace() for char in text) else ''

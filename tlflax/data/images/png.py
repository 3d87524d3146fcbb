"""Takes out of a PNG what its pixels do not need, as browsers do before they show it.

A PNG is a row of chunks, each with a checksum. Pillow refuses a file for any of them: a damaged
comment, a text or color profile of more than a megabyte. Here only those chunks reach it that
decide pixels or orientation, and a damaged one that could be left out is left out (PNG
specification, third edition, sections 5.3, 5.4 and 13.1).
"""

import zlib

_SIGNATURE_BYTES, _FRAME_BYTES = 8, 12  # around the data of a chunk: length, type, checksum
# Texts that Pillow finds an orientation in, the most bytes of one and the most of them.
_TEXTS = (b'tEXt', b'zTXt', b'iTXt')
_ORIENTING = (b'XML:com.adobe.xmp', b'Raw profile type exif')
_TEXT_BYTES, _MOST_TEXTS = 1 << 20, 16
_TRANSPARENCY_BYTES = {0: 2, 2: 6}  # by color type: gray and RGB name one color


def without_metadata(data: bytes) -> bytes:
    """Returns a PNG without the chunks that decide neither its pixels nor its orientation.

    Args:
        data: The file; the same object is returned where there is nothing to leave out.

    Raises:
        ValueError: The checksum of a chunk that pixels need is wrong.
    """
    view, kept, at, texts = memoryview(data), [], _SIGNATURE_BYTES, 0
    color_type = data[25] if len(data) > 25 else 0
    while at + _FRAME_BYTES <= len(data):
        end = at + _FRAME_BYTES + int.from_bytes(view[at : at + 4], 'big')
        kind = bytes(view[at + 4 : at + 8])
        if end > len(data) or not kind.isalpha():  # cut short or no PNG: Pillow will say so
            break
        sound = zlib.crc32(view[at + 4 : end - 4]) == int.from_bytes(view[end - 4 : end], 'big')
        body = view[at + 8 : end - 4]
        if kind[:1].isupper():
            if not sound:
                raise ValueError(f'the checksum of its {kind.decode()} chunk is wrong')
            kept.append((at, end))
        elif sound and _decides(kind, body, color_type):
            texts += kind in _TEXTS
            if texts <= _MOST_TEXTS or kind not in _TEXTS:
                kept.append((at, end))
        at = end
        if kind == b'IEND':
            break
    if sum(end - start for start, end in kept) == at - _SIGNATURE_BYTES:
        return data
    return b''.join([data[:_SIGNATURE_BYTES], *(view[start:end] for start, end in kept), view[at:]])


def _decides(kind: bytes, body: memoryview, color_type: int) -> bool:
    """Returns whether a chunk that could be left out decides pixels or orientation."""
    if kind == b'tRNS':
        return len(body) == _TRANSPARENCY_BYTES.get(color_type, len(body))
    if kind in _TEXTS:
        keyword = bytes(body[:80]).partition(b'\0')[0]
        return keyword in _ORIENTING and _is_short(kind, bytes(body[len(keyword) + 1 :]))
    return kind == b'eXIf'


def _is_short(kind: bytes, text: bytes) -> bool:
    """Returns whether the text after a keyword has no more than `_TEXT_BYTES`, once unpacked."""
    if kind == b'iTXt':  # packed or not, method, language, keyword in that language
        packed, text = text[:1] == b'\1', text[2:].split(b'\0', 2)[-1]
    else:
        packed, text = kind == b'zTXt', text[1:] if kind == b'zTXt' else text
    if packed:
        try:
            text = zlib.decompressobj().decompress(text, _TEXT_BYTES + 1)
        except zlib.error:
            return False
    return len(text) <= _TEXT_BYTES

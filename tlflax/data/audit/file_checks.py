"""Checks the files of a split, one by one, by what reading them showed."""

import os
from collections import Counter
from collections.abc import Iterator

from tlflax.data.audit.problems import Item, Problem
from tlflax.data.images.files import ScannedFile
from tlflax.data.inputs.listing import Scan
from tlflax.data.inputs.walk import HIDDEN, LOOPS, Ignored, kind_of_stray
from tlflax.utils.errors import printable

SMALL = 16  # pixels of the shorter side, below which it is a warning
STRETCHED = 4.0  # longer over shorter side, above which it is a note

_EXTENSIONS = {
    'JPEG': ('.jpg', '.jpeg', '.jpe', '.jfif'),
    'PNG': ('.png',),
    'GIF': ('.gif',),
    'BMP': ('.bmp', '.dib'),
    'WEBP': ('.webp',),
    'TIFF': ('.tif', '.tiff'),
    'PPM': ('.ppm', '.pgm', '.pbm', '.pnm'),
}
_KIND_OF = {extension: kind for kind, names in _EXTENSIONS.items() for extension in names}


_CHECKS = {
    'bad_image': (
        'error', 'images cannot be used',
        'replace or remove them, or leave them out with --config.data.on_bad_image=skip',
    ),
    'small': (
        'warning', f'images have a side of fewer than {SMALL} pixels',
        'check whether they show anything recognizable',
    ),
    'placeholder': (
        'warning', 'images show a single color, or nearly',
        'remove them, unless nothing is what they should show',
    ),
    'extension': (
        'note', 'images are not what their extension says',
        'rename them, for other programs; here the contents decide',
    ),
    'stretched': (
        'note', f'images are over {STRETCHED:.0f} times as long as wide',
        "data.resize='pad' keeps their shape",
    ),
    'empty_file': ('note', 'files without an image extension are empty', ''),
    'not_an_image': ('note', 'files are not images and are ignored', ''),
}  # fmt: skip


def check(split: str, scan: Scan) -> Iterator[Problem]:
    """Yields what is wrong with the files of a split, and what was left out of it."""
    found: dict[str, list[Item]] = {code: [] for code in _CHECKS}
    for entry, _, file in scan.rows():
        for code, fault in _faults(entry.path, file):
            found[code].append(_item(split, entry.path, fault))
    for code, (level, what, fix) in _CHECKS.items():
        if items := found[code]:
            sentence = f'{split}: {len(items):,} {what}'
            if code == 'not_an_image':
                tally = Counter(kind_of_stray(item['path']) for item in items).most_common(5)
                sentence += f' ({", ".join(f"{count:,} {kind}" for kind, count in tally)})'
            yield Problem(code, level, len(items), sentence, fix, items)
    yield from _left_out(split, scan)


def _faults(path: str, file: ScannedFile) -> Iterator[tuple[str, str]]:
    """Yields what is wrong with a file: a key of `_CHECKS`, and words for it."""
    if not file.is_good:
        if file.fault:
            yield 'bad_image', file.fault
        else:
            yield 'empty_file' if file.kind == 'empty' else 'not_an_image', ''
        return
    short, long = sorted((file.width, file.height))
    if short < SMALL:
        yield 'small', f'has {file.width}x{file.height} pixels'
    if long > STRETCHED * short:
        yield 'stretched', f'has {file.width}x{file.height} pixels'
    if file.flat:
        yield 'placeholder', ''
    extension = os.path.splitext(path)[1].lower()
    if _KIND_OF.get(extension, file.kind) != file.kind:
        yield 'extension', f'is a {file.kind}'


def _left_out(split: str, scan: Scan) -> Iterator[Problem]:
    """Yields what was left out of the listing."""
    codes = {LOOPS: 'loop', HIDDEN: 'hidden'}
    paths = scan.ignored.paths if isinstance(scan.ignored, Ignored) else {}
    for reason, count in scan.ignored.most_common():
        if not reason.startswith(('*', 'without extension')):  # stray files are listed one by one
            items = [_item(split, path, '') for path in paths.get(reason, [])]
            what = f'{split}: {count:,} {reason} left out'
            yield Problem(codes.get(reason, 'left_out'), 'note', count, what, '', items)


def _item(split: str, path: str, fault: str) -> Item:
    item: Item = {'split': split, 'path': printable(path)}
    if fault:
        item['fault'] = fault
    return item

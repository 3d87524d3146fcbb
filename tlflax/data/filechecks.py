"""What is wrong with single files of a split, told from what reading them showed."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from tlflax.data.decode import ImageInfo, printable
from tlflax.data.findings import Entry, Finding
from tlflax.data.problems import Problem
from tlflax.data.scans import Scanned
from tlflax.data.walk import HIDDEN, LOOPS, Ignored, kind_of_stray

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


def check(split: str, scanned: Scanned) -> Iterator[Problem]:
    """Yields what is wrong with the files of a split, and what was left out of it."""

    def collect(fault: Callable[[Entry, Finding], str | None]) -> list[dict[str, Any]]:
        found = zip(scanned.entries, scanned.findings, strict=True)
        said = ((entry.path, fault(entry, finding)) for entry, finding in found)
        return [_item(split, path, words) for path, words in said if words is not None]

    checks: tuple[tuple[str, str, Callable[[Entry, Finding], str | None], str, str], ...] = (
        ('bad_image', 'error', _bad, 'images cannot be used',
         'replace or remove them, or leave them out with --config.data.on_bad_image=skip'),
        ('small', 'warning', _small, f'images have a side of fewer than {SMALL} pixels',
         'see whether anything can be told from them'),
        ('extension', 'note', _lies, 'images are not what their extension says',
         'rename them, for other programs; here the contents decide'),
        ('stretched', 'note', _stretched, f'images are over {STRETCHED:.0f} times as long as wide',
         "data.resize='pad' keeps their shape"),
        ('empty_file', 'note', _empty, 'files without an image extension are empty', ''),
        ('not_an_image', 'note', _stray, 'files are no images and are ignored', ''),
    )  # fmt: skip
    for code, level, fault, what, mend in checks:
        if items := collect(fault):
            kinds = ''
            if code == 'not_an_image':
                tally = Counter(kind_of_stray(item['path']) for item in items)
                kinds = f' ({", ".join(f"{n} {kind}" for kind, n in tally.most_common(5))})'
            sentence = f'{split}: {len(items):,} {what}{kinds}'
            yield Problem(code, level, len(items), sentence, mend, items)
    yield from _left_out(split, scanned)


def _left_out(split: str, scanned: Scanned) -> Iterator[Problem]:
    """What the walk did not list."""
    codes = {LOOPS: 'loop', HIDDEN: 'hidden'}
    paths = scanned.ignored.paths if isinstance(scanned.ignored, Ignored) else {}
    for reason, count in scanned.ignored.most_common():
        if not reason.startswith(('*', 'without extension')):  # beside the class folders
            items = [_item(split, path, '') for path in paths.get(reason, [])]
            what = f'{split}: {count:,} {reason} left out'
            yield Problem(codes.get(reason, 'left_out'), 'note', count, what, '', items)


def _item(split: str, path: str, fault: str) -> dict[str, Any]:
    item = {'split': split, 'path': printable(path)}
    return item | {'fault': fault} if fault else item


def _bad(entry: Entry, finding: Finding) -> str | None:
    return finding.fault or None


def _small(entry: Entry, finding: Finding) -> str | None:
    info = finding.info
    return _size(info) if info is not None and min(info.width, info.height) < SMALL else None


def _stretched(entry: Entry, finding: Finding) -> str | None:
    info = finding.info
    if info is None:
        return None
    short, long = sorted((info.width, info.height))
    return _size(info) if long > STRETCHED * short else None


def _size(info: ImageInfo) -> str:
    return f'has {info.width}x{info.height} pixels'


def _lies(entry: Entry, finding: Finding) -> str | None:
    extension = os.path.splitext(entry.path)[1].lower()
    meant = _KIND_OF.get(extension, finding.kind)
    return f'is a {finding.kind}' if finding.digest and finding.kind != meant else None


def _empty(entry: Entry, finding: Finding) -> str | None:
    return '' if finding.kind == 'empty' and not finding.is_image else None


def _stray(entry: Entry, finding: Finding) -> str | None:
    return '' if finding.kind != 'empty' and not finding.is_image else None

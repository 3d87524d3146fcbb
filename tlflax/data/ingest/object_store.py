"""Images in object stores, mirrored into the cache: `gs://`, `s3://` and others that fsspec knows.

Only objects that are new or have changed are fetched, several at once, each whole or not at all;
what was deleted there is deleted here: see `tlflax.utils.storage.download`.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tlflax.data.images.scan import IMAGE_EXTENSIONS
from tlflax.data.inputs.pattern import is_pattern, split_base
from tlflax.data.inputs.walk import IGNORED_FOLDERS, kind_of_stray
from tlflax.utils.errors import UserError
from tlflax.utils.storage.connect import connect, explaining
from tlflax.utils.storage.download import Copy, Remote, is_name, remote


def fetch(url: str, cache_dir: Path) -> str:
    """Mirrors a folder and returns where it is now: the folder, or a pattern in it.

    Objects with another ending than an image's are left where they are.

    Args:
        url: A folder of class folders, or a pattern; see `tlflax.data.inputs.pattern`.
        cache_dir: Where to write, in a folder `mirrors`.

    Raises:
        UserError: The package for such URLs is missing, the bucket or folder does not exist or may
            not be read, or the mirror cannot be written.
    """
    base, rest = split_base(url) if is_pattern(url) else (url.rstrip('/'), '')
    store, top = connect(base)
    with explaining(base):
        found = store.find(top, detail=True)
    ignored: Counter[str] = Counter()
    objects = _select(found, top, ignored)
    if not objects:
        raise UserError(
            f'{base} holds no image, or does not exist'
            + (f' ({sum(ignored.values())} objects have other endings)' if ignored else ''),
            fix='fix the URL; images end in .jpg, .png, .gif, .bmp, .webp, .tif or nothing',
        )
    name = re.sub(r'[^A-Za-z0-9_.-]+', '_', base)[-40:]
    place = cache_dir / 'mirrors' / f'{name}-{hashlib.sha256(base.encode()).hexdigest()[:12]}'
    with explaining(base):
        copy = Copy(place / 'files', place / 'index.jsonl', cache_dir, base, 'images')
        copy.update(store, objects)
    return str(place / 'files' / rest)


def _select(
    found: Mapping[str, Mapping[str, object]], top: str, ignored: Counter[str]
) -> dict[str, Remote]:
    """Returns the objects to mirror, by relative path, and counts the others."""
    start, chosen = top.rstrip('/') + '/', {}
    for path, info in found.items():
        relative = path.removeprefix(start)
        parts = relative.split('/')
        if info.get('type') == 'directory' or not parts[-1]:
            continue
        extension = os.path.splitext(parts[-1])[1].lower()
        if any(part.startswith('.') or part in IGNORED_FOLDERS for part in parts):
            ignored['hidden'] += 1
        elif not is_name(relative):
            ignored['names that no folder can hold'] += 1
        elif extension and extension not in IMAGE_EXTENSIONS:
            ignored[kind_of_stray(relative)] += 1
        else:
            chosen[relative] = remote(path, info)
    return chosen

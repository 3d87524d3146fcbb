"""Summarizes what each split of an audit holds."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

from tlflax.data.audit.checks import class_counts, imbalance
from tlflax.data.audit.duplicates import Images
from tlflax.data.audit.shortcuts import Figures, Told
from tlflax.data.inputs.listing import Scan


class SplitSummary(TypedDict, total=False):
    """What a split holds: see `docs/data.md`. A split that was not read has the first four."""

    images: int
    classes: dict[str, int]
    imbalance: float
    root: str
    files: int
    bytes: int
    bad_images: int
    formats: dict[str, int]
    modes: dict[str, int]
    turned_by_exif: int
    width: list[float]
    height: list[float]
    aspect_ratio: list[float]
    ignored: dict[str, int]
    shortcuts: dict[str, Figures]


def summarize(
    scans: Mapping[str, Scan], images: Images, told: Sequence[Told]
) -> dict[str, SplitSummary]:
    """Returns what each split holds, and what the files of the first tell, for JSON."""
    counts = class_counts(images)
    parts: dict[str, SplitSummary] = {}
    for split, root, row in zip(images.names, images.roots, counts, strict=True):
        present = {name: int(n) for name, n in zip(images.class_names, row, strict=True) if n}
        parts[split] = {'images': int(row.sum()), 'classes': present, 'imbalance': imbalance(row)}
        parts[split]['root'] = root
    for split, scan in scans.items():
        parts.setdefault(split, {}).update(_measures(scan))
    first = parts[next(iter(scans))]
    first['shortcuts'] = {one.key: one.figures(classes=False) for one in told}
    return parts


def _measures(scan: Scan) -> SplitSummary:
    """Returns formats, modes and sizes of a split's good images."""
    good = [file for file in scan.files if file.is_good]
    sizes = np.array([(file.width, file.height) for file in good], np.int64).reshape(-1, 2)
    aspects = sizes[:, 0] / np.maximum(sizes[:, 1], 1)

    def spread(values: np.ndarray) -> list[float]:
        return [round(float(v), 3) for v in np.percentile(values, [0, 50, 100])] if good else []

    return {
        'root': scan.listing.root,
        'files': len(scan.files),
        'bytes': sum(max(entry.size, 0) for entry in scan.listing.entries),
        'bad_images': sum(bool(file.fault) for file in scan.files),
        'formats': dict(Counter(file.format for file in good).most_common()),
        'modes': dict(Counter(file.mode for file in good).most_common()),
        'turned_by_exif': sum(file.orientation != 1 for file in good),
        'width': spread(sizes[:, 0]),
        'height': spread(sizes[:, 1]),
        'aspect_ratio': spread(aspects),
        'ignored': dict(scan.ignored.most_common()),
    }

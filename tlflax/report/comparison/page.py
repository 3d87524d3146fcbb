"""What the page of several runs shows."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from tlflax.report.comparison.shared import Shared
from tlflax.report.page.contents import ComparisonPage, Differing
from tlflax.report.page.pictures import Thumbnails
from tlflax.utils.errors import printable
from tlflax.utils.files import JsonObject
from tlflax.workdir.files import read_records, read_result

_SHOWN = 100  # images on which runs differ


def gather(
    names: Sequence[str],
    folders: Sequence[Path],
    comparison: JsonObject,
    shared: Shared,
    rows: Int[np.ndarray, ' m'],
) -> ComparisonPage:
    """Gathers the page of runs that were compared.

    Args:
        names: The workdirs.
        folders: Where they are on this machine.
        comparison: What `tlflax.report.comparison.compare.compare` returns.
        shared: The predictions.
        rows: What `tlflax.report.comparison.compare.differing` returns.
    """
    shown = rows[:_SHOWN].tolist()
    thumbnails = Thumbnails()
    thumbnails.prepare(shared.paths[shown].tolist())
    root = os.path.commonpath(shared.paths.tolist()) if len(shared.paths) > 1 else ''
    return ComparisonPage(
        names=[printable(name) for name in names],
        comparison=comparison,
        records=[read_records(folder) for folder in folders],
        best_epochs=[(read_result(folder) or {}).get('best_epoch') for folder in folders],
        differing=[_differing(shared, row, root, thumbnails) for row in shown],
        num_differing=len(rows),
    )


def _differing(shared: Shared, row: int, root: str, thumbnails: Thumbnails) -> Differing:
    label, path = int(shared.labels[row]), str(shared.paths[row])
    return Differing(
        path=printable(os.path.relpath(path, root) if root else path),
        true=printable(shared.class_names[label]),
        picture=thumbnails.of(path),
        predicted=[
            printable(shared.class_names[int(p[row].argmax())]) for p in shared.probabilities
        ],
        true_probabilities=[float(p[row, label]) for p in shared.probabilities],
    )

"""Compares runs: reads their predictions, prints what they come to, and writes the page."""

import dataclasses
from collections.abc import Sequence

from tlflax.data.inputs.listing import Announced
from tlflax.report.comparison import compare, page, text
from tlflax.report.comparison.shared import share
from tlflax.report.gather.predictions import read
from tlflax.report.page.render import render_comparison
from tlflax.report.page.write import write
from tlflax.utils.files import dump_json
from tlflax.workdir.mirror.read import fetched


def run(names: Sequence[str], output: str, differences: str | None = None) -> None:
    """Prints the comparison of runs and writes its page.

    Args:
        names: The workdirs, two or more; folders or URLs.
        output: The page to write.
        differences: A CSV file to write, with the images on which the runs differ; None: none.

    Raises:
        UserError: A run cannot be read, the runs have nothing in common, or a file cannot be
            written.
    """
    announced = Announced()
    folders = [fetched(name) for name in names]
    runs = [
        dataclasses.replace(read(str(folder), announced), name=name)
        for name, folder in zip(names, folders, strict=True)
    ]
    shared = share(runs)
    comparison = compare.compare(runs, shared)
    rows = compare.differing(shared)
    print(text.format_comparison(comparison))
    print(text.format_differences(shared, rows, names))
    if differences is not None:
        text.write_differences(differences, shared, rows, names)
    print(write(output, render_comparison(page.gather(names, folders, comparison, shared, rows))))
    print(dump_json({**comparison, 'num_differences': len(rows)}))

"""The audit of images as a page that shows them."""

import os
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from tlflax.config.schema import DataConfig
from tlflax.data.audit import report
from tlflax.data.audit.problems import Item, Problem, describe
from tlflax.data.audit.run import Audit as Found
from tlflax.report.page.contents import Audit, Finding, ShownItem
from tlflax.report.page.pictures import Picture, Thumbnails
from tlflax.report.page.render import render_audit
from tlflax.utils.errors import as_user_error
from tlflax.utils.files import atomic_write

_ITEMS = 200  # of each problem
_PICTURES = 8  # of each item


def gather(problems: Sequence[Problem], summary: report.Summary, thumbnails: Thumbnails) -> Audit:
    """Returns what a page shows of an audit.

    Args:
        problems: The worst first. Only the first items of each are looked at.
        summary: What each split holds.
        thumbnails: Makes the pictures, until its budget is spent; the worst problems come first.
    """
    roots = {name: part.get('root', '') for name, part in summary.items()}
    return Audit(
        splits=list(report.split_lines(summary)),
        counts={name: part['classes'] for name, part in summary.items() if 'classes' in part},
        findings=[
            Finding(
                level=problem.level,
                what=problem.what,
                fix=problem.fix,
                count=len(problem.items),
                items=[
                    ShownItem(text=describe(item), pictures=_pictures(item, roots, thumbnails))
                    for item in problem.items[:_ITEMS]
                ],
            )
            for problem in problems
        ],
    )


def _pictures(item: Item, roots: dict[str, str], thumbnails: Thumbnails) -> list[Picture]:
    """Returns pictures of the files of an item that can be read."""
    if 'files' in item:
        files = [(file['split'], file['path']) for file in item['files'][:_PICTURES]]
    else:
        files = [(item.get('split', ''), item.get('path', ''))]
    paths = [os.path.join(roots.get(split, ''), path) for split, path in files]
    return [picture for path in paths if (picture := thumbnails.of(path)) is not None]


def write(path: str, found: Found, data: DataConfig) -> None:
    """Writes an audit: all of it as JSON, or as a page that shows the images.

    Args:
        path: Ends with .json or .html.
        found: The audit.
        data: What was audited.

    Raises:
        UserError: The file cannot be written.
    """
    if path.endswith('.json'):
        report.write(path, found.problems, found.summary, found.shortcuts)
    else:
        _write_page(path, found, data)
    logging.info('the report is in %s', path)


def _write_page(path: str, found: Found, data: DataConfig) -> None:
    thumbnails = Thumbnails.as_read(data)
    roots = [part['root'] for part in found.summary.values() if part.get('root')]
    title = ' · '.join(dict.fromkeys(roots)) or 'Audit'
    page = render_audit(gather(found.problems, found.summary, thumbnails), title)
    what, where = 'the report cannot be written: {reason}', f'--report={path}'
    with as_user_error(what, where=where, fix='name another file', of=(OSError,)):
        atomic_write(Path(path), page)

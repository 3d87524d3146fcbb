"""README and docs as tests read them: pages, headings, links, code blocks and inline code."""

import functools
import itertools
import json
import re
import shlex
from typing import NamedTuple

from helpers import ROOT

PAGES = ('README.md', *sorted(f'docs/{path.name}' for path in (ROOT / 'docs').glob('*.md')))
NOTEBOOK = 'docs/quickstart.ipynb'
_FENCE = re.compile(r'^```(\w*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r'(?<!`)`([^`]+)`(?!`)')


class Block(NamedTuple):
    """A fenced block of code: its page, the line of its fence, its language and its code."""

    page: str
    line: int
    language: str
    code: str


@functools.cache
def text(page: str) -> str:
    """Returns the text of a page; of a notebook, without its code."""
    found = (ROOT / page).read_text()
    if page.endswith('.ipynb'):
        cells = [cell for cell in json.loads(found)['cells'] if cell['cell_type'] == 'markdown']
        return '\n\n'.join(''.join(cell['source']) for cell in cells)
    return found


def prose(page: str) -> str:
    """Returns a page without its fenced blocks, on the same lines."""
    return _FENCE.sub(lambda found: '\n' * found[0].count('\n'), text(page))


def blocks(page: str, heading: str = '') -> list[Block]:
    """Returns the fenced blocks of a page from a heading on."""
    whole = text(page)
    found = _FENCE.finditer(whole, whole.index(heading))
    return [Block(page, whole.count('\n', 0, f.start()) + 1, f[1], f[2]) for f in found]


def spans(page: str) -> list[str]:
    """Returns the inline code of a page, each on one line."""
    return [' '.join(span.split()) for span in _SPAN.findall(prose(page))]


def table(page: str, heading: str) -> list[list[str]]:
    """Returns the cells of the first table after a heading, the header and the rule included."""
    lines = text(page)[text(page).index(heading) :].splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith('|'))
    rows = itertools.takewhile(lambda line: line.startswith('|'), lines[first:])
    return [[cell.strip() for cell in row.strip('|').split('|')] for row in rows]


def headings(page: str) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r'^#+ +(.*?)\s*$', prose(page), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', one.lower()).replace(' ', '-') for one in found}


def links(page: str) -> list[str]:
    """Returns the targets of a page's links and pictures."""
    return re.findall(r'\]\(([^)\s]+)\)', _SPAN.sub('', prose(page)))


def commands() -> dict[str, str]:
    """Returns every command line of the pages, without comments, and the first page it is on.

    These are the commands of bash blocks, one by one where `&&` joins them, and inline code that
    begins with `python` or `pip` and has arguments.
    """
    found: dict[str, str] = {}
    for page in PAGES:
        lines = [
            line
            for block in blocks(page)
            if block.language == 'bash'
            for line in block.code.replace('\\\n', ' ').splitlines()
        ]
        lines += [span for span in spans(page) if re.match(r'(python|pip) .', span)]
        for line in lines:
            words = shlex.join(shlex.split(line, comments=True)).split(" '&&' ")
            for one in words:
                plain = one.replace('.venv/bin/', '').replace('python3 ', 'python ')
                if plain and not re.fullmatch(r'python -m tlflax[\w.]*', plain):
                    found.setdefault(plain, page)
    return found

"""What MkDocs cannot do by itself: pages that are made from other files, and links between them.

README is the front page, the notebook is a page, and the reference is made from the code.
"""

import dataclasses
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from tlflax.config import flags
from tlflax.config.schema import Config

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / 'docs' / 'quickstart.ipynb'
PACKAGE = ROOT / 'tlflax'

PYTHON = {
    'Train': ['tlflax.train.train_and_evaluate', 'tlflax.train.loop.Interrupted'],
    'Use a classifier': [
        'tlflax.load',
        'tlflax.inference.trained.Trained',
        'tlflax.inference.prediction.Prediction',
        'tlflax.models.classifier_module.ClassifierModule',
    ],
    'Configure': [
        'tlflax.config.default_config',
        'tlflax.config.resolve',
        'tlflax.utils.errors.UserError',
    ],
    'Choose a head and cross-validate': [
        'tlflax.sweep.auto.choose_and_evaluate',
        'tlflax.sweep.folds.cross_validate',
        'tlflax.sweep.grid',
    ],
    'Extend': ['tlflax.models.backbones.from_layers', 'tlflax.models.base.backbone.Backbone'],
    'Metrics': [
        'tlflax.train.metrics.summary',
        'tlflax.train.metrics.scores',
        'tlflax.train.metrics.intervals',
        'tlflax.train.metrics.proportions',
        'tlflax.train.metrics.bootstrap',
    ],
    'Pictures': ['tlflax.data.pipeline.preview.draw_grid'],
}
"""What the page of the Python reference documents, by heading."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made from other files."""
    made = {
        'index.md': (ROOT / 'README.md').read_text(),
        'quickstart.md': notebook_page(json.loads(NOTEBOOK.read_text())),
        'reference/config.md': '\n'.join(config_page()),
        'reference/commands.md': '\n'.join(commands_page()),
        'reference/python.md': '\n'.join(python_page()),
    }
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points links at pages of the site; a link to a file of the code becomes its name."""
    here = page.file.src_uri
    place = ROOT if here == 'index.md' else (ROOT / 'docs' / here).parent

    def moved(link: re.Match[str]) -> str:
        text, target = link.groups()
        path, hash_, anchor = target.partition('#')
        file = (place / path).resolve() if path and ':' not in path else None
        if file is None or not file.exists():  # of the page itself, or of a page that is made
            return link[0]
        if file == ROOT / 'README.md':
            return f'[{text}](index.md{hash_}{anchor})'
        if file == NOTEBOOK and here != 'quickstart.md':
            return f'[{"Quick start" if text == path else text}](quickstart.md)'
        if file.is_relative_to(ROOT / 'docs'):
            if text == path and file.suffix == '.md':  # the page's title says more than its name
                text = file.read_text().partition('\n')[0].removeprefix('# ')
            return f'[{text}]({file.relative_to(ROOT / "docs").as_posix()}{hash_}{anchor})'
        return f'`{file.relative_to(ROOT).as_posix()}`'

    return re.sub(r'\[([^\]]+)\]\(([^)\s]+)\)', moved, markdown)


def notebook_page(notebook: dict) -> str:
    """Returns the cells of a notebook as Markdown."""
    parts = []
    for cell in notebook['cells']:
        text = ''.join(cell['source'])
        parts.append(f'```python\n{text}\n```' if cell['cell_type'] == 'code' else text)
    title, *rest = parts
    return '\n\n'.join(
        [title, f'This page is the notebook [{NOTEBOOK.name}]({NOTEBOOK.name}).', *rest]
    )


def config_page() -> Iterator[str]:
    """Yields the lines of the page of all keys."""
    yield '# Keys of the configuration\n'
    yield 'On the command line `--config.KEY=VALUE`, in a config file `config.KEY = VALUE`.\n'
    for section in dataclasses.fields(Config):
        kind: Any = section.default_factory
        yield f'## {section.name}\n\n{inspect.getdoc(kind)}\n'
        yield '| key | default | meaning |\n| --- | --- | --- |'
        for field in dataclasses.fields(kind):
            key = field.metadata['key']
            limits = [('at least', key.at_least), ('at most', key.at_most)]
            values = [f'{word} {n:g}' for word, n in limits if n is not None]
            values += [f'one of {", ".join(f"`{c!r}`" for c in key.choices)}'] * bool(key.choices)
            meaning = escaped(key.doc) + (f'<br>{", ".join(values)}' if values else '')
            yield f'| `{section.name}.{field.name}` | `{field.default!r}` | {meaning} |'
        yield ''


def escaped(text: str) -> str:
    """Returns text with inline code as Markdown for a cell of a table."""
    return re.sub(r'(`[^`]*`)|([\\*_{}<>|\[\]])', lambda found: found[1] or f'\\{found[2]}', text)


def commands_page() -> Iterator[str]:
    """Yields the lines of the page of all commands: what `--help` says."""
    yield '# Commands\n'
    files = sorted([*PACKAGE.glob('*.py'), *PACKAGE.glob('*/__main__.py')])
    for file in (file for file in files if 'COMMAND = ' in file.read_text()):
        module = '.'.join(file.relative_to(ROOT).with_suffix('').parts)
        command = importlib.import_module(module).COMMAND
        described = flags.described(command.arguments)
        shown = flags.help_text(command.name, command.purpose, described, command.example)
        shown = shown.replace(f'{ROOT}/', '')
        yield f'## python -m {command.name}\n\n```text\n{shown}\n```\n'


def python_page() -> Iterator[str]:
    """Yields the lines of the page of the Python reference, which mkdocstrings fills."""
    yield '# Python\n'
    for heading, names in PYTHON.items():
        yield f'## {heading}\n'
        for name in names:
            yield f'::: {name}\n    options:\n      heading_level: 3\n'

"""The documentation as a site: it builds without a warning, and needs nothing from elsewhere."""

import html.parser
import re
import subprocess
import sys
from urllib.parse import unquote, urlsplit

import pytest
from documents import PAGES
from helpers import ROOT

pytest.importorskip('mkdocs')
pytest.importorskip('material')
pytest.importorskip('mkdocstrings_handlers.python')


class Page(html.parser.HTMLParser):
    """What a page links to, loads and names."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loaded, self.ids = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids.add(given.get('id'))
        if tag == 'a' and given.get('href'):
            self.links.append(given['href'])
        elif tag in ('link', 'script', 'img', 'iframe'):
            self.loaded += [given[name] for name in ('href', 'src') if name in given]


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """The folder of the site."""
    folder = tmp_path_factory.mktemp('site')
    command = ['-m', 'mkdocs', 'build', '--strict', '--config-file=.mkdocs.yml']
    done = subprocess.run(
        [sys.executable, *command, f'--site-dir={folder}'],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'WARNING -' not in done.stderr
    return folder


@pytest.fixture(scope='module')
def pages(site):
    """Every page by its path."""
    return {path: Page(path.read_text()) for path in site.rglob('*.html') if path.stem != '404'}


def test_every_document_is_a_page(site, pages):
    names = [page.removeprefix('docs/').replace('.md', '.html') for page in PAGES[1:]]
    made = [
        'quickstart.html',
        *(f'reference/{name}.html' for name in ('config', 'commands', 'python')),
    ]
    for name in ['index.html', *names, *made]:
        assert site / name in pages
    assert not list(site.rglob('*.py'))


def test_links_lead_somewhere(site, pages):
    for path, page in pages.items():
        for target in page.links:
            address = urlsplit(target)
            assert address.scheme in ('', 'https'), target
            if not address.scheme:
                there = (path.parent / unquote(address.path)).resolve() if address.path else path
                there = there / 'index.html' if there.is_dir() else there
                assert there.exists(), (path.name, target)
                if address.fragment and there in pages:
                    assert unquote(address.fragment) in pages[there].ids, (path.name, target)


def test_nothing_is_loaded_from_elsewhere(site, pages):
    for page in pages.values():
        assert page.loaded
        assert not [one for one in page.loaded if urlsplit(one).netloc]
    for sheet in site.rglob('*.css'):
        outside = r'@import|url\((?!["\']?data:)[^)]*//'
        assert not re.search(outside, sheet.read_text()), sheet.name


def test_front_page_is_the_readme(site):
    text = (site / 'index.html').read_text()
    assert '<a href="performance.html">Performance</a>' in text
    assert '<code>tlflax/config/schema.py</code>' in text
    for heading in re.findall(r'^## (.*)$', (ROOT / 'README.md').read_text(), re.MULTILINE):
        assert f'>{heading}<' in text


def test_reference_is_filled(site):
    from tlflax.config.schema import OptimConfig
    from tlflax.train.__main__ import Arguments

    python = (site / 'reference' / 'python.html').read_text()
    for name in ('tlflax.load', 'tlflax.train.train_and_evaluate', 'tlflax.sweep.grid'):
        assert f'id="{name}"' in python
    assert 'Restores a trained classifier' in python
    keys = (site / 'reference' / 'config.html').read_text()
    assert all(f'<code>optim.{name}</code>' in keys for name in OptimConfig.__dataclass_fields__)
    commands = (site / 'reference' / 'commands.html').read_text()
    assert all(f'--{name}' in commands for name in Arguments.__dataclass_fields__)
    assert str(ROOT) not in python + keys + commands


def test_docstrings_can_be_parsed(caplog):
    import griffe

    package = griffe.load('tlflax', search_paths=[ROOT], docstring_parser='google')
    parsed, left = 0, [package]
    while left:
        for member in left.pop().members.values():
            if not member.is_alias:
                if member.docstring:
                    parsed += len(member.docstring.parsed)
                left += [member] if member.is_module or member.is_class else []
    assert parsed > 1000
    assert caplog.messages == []

"""Text from outside in model cards: it is shown as it is, and breaks neither YAML nor tables."""

import itertools

import hypothesis
import hypothesis.strategies as st
import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from tlflax.export.card.markdown import escaped, front_matter
from tlflax.utils.errors import printable

NASTY = (
    'stop: sign', '- no', '"quoted" \'name\'', 'a | b', 'a \\| b', '`code`', '<script>alert(1)',
    '---', '\n---\n', 'a\n---\nb', '# head', '[x](y)', '![x](y)', '*a* _b_ **c**', '~~d~~', '&amp;',
    'null', 'yes', '1e3', '12:30:45', '{a: b}', 'été', '\u05d0\u05d1', '\u2028', '\x85', '\t',
    '\x00', '\udcff', '%TAG', '!!int 1', '&x *x', 'x' * 300, ' spaces ', '$a$', '\\', '\\\\|',
    '@me', '\ufeff',
)  # fmt: skip
ANY = st.text() | st.text(alphabet='|\\`*_-<>[]()!&#~:\'"{}\n\t a', max_size=12)


def cells(text):
    """Returns the text of the cells of a body of a table."""
    tokens = MarkdownIt('commonmark').enable(['table', 'strikethrough']).parse(text)
    found = []
    for before, token in itertools.pairwise(tokens):
        if before.type == 'td_open':
            assert {child.type for child in token.children or []} <= {'text', 'text_special'}
            found.append(''.join(child.content for child in token.children or []))
    return found


def check_cell(name):
    found = cells(f'| a | b |\n| --- | --- |\n| {escaped(name)} | next |\n')
    seen = ''.join(' ' if char.isspace() else char for char in printable(name)).strip()
    assert found == [seen, 'next']


@pytest.mark.parametrize('name', NASTY)
def test_nasty_names_in_a_table(name):
    check_cell(name)


@hypothesis.given(ANY)
def test_any_name_in_a_table(name):
    check_cell(name)


def check_yaml(values):
    text = front_matter(values)
    block = text.removeprefix('---\n').removesuffix('---\n')
    assert yaml.safe_load(block) == values
    card = ModelCard(f'{text}\n# A card\n\n---\n', ignore_metadata_errors=True)
    assert card.text == '\n# A card\n\n---\n'
    assert card.data.to_dict().get('classes') == values['classes']


@pytest.mark.parametrize('name', [name for name in NASTY if '\udcff' not in name])
def test_nasty_values_in_front_matter(name):
    check_yaml({'classes': [name, {'name': name}], 'model_name': name})


@hypothesis.given(st.lists(st.text(alphabet=st.characters(exclude_categories=['Cs'])), min_size=1))
def test_any_value_in_front_matter(names):
    check_yaml({'classes': names})


def test_bytes_that_are_no_text_are_replaced():
    assert yaml.safe_load(front_matter({'a': ['x\udcffy']})[4:-4]) == {'a': ['x�y']}

"""What the pages say, read back from their HTML; the browser is in test_browser.py."""

import base64
import dataclasses
import hashlib
import html.parser
import math
import re

import numpy as np
import pytest
from report_pages import HOSTILE, audit, bare, comparison, hostile, image, run_page, small

from tlflax.config import default_config
from tlflax.report.page import numbers, tables
from tlflax.report.page.contents import Finding, ShownItem
from tlflax.report.page.render import render_audit, render_comparison, render_run

VOID = {'meta', 'img', 'input', 'br', 'link'}


class Reader(html.parser.HTMLParser):
    """Collects elements with their attributes and texts, and checks that tags are balanced."""

    def __init__(self, text):
        super().__init__()
        self.elements, self._open, self.text = [], [], ''
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        element = {'tag': tag, 'text': '', **dict(attributes)}
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.elements.append({'tag': tag, 'text': '', **dict(attributes)})

    def handle_endtag(self, tag):
        assert self._open.pop()['tag'] == tag
        if tag in ('td', 'th', 'dt', 'dd'):
            self.handle_data(' ')

    def handle_data(self, data):
        for element in self._open:
            element['text'] += data
        if not any(element['tag'] in ('style', 'script') for element in self._open):
            self.text += data

    def all(self, tag, **attributes):
        wanted = {key.rstrip('_').replace('_', '-'): value for key, value in attributes.items()}
        return [
            element
            for element in self.elements
            if element['tag'] == tag and all(element.get(k) == v for k, v in wanted.items())
        ]


def clean(text):
    return ' '.join(text.split())


@pytest.fixture(scope='module')
def page():
    return small()


@pytest.fixture(scope='module')
def read(page):
    return Reader(render_run(page))


SECTIONS = (
    'metrics curves confusion classes calibration mistakes uncertain map augmentation tried '
    'exports audit config cost notes'
).split()


def test_sections_are_in_order_and_in_the_contents(read):
    found = [e['id'] for e in read.all('section') if e['id'] != 'cell']
    assert found == SECTIONS
    links = [e['href'].removeprefix('#') for e in read.all('a')]
    assert links == ['content', *SECTIONS]
    ids = [e['id'] for e in read.elements if 'id' in e]
    assert len(ids) == len(set(ids))


def test_what_is_empty_is_left_out():
    read = Reader(render_run(bare()))
    assert [e['id'] for e in read.all('section')] == ['metrics', 'cost']
    (facts,) = read.all('dl', id='result')
    shown = 'Validation accuracy 50.0 % 95 % interval not known Loss – Images 2'
    assert clean(facts['text']) == shown


def test_every_optional_value_alone_can_be_missing(page):
    for name in ('calibration', 'test', 'peak_memory_bytes', 'wall_seconds'):
        for result in (
            {**page.result, name: None},
            {k: page.result[k] for k in page.result if k != name},
        ):
            render_run(dataclasses.replace(page, result=result))
    parts = 'points tried exports augmented notes reliability records mistakes'
    for name in parts.split():
        Reader(render_run(dataclasses.replace(page, **{name: ()})))
    rest = {
        k: v for k, v in page.result['val'].items() if k in ('accuracy', 'loss', 'num_examples')
    }
    Reader(render_run(dataclasses.replace(page, result={**page.result, 'val': rest})))


def test_the_page_of_a_cross_validation(page):
    folds = [{'fold': k, 'accuracy': 0.8 + 0.05 * k, 'workdir': f'fold{k}'} for k in range(3)]
    result = {key: page.result[key] for key in ('val', 'calibration', 'wall_seconds')}
    read = Reader(
        render_run(dataclasses.replace(page, result=result, records=(), folds=folds, points=()))
    )
    (section,) = read.all('section', id='folds')
    assert '1 0.85 fold1 ' in clean(section['text'])
    assert 'A cross-validation by tlflax' in read.text
    assert 'Chosen epoch' not in read.text


def test_every_key_of_a_configuration_is_shown(page):
    config = default_config().to_dict()
    read = Reader(render_run(dataclasses.replace(page, config=config)))
    (section,) = read.all('section', id='config')
    heads = {e['text'].strip() for e in read.all('th') if e['text'].strip() in section['text']}
    missing = [
        key
        for part in config.values()
        if isinstance(part, dict)
        for key in part
        if key not in heads
    ]
    assert missing == []
    assert len(heads) > 100


def test_metrics_and_result(page, read):
    val = page.result['val']
    (facts,) = read.all('dl', id='result')
    low, high = val['intervals']['accuracy']
    assert f'{100 * val["accuracy"]:.1f} %' in facts['text']
    assert f'95 % interval {100 * low:.1f} to {100 * high:.1f} %' in facts['text']
    assert clean(facts['text']).count('23 of 26') == 1
    (section,) = read.all('section', id='metrics')
    assert f'Macro F1 {100 * val["macro_f1"]:.1f} %' in clean(section['text'])
    assert f'Loss {val["loss"]:.4f}' in clean(section['text'])


def test_the_confusion_matrix(page, read):
    counts = np.array(page.confusion)
    buttons = [e for e in read.all('button') if 'data-examples' in e]
    assert len(buttons) == np.count_nonzero(counts)
    assert sum(int(e['data-count']) for e in buttons) == counts.sum()
    for (true, predicted), examples in page.cells.items():
        names = page.class_names[true], page.class_names[predicted]
        ending = f' of {names[0]} predicted as {names[1]}'
        (button,) = (e for e in buttons if e['aria-label'].endswith(ending))
        assert button['text'] == str(counts[true, predicted])
        assert [int(k) for k in button['data-examples'].split()] == list(examples)
    cards = {e['id'] for e in read.all('li') if 'id' in e}
    assert cards == {f'image-{number}' for number in page.examples}
    assert [e['tabindex'] for e in buttons].count('0') == 1


def test_the_shades_of_the_matrix(page):
    matrix, counts = tables.confusion(page), np.array(page.confusion)
    for true, row in enumerate(matrix.rows):
        for predicted, cell in enumerate(row):
            share = counts[true, predicted] / counts[true].sum()
            assert cell.level == math.ceil(9 * share)
            assert cell.right == (true == predicted)


def test_of_many_classes_those_with_the_most_errors_are_shown():
    size = 1000
    counts = np.full((size, size), 0) + np.diag(np.full(size, 7))
    chosen = list(range(5, 905, 30))
    assert len(chosen) == 30
    for place, k in enumerate(chosen):
        counts[k, chosen[(place + 1) % 30]] = 2
    names = [f'n{k:04}' for k in range(size)]
    page = dataclasses.replace(small(), class_names=names, confusion=counts.tolist(), cells={})
    matrix = tables.confusion(page)
    assert list(matrix.names) == [names[k] for k in chosen]
    assert [[cell.count for cell in row] for row in matrix.rows] == counts[
        np.ix_(chosen, chosen)
    ].tolist()
    read = Reader(render_run(page))
    assert 'Only the 30 of 1,000 classes with the most errors are shown.' in clean(read.text)
    assert [e for e in read.all('button') if 'data-examples' in e] == []


def test_classes_and_cards(page, read):
    (body,) = read.all('tbody', id='per-class')
    row = page.result['val']['per_class']['oak']
    low, high = row['intervals']['recall']
    expected = f'{100 * row["recall"]:.1f}{100 * low:.1f} to {100 * high:.1f}'
    assert expected in body['text'].replace('\n', '')
    (cards,) = read.all('ul', id='mistake-cards')
    first = page.examples[page.mistakes[0]]
    assert clean(cards['text']).startswith(
        f'True class {first.true} → predicted {first.predicted} {100 * first.probability:.1f} %'
    )
    assert first.path in cards['text']
    assert first.neighbors[0].label in cards['text']


def test_configuration_and_cost(page, read):
    (section,) = read.all('section', id='config')
    text = clean(section['text'])
    assert 'image_size [128, 128]' in text
    assert 'labels [["backbone/.*", "frozen"]]' in text
    (section,) = read.all('section', id='cost')
    text = clean(section['text'])
    assert 'The whole run 4 min 15 s' in text
    assert 'Most memory 1.42 GB' in text
    assert 'An epoch (median) 0.6 s' in text
    assert 'versions.jax 0.10.2' in text


def test_heat_maps_are_explained_where_they_are(page):
    assert render_run(page).count(page.heat_note) == 1
    assert render_run(dataclasses.replace(page, mistakes=())).count(page.heat_note) == 1


def test_pictures_are_written_once(page):
    text = render_run(page)
    sources = re.findall(r'src="(data:[^"]*)"', text)
    assert len(sources) == len(set(sources)) == 24
    places = set(re.findall(r'<img id="(p\d+)"', text))
    slots = re.findall(r'data-same="(p\d+)"', text)
    assert len(slots) > 100
    assert set(slots) <= places


def hashes(text, kind):
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    rules = dict(rule.strip().split(' ', 1) for rule in policy.split(';'))
    assert rules['default-src'] == "'none'"
    assert rules['img-src'] == 'data:'
    return rules[f'{kind}-src']


@pytest.mark.parametrize('make', [small, hostile, bare], ids=['small', 'hostile', 'bare'])
def test_the_policy_allows_the_page_and_nothing_else(make):
    text = render_run(make())
    for kind in ('style', 'script'):
        (content,) = re.findall(rf'<{kind}>(.*?)</{kind}>', text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert hashes(text, kind) == f"'sha256-{digest}'"
    read = Reader(text)
    for element in read.elements:
        assert not any(key == 'style' or key.startswith('on') for key in element)
        for key in ('src', 'href'):
            assert element.get(key, '#').startswith(('#', 'data:image/'))
    assert not re.search(r'url\(|@import', text)


def test_hostile_names_are_text():
    text = render_run(hostile())
    text.encode()  # no surrogate is left
    assert '\x00' not in text
    read = Reader(text)
    for name in HOSTILE:
        shown = re.sub('[\x00\udcff\udcfe]', '�', name)
        assert any(e['text'] == shown for e in read.all('bdi'))
        assert any(e.get('data-words') == shown for e in read.all('tr'))
    assert len(read.all('script')) == 1
    assert '&lt;script&gt;alert(1)&lt;/script&gt;' in text


def test_the_page_of_several_runs():
    page = comparison()
    read = Reader(render_comparison(page))
    assert [e['id'] for e in read.all('section')] == [
        'pairs', 'metrics', 'curves', 'cost', 'differing',
    ]  # fmt: skip
    (section,) = read.all('section', id='pairs')
    verdict = page.comparison['pairs'][0]['verdict']
    assert verdict[0].upper() + verdict[1:] + '.' in section['text']
    assert 'Only runs/b is right on 8 images, only runs/a on 4.' in clean(section['text'])
    (section,) = read.all('section', id='cost')
    assert 'runs/b 4 min 30 s 5,130 26 200' in clean(section['text'])
    (section,) = read.all('section', id='curves')
    assert 'much longer' not in section['text']  # its epochs are not known
    assert '9 of 31 are shown' in read.text
    bare = Reader(render_comparison(comparison(HOSTILE, known=False)))
    assert [e['id'] for e in bare.all('section')] == ['pairs', 'metrics', 'cost', 'differing']


def test_the_page_of_an_audit():
    found = audit(('red', 'green'), [image(k) for k in range(12)])
    read = Reader(render_audit(found, 'photos/<Train>'))
    assert read.all('h1')[0]['text'] == 'photos/<Train>'
    assert '1 error, 1 warning, 1 note' in read.text
    articles = read.all('article')
    assert [e['class'] for e in articles] == ['finding error', 'finding warning', 'finding note']
    assert 'Show further 3' in articles[0]['text']
    assert '9 of 340 are on this page; a report named .json holds all.' in clean(
        articles[0]['text']
    )
    assert clean(articles[1]['text']).startswith('warning 3 images look alike train red/0.jpg')
    nothing = Reader(render_audit(dataclasses.replace(found, findings=()), 'x'))
    assert nothing.text.count('Nothing is wrong') == 2
    many = [
        Finding(level='note', what='n', fix='', count=1, items=[ShownItem(text='x', pictures=())])
    ] * 2
    assert '2 notes' in render_audit(dataclasses.replace(found, findings=many), 'x')


def test_numbers():
    assert [numbers.percent(v) for v in (0, 1, 0.99996, 0.0001, 0.5, None, math.nan)] == [
        '0.0 %', '100.0 %', '> 99.9 %', '< 0.1 %', '50.0 %', '–', '–',
    ]  # fmt: skip
    assert [numbers.number(v) for v in (12345, 0.25, 1e-9, math.inf, True, -0.0)] == [
        '12,345', '0.2500', '1.00e-09', '–', '–', '0',
    ]  # fmt: skip
    assert [numbers.duration(v) for v in (0.61, 59.4, 59.6, 252, 7500, None)] == [
        '0.61 s', '59.4 s', '1 min 0 s', '4 min 12 s', '2 h 5 min', '–',
    ]  # fmt: skip
    assert numbers.between([0.5, None]) == numbers.between(None) == ''
    assert numbers.between((0.25, 0.5), share=True) == '25.0 to 50.0 %'


def test_a_page_of_a_thousand_classes_is_small():
    names = tuple(f'class {k}' for k in range(1000))
    page = dataclasses.replace(run_page(names[:6]), class_names=names)
    row = page.result['val']['per_class']['class 0']
    val = {**page.result['val'], 'per_class': dict.fromkeys(names, row)}
    counts = np.diag(np.full(1000, 3)).tolist()
    text = render_run(
        dataclasses.replace(page, result={**page.result, 'val': val}, confusion=counts)
    )
    assert len(text) < 4_000_000

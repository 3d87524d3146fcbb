"""How predictions are printed: the classes that are shown, what is unsure, progress."""

import csv
import json

import numpy as np
import pytest

from tlflax.inference import prediction
from tlflax.inference.prediction import Prediction, Style
from tlflax.utils import progress
from tlflax.utils.errors import UserError

NAMES = ('green', 'red', 'yellow', 'off')


def predictions():
    rows = [[0.1, 0.7, 0.2, 0.0], [0.25, 0.25, 0.25, 0.25], [0.05, 0.0, 0.05, 0.9]]
    paths = ['red/a.jpg', 'b.jpg', 'off/c, d.jpg']
    return [
        Prediction.of(path, np.array(row), NAMES) for path, row in zip(paths, rows, strict=True)
    ]


def printed(capsys, *style):
    show = prediction.printer(Style(*style), NAMES)
    for one in predictions():
        show(one)
    return capsys.readouterr().out.splitlines()


def test_top_is_in_the_order_of_probability_and_then_of_the_classes():
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = rng.integers(0, 5, 7) / 10  # many are equal
        one = Prediction.of('', values, [f'class{n}' for n in range(7)])
        order = np.argsort(-values, kind='stable')
        for k in (1, 3, 7, 100):
            assert one.top(k) == [(f'class{n}', values[n]) for n in order[:k]]
        assert one.top(1) == [(one.label, one.probability)]


def test_text(capsys):
    assert printed(capsys, 'text')[:2] == ['red/a.jpg  red  0.7000', 'b.jpg  green  0.2500']
    assert printed(capsys, 'text', 2)[0] == 'red/a.jpg  red  0.7000  yellow  0.2000'
    assert printed(capsys, 'text', None, 0.7) == [
        'red/a.jpg  red  0.7000',
        'b.jpg  unsure  0.2500',
        'off/c, d.jpg  off  0.9000',
    ]
    lines = printed(capsys, 'text', 2, 0.71)
    assert lines[0] == 'red/a.jpg  unsure  red  0.7000  yellow  0.2000'
    assert lines[2] == 'off/c, d.jpg  off  0.9000  green  0.0500'


def test_csv(capsys):
    fixed = ['path', 'class', 'probability', 'true_class']
    rows = list(csv.reader(printed(capsys, 'csv')))
    assert rows[0] == [*fixed, *NAMES]
    assert rows[3] == ['off/c, d.jpg', 'off', '0.9', 'off', '0.05', '0.0', '0.05', '0.9']
    rows = list(csv.reader(printed(capsys, 'csv', 2, 0.3)))
    assert rows[0] == [*fixed, 'unsure', 'class2', 'probability2']
    assert rows[1] == ['red/a.jpg', 'red', '0.7', 'red', 'false', 'yellow', '0.2']
    assert rows[2][4] == 'true'
    rows = list(csv.reader(printed(capsys, 'csv', 9)))
    assert len({len(row) for row in rows}) == 1
    assert rows[0][-1] == 'probability4'


def test_json(capsys):
    plain, _, _ = map(json.loads, printed(capsys, 'json'))
    fixed = {'path': 'red/a.jpg', 'class': 'red', 'probability': 0.7, 'true_class': 'red'}
    assert plain == {
        **fixed,
        'probabilities': {'green': 0.1, 'red': 0.7, 'yellow': 0.2, 'off': 0.0},
    }
    best, unsure, _ = map(json.loads, printed(capsys, 'json', 2, 0.5))
    top = [{'class': 'red', 'probability': 0.7}, {'class': 'yellow', 'probability': 0.2}]
    assert best == {**fixed, 'unsure': False, 'top': top}
    assert (unsure['unsure'], unsure['class']) == (True, 'green')


@pytest.mark.parametrize(
    ('top_k', 'threshold', 'words'),
    [
        ('0', None, "--top_k: '0' is not a whole number from 1; give 3, for example"),
        ('-1', None, "--top_k: '-1' is not"),
        ('2.5', None, "--top_k: '2.5' is not"),
        ('', None, "--top_k: '' is not"),
        ('٣', None, '--top_k: '),
        (None, '90%', "--threshold: '90%' is not a number from 0 to 1; give 0.9, for example"),
        (None, '90', "--threshold: '90' is not"),
        (None, '-0.1', "--threshold: '-0.1' is not"),
        (None, 'nan', "--threshold: 'nan' is not"),
        (None, '', "--threshold: '' is not"),
    ],
)
def test_what_cannot_be_asked_for_is_one_sentence(top_k, threshold, words):
    with pytest.raises(UserError) as raised:
        Style.parse('text', top_k, threshold)
    assert str(raised.value).startswith(words)


def test_a_style_is_parsed():
    assert Style.parse('csv', '3', '0.5') == Style('csv', 3, 0.5)
    assert Style.parse('text', None, '1') == Style('text', None, 1.0)


@pytest.mark.parametrize('total', [3, None])
def test_progress_counts_good_and_bad_and_knows_the_time_left(total, capsys, caplog, monkeypatch):
    monkeypatch.setattr(progress, '_PLAIN_SECONDS', 0.0)
    caplog.set_level('INFO')
    results = [1, UserError('is bad', where='x.jpg'), 3]
    with pytest.raises(UserError, match=r'1 of 3 files could not be classified'):
        prediction.print_each(results, print, 'classified', total)
    assert capsys.readouterr().out.splitlines() == ['1', '3']
    lines = [record.message for record in caplog.records]
    assert 'error: x.jpg: is bad' in lines
    counted = [line for line in lines if line.startswith('classified: ')]
    of, left = ('/3', ' s left') if total else ('', '/s')
    assert [line.split()[1] for line in counted][:2] == [f'1{of}', f'2{of}']
    assert all(line.endswith(left) for line in counted)

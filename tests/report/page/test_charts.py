"""Charts against the numbers they show: positions are read back by the numbers on their axes."""

import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from report_pages import small

from tlflax.report.page.axes import Axes, ends, ticks
from tlflax.report.page.charts import Line, interval_bar, interval_chart, line_chart, reliability
from tlflax.report.page.contents import Bin, Point
from tlflax.report.page.scatter import SHAPES, feature_map


def by_class(root, name):
    return [node for node in root.iter() if name in node.get('class', '').split()]


def scale(root, kind):
    """Fits the line from positions to values of an axis, by the texts of its ticks."""
    across = kind == 'tick-x'
    nodes = by_class(root, kind)
    values = [float(node.text.removesuffix(' %').replace(',', '')) for node in nodes]
    percent = any(node.text.endswith('%') for node in nodes)
    offset = 0 if across else 4  # the baseline of a text lies below its middle
    places = [float(node.get('x' if across else 'y')) - offset for node in nodes]
    slope, start = np.polyfit(places, np.array(values) / (100 if percent else 1), 1)
    return lambda place: slope * np.asarray(place, float) + start


def points_of(node):
    return np.array([[float(v) for v in pair.split(',')] for pair in node.get('points').split()])


def chart(values, x=None, **more):
    x = list(range(1, len(values) + 1)) if x is None else x
    line = Line(name='Loss', style='c0', x=x, y=values, chosen=more.pop('chosen', None))
    return ET.fromstring(line_chart([line], title='t', axes=('Epoch', ''), **more))


def test_lines_stand_where_their_values_are():
    values = [2.31, 1.7, 0.9, 0.55, 0.51, 0.48, 0.2]
    root = chart(values)
    (line,) = by_class(root, 'line')
    found = points_of(line)
    np.testing.assert_allclose(scale(root, 'tick-x')(found[:, 0]), np.arange(1, 8), atol=0.01)
    np.testing.assert_allclose(scale(root, 'tick-y')(found[:, 1]), values, atol=0.01)
    dots = by_class(root, 'dot')
    assert [dot.find('title').text for dot in dots][2] == 'Loss, epoch 3: 0.9000'
    places = [[float(dot.get('cx')), float(dot.get('cy'))] for dot in dots]
    np.testing.assert_allclose(places, found)


def test_shares_are_shown_in_percent_between_0_and_100():
    root = chart([0.2, 0.99, 1.0], shares=True)
    (line,) = by_class(root, 'line')
    np.testing.assert_allclose(
        scale(root, 'tick-y')(points_of(line)[:, 1]), [0.2, 0.99, 1], atol=0.003
    )
    texts = [node.text for node in by_class(root, 'tick-y')]
    assert texts[-1] == '100 %'
    assert min(points_of(line)[:, 1]) == 30  # 100 % is the upper end


@pytest.mark.parametrize(
    'gap', [None, math.nan, math.inf, 1.7e308, 10**400], ids=['none', 'nan', 'inf', 'huge', 'long']
)
def test_unknown_values_are_gaps(gap):
    root = chart([1.0, 2.0, gap, 3.0, gap, gap, 2.5, 2.0])
    lengths = [len(points_of(node)) for node in by_class(root, 'line')]
    assert lengths == [2, 1, 2]
    assert len(by_class(root, 'dot')) == 5


def test_the_chosen_epoch_is_marked():
    root = chart([3.0, 2.0, 1.0, 1.5], mark=(3, 'chosen: 3'), chosen=3)
    (mark,) = by_class(root, 'mark')
    assert mark.get('x1') == mark.get('x2')
    assert float(scale(root, 'tick-x')(float(mark.get('x1')))) == pytest.approx(3, abs=0.01)
    (dot,) = by_class(root, 'chosen')
    assert float(scale(root, 'tick-y')(float(dot.get('cy')))) == pytest.approx(1, abs=0.01)
    assert by_class(root, 'mark-name')[0].text == 'chosen: 3'


def test_long_lines_have_no_dots_and_few_bytes():
    root = chart([1 / (k + 1) for k in range(1000)])
    assert by_class(root, 'dot') == []
    assert len(ET.tostring(root)) < 25_000


@pytest.mark.parametrize(
    ('values', 'x'), [([0.5], [7]), ([0.0, 0.0], None), ([5.0, 5.0], None), ([1e-9, 1e9], None)]
)
def test_degenerate_lines_are_drawn(values, x):
    root = chart(values, x)
    for node in by_class(root, 'line'):
        assert np.isfinite(points_of(node)).all()
    assert 1 <= len(by_class(root, 'tick-x')) <= 8


RANGES = [
    (low, size)
    for low in (-1e6, -0.3, 0, 1e-9, 3.7, 1e12)
    for size in (1e-6, 0.07, 1, 26, 1e7)
    if size > 1e-9 * abs(low)  # else float64 has no room for ticks
]


@pytest.mark.parametrize(('low', 'size'), RANGES)
def test_ticks_are_few_round_and_within(low, size):
    high = low + size
    found = ticks(low, high)
    assert 2 <= len(found) <= 8
    room = 1e-6 * size + 1e-9
    assert all(low - room <= value <= high + room for value in found)
    np.testing.assert_allclose(np.diff(found), np.diff(found)[0], rtol=1e-4)
    assert all(value == int(value) for value in ticks(1, 30, whole=True))


def test_ends_leave_room_but_stay_within():
    assert ends([0.0, 1.0], within=(0, 1)) == (0, 1)
    low, high = ends([0.4, 0.6], within=(0, 1))
    assert 0.3 < low < 0.4
    assert 0.6 < high < 0.7
    assert ends([-1.0, 1.0], within=(0, math.inf))[0] == -1  # what is shown is never cut off


def test_the_reliability_diagram():
    bins = [
        Bin(low=0.0, high=0.5, count=10, confidence=0.37, accuracy=0.3, interval=(0.11, 0.6)),
        Bin(low=0.5, high=0.8, count=0, confidence=math.nan, accuracy=math.nan, interval=None),
        Bin(low=0.8, high=1.0, count=40, confidence=0.93, accuracy=0.85, interval=(0.71, 0.93)),
    ]
    root = ET.fromstring(reliability(bins, 't'))
    area = Axes(x=(0, 1), y=(0, 1), height=390, bottom=120)
    x, up = scale(root, 'tick-x'), (lambda y: (area.up(0) - y) / (area.up(0) - area.up(1)))
    dots = by_class(root, 'dot')
    np.testing.assert_allclose(x([float(d.get('cx')) for d in dots]), [0.37, 0.93], atol=1e-3)
    np.testing.assert_allclose([up(float(d.get('cy'))) for d in dots], [0.3, 0.85], atol=1e-3)
    bars = [n for n in by_class(root, 'range') if n.get('x1') == n.get('x2')]
    low, high = ([up(float(bar.get(key))) for bar in bars] for key in ('y1', 'y2'))
    np.testing.assert_allclose([low, high], [[0.11, 0.71], [0.6, 0.93]], atol=1e-3)
    counts = by_class(root, 'count')
    heights = [float(node.get('height')) for node in counts]
    assert heights[0] / heights[1] == pytest.approx(10 / 40, abs=1e-3)
    assert float(x(float(counts[1].get('x')))) == pytest.approx(0.8, abs=0.005)
    (ideal,) = by_class(root, 'ideal')
    ideal_x, ideal_y = ([float(ideal.get(f'{axis}{k}')) for k in (1, 2)] for axis in 'xy')
    np.testing.assert_allclose(x(ideal_x), [0, 1], atol=1e-3)
    np.testing.assert_allclose([up(value) for value in ideal_y], [0, 1], atol=1e-3)


def test_intervals_of_runs():
    rows = [('a', 0.81, [0.7, 0.9]), ('b <b>', 0.85, None), ('c' * 50, None, None)]
    root = ET.fromstring(interval_chart(rows, title='t', axis='Accuracy', shares=True))
    texts = by_class(root, 'tick-x')
    places = [float(node.get('x')) for node in texts]
    shares = [float(node.text.removesuffix(' %')) / 100 for node in texts]
    slope, start = np.polyfit(places, shares, 1)
    dots = [slope * float(dot.get('cx')) + start for dot in by_class(root, 'dot')]
    np.testing.assert_allclose(dots, [0.81, 0.85], atol=1e-3)
    (within,) = by_class(root, 'range')
    found = [slope * float(within.get(key)) + start for key in ('x1', 'x2')]
    np.testing.assert_allclose(found, [0.7, 0.9], atol=1e-3)
    assert [node.text for node in by_class(root, 'row')][:2] == ['a', 'b <b>']


def test_a_small_bar():
    root = ET.fromstring(interval_bar(0.25, [0.0, 0.5]))
    (dot,), (within,) = by_class(root, 'dot'), by_class(root, 'range')
    assert (float(dot.get('cx')), float(within.get('x1')), float(within.get('x2'))) == (26, 2, 50)
    assert interval_bar(math.nan, None) == interval_bar(None, None) == ''
    assert by_class(ET.fromstring(interval_bar(0.5, None)), 'range') == []


def test_the_map_has_a_point_for_each_image():
    names = ['red', 'green & <blue>']
    points = [
        Point(x=0.0, y=0.0, label=0, split='train', path='a<1>.jpg'),
        Point(x=1.0, y=1.0, label=1, split='validation', path='b.jpg', wrong=True),
        Point(x=0.25, y=0.75, label=1, split='validation', path='c.jpg'),
    ]
    root = ET.fromstring(feature_map(points, names, 't'))
    shown = [node for node in root.iter('use') if node.get('href') != '#ring']
    places = np.array([[float(node.get('x')), float(node.get('y'))] for node in shown])
    width, height = map(float, root.get('viewBox').split()[2:])
    (low, high, inner), scale = places, places[1, 0] - places[0, 0]
    assert scale == low[1] - high[1] > 500  # one scale for both directions; up is up
    np.testing.assert_allclose(inner, low + np.array([1, -3]) * scale / 4, atol=0.1)
    assert (places > 8).all()
    assert (places < [width - 8, height - 8]).all()
    assert [node.find('title').text for node in shown] == [
        'a<1>.jpg (red, train)',
        'b.jpg (green & <blue>, validation, classified wrongly)',
        'c.jpg (green & <blue>, validation)',
    ]
    assert [node.get('href') for node in shown] == ['#shape-0', '#shape-1', '#shape-1']
    (ring,) = (node for node in root.iter('use') if node.get('href') == '#ring')
    assert (ring.get('x'), ring.get('y')) == (shown[1].get('x'), shown[1].get('y'))
    groups = by_class(root, 'points')
    assert [group.get('data-class') for group in groups] == ['0', '1']
    assert ['train' in group.get('class').split() for group in groups] == [True, False]


@pytest.mark.parametrize('spread', [(0.0, 0.0), (0.5, 0.1), (0.02, 0.9)], ids=str)
def test_the_map_shows_the_part_that_has_points(spread):
    ends = [(0.3, 0.05), (0.3 + spread[0], 0.05 + spread[1])]
    points = [Point(x=x, y=y, label=0, split='train', path='a') for x, y in ends]
    root = ET.fromstring(feature_map(points, ['red'], 't'))
    size = np.array([float(value) for value in root.get('viewBox').split()[2:]])
    nodes = list(root.iter('use'))
    places = np.array([[float(node.get('x')), float(node.get('y'))] for node in nodes])
    assert (places > 8).all()
    assert (places < size - 8).all()
    assert (size >= 200).all()
    assert (size <= 640).all()
    if max(spread):
        assert max(abs(places[1] - places[0])) == pytest.approx(616, abs=0.2)


def test_classes_differ_in_color_or_shape():
    """Of the first 56 classes, no two have the same color and the same shape."""
    assert len({(k % 8, SHAPES[k % len(SHAPES)]) for k in range(56)}) == 56
    points = [Point(x=0.5, y=0.5, label=k % 6, split='train', path='x' * 30) for k in range(2000)]
    assert len(feature_map(points, small().class_names, 't')) < 300_000

"""The range test suggests rates that train, repeats itself, and leaves the workdir alone."""

import csv
import itertools
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_backbone
from helpers import make_folders, small_config

from tlflax.train import setup, train_and_evaluate
from tlflax.train.finders import batches, chart, command, learning_rate
from tlflax.train.finders.learning_rate import RangeTest
from tlflax.utils.errors import UserError
from tlflax.utils.files import dump_json


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('images')
    make_folders(root / 'Train', 12, seed=1)
    make_folders(root / 'Test', 3, seed=2)
    return root


def build(config):
    resolved = setup.configure(config)
    return setup.build(resolved, setup.load(resolved))


def answer(report):
    return json.loads(report.splitlines()[-1])


@pytest.mark.parametrize(('name', 'head'), [('sgd', 'flatten_linear'), ('adam', 'mlp')])
def test_the_suggested_rate_trains_and_a_hundredth_and_hundredfold_do_not(
    folders, tmp_path, name, head
):
    config = small_config(folders, optim__name=name, model__head=head, train__epochs=10)
    rate = answer(command.find_learning_rate(config, str(tmp_path / 'w')))['learning_rate']
    over_all = {}  # the mean loss of all steps
    for factor in (0.01, 1, 100):
        run = build(small_config(folders, optim__name=name, model__head=head, train__epochs=10,
                                 optim__learning_rate=rate * factor))  # fmt: skip
        source, state = run.sources.train(run.splits.train), batches.first_state(run)
        losses = []
        for number in range(10):
            state, sums, _ = run.runner.train(state, source, number)
            losses += [np.asarray(part.loss) for part in sums]
        over_all[factor] = np.concatenate(losses).sum() / (10 * source.num_examples)
    assert over_all[1] < 0.5 * np.log(3)
    assert over_all[0.01] > 1.5 * over_all[1]
    assert not over_all[100] < 2 * over_all[1]  # higher, or not finite


def test_the_same_seed_gives_the_same_report_and_the_workdir_stays_free(folders, tmp_path):
    config = small_config(folders, train__epochs=2)
    config.optim.schedule, config.optim.warmup_epochs = 'cosine', 1.0
    work = tmp_path / 'w'
    report = command.find_learning_rate(config, str(work))
    assert sorted(path.name for path in work.iterdir()) == ['lr.csv', 'lr.svg']
    drawn = (work / 'lr.svg').read_text()
    assert report == command.find_learning_rate(config, str(work))
    assert drawn == (work / 'lr.svg').read_text()
    config.optim.learning_rate = answer(report)['learning_rate']
    result = train_and_evaluate(config, work)
    before = {path: path.read_bytes() for path in work.rglob('*') if path.is_file()}
    command.find_learning_rate(config, str(work))  # and in the workdir of a finished run
    assert {path: path.read_bytes() for path in work.rglob('*') if path.is_file()} == before
    assert train_and_evaluate(config, work) == json.loads(dump_json(result))


def test_table_csv_and_picture(folders, tmp_path):
    work = tmp_path / 'w'
    report = command.find_learning_rate(small_config(folders), str(work)).splitlines()
    found = answer('\n'.join(report))
    with open(work / 'lr.csv') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == found['steps']
    assert float(rows[0]['rate']) == learning_rate.LOW
    table = [line.split() for line in report if re.match(r'\s+\d\.\d\de-?\+?\d+ ', line)]
    assert 13 <= len(table) <= 25
    assert f'optim.learning_rate={found["learning_rate"]:g}' in report[-3]
    svg = '{http://www.w3.org/2000/svg}'
    tree = ET.fromstring((work / 'lr.svg').read_text())
    texts = [element.text for element in tree.iter(f'{svg}text')]
    assert {'learning rate', 'training loss', '1e-7', '1e-6'} <= set(texts)
    assert f'{found["learning_rate"]:.2g}' in texts
    width, height = map(float, tree.get('viewBox').split()[2:])
    for line in tree.iter(f'{svg}polyline'):
        points = [tuple(map(float, point.split(','))) for point in line.get('points').split()]
        assert len(points) == found['steps']
        assert all(0 <= x <= width and 0 <= y <= height for x, y in points)
        assert points == sorted(points, key=lambda point: point[0])
    assert 'currentColor' in ET.tostring(tree, 'unicode')


def test_of_several_phases_the_first_counts(folders, tmp_path, caplog):
    """With the keys that it changes, but for its schedule."""
    caplog.set_level('INFO')
    config = small_config(folders, optim__name='sgd', train__epochs=3)
    alone = answer(command.find_learning_rate(config, str(tmp_path / 'a')))
    config.optim.name = 'adam'
    first = (('optim.name', 'sgd'), ('optim.schedule', 'cosine'), ('optim.learning_rate', 0.1))
    config.train.phases = (first, (('optim.learning_rate', 1e-5),))
    found = answer(command.find_learning_rate(config, str(tmp_path / 'b')))
    assert found['learning_rate'] == pytest.approx(alone['learning_rate'], rel=0.1)
    assert 'first of train.phases' in caplog.text


@pytest.mark.parametrize('name', ['adam', 'adamw', 'sgd'])
def test_rates_rise_and_those_of_several_labels_keep_their_ratio(folders, name):
    config = small_config(folders, optim__name=name)
    labels = (('backbone/.*', 'frozen'), ('head/.*/kernel', 'kernels'), ('head/.*', 'biases'))
    config.optim.labels, config.optim.learning_rates = labels, (('biases', 2e-2),)
    config.optim.learning_rate, config.optim.momentum = 1e-3, 0.0
    run = learning_rate.rising(build(config), 1e-3, 9)
    params = jax.tree.map(jnp.zeros_like, run.learner.trainable.params)
    ones, state = jax.tree.map(jnp.ones_like, params), run.learner.tx.init(params)
    for expected in np.geomspace(1e-7, 10, 9):
        update, state = run.learner.tx.update(ones, state, params)
        (layer,) = update['head'].values()
        np.testing.assert_allclose(layer['kernel'], -expected, rtol=1e-4)
        np.testing.assert_allclose(layer['bias'], -20 * expected, rtol=1e-4)


def test_smoothing_is_a_weighted_mean_of_the_past(folders):
    run = build(small_config(folders))
    rising = learning_rate.rising(run, 1e-3)
    test = learning_rate.range_test(rising, run.sources.train(run.splits.train))
    for n in (0, 1, 40, len(test.loss) - 1):
        weights = 0.9 ** np.arange(n, -1, -1)
        np.testing.assert_allclose(
            test.smoothed[n], np.average(test.loss[: n + 1], weights=weights)
        )
    assert test.smoothed[-1] > 4 * test.smoothed.min() or len(test.rate) == learning_rate.STEPS
    np.testing.assert_allclose(np.diff(np.log10(test.rate)), 8 / (learning_rate.STEPS - 1))


def test_the_descent_is_the_longest_decreasing_subsequence():
    rng = np.random.default_rng(0)
    for n in (0, 1, 5, 9):
        values = rng.normal(size=n).round(1)
        decreasing = [
            chosen
            for size in range(n + 1)
            for chosen in itertools.combinations(range(n), size)
            if all(np.diff(values[list(chosen)]) < 0)
        ]
        found = learning_rate.longest_descent(values)
        assert tuple(found) in decreasing
        assert len(found) == max(map(len, decreasing))


def test_the_suggestion_is_where_the_loss_falls_fastest():
    rate = np.geomspace(1e-7, 10, 160)
    height = 2 / (1 + np.exp(4 * (np.log10(rate) + 3)))  # falls around 1e-3
    loss = height + np.where(rate > 0.1, (np.log10(rate) + 1) ** 2, 0)
    found = learning_rate.suggest(RangeTest(rate, loss, loss))
    assert 0.8e-3 < found.steepest < 1.25e-3
    assert 1e-6 < found.valley < found.lowest < 0.11
    flat = np.full(160, 1.0)
    assert learning_rate.suggest(RangeTest(rate, flat, flat)) is None
    assert learning_rate.suggest(RangeTest(rate, flat + rate, flat + rate)) is None


def test_live_images_serve_too_and_say_so(folders, tmp_path, caplog):
    caplog.set_level('INFO')
    config = small_config(
        folders, model__backbone=f'py:{toy_backbone.__file__}:toy', features__layer='auto'
    )
    config.features.cache = False
    live = answer(command.find_learning_rate(config, str(tmp_path / 'a')))
    assert 'images are read in every step' in caplog.text
    config.features.cache = True
    cached = answer(command.find_learning_rate(config, str(tmp_path / 'b')))
    assert live['learning_rate'] == pytest.approx(cached['learning_rate'], rel=0.5)


@pytest.mark.parametrize(
    ('change', 'key'),
    [({'model__head': 'auto'}, 'model.head'), ({'data__fold': 'all'}, 'data.fold')],
    ids=['auto', 'folds'],
)
@pytest.mark.parametrize('finder', ['rate', 'size'])
def test_many_trainings_have_no_single_answer(folders, tmp_path, change, key, finder):
    config = small_config(folders, **change)
    if 'data__fold' in change:
        config.data.val, config.data.folds = '', 3
    find = {
        'rate': lambda: command.find_learning_rate(config, str(tmp_path / 'w')),
        'size': lambda: command.find_batch_size(config),
    }
    with pytest.raises(UserError, match='is that of one training') as raised:
        find[finder]()
    assert raised.value.where == f'config.{key}'
    assert not (tmp_path / 'w').exists()


def test_a_rate_of_zero_and_a_loss_that_is_not_finite(folders, tmp_path):
    config = small_config(folders, optim__learning_rate=0.0)
    with pytest.raises(UserError, match='learning rate of 0'):
        command.find_learning_rate(config, str(tmp_path / 'w'))
    run = build(small_config(folders))
    params = jax.tree.map(lambda leaf: leaf * np.nan, run.learner.trainable.params)
    learner = replace(run.learner, trainable=run.learner.trainable._replace(params=params))
    broken = learning_rate.rising(replace(run, learner=learner), 1e-3)
    with pytest.raises(UserError, match='not finite after 0 steps'):
        learning_rate.range_test(broken, run.sources.train(run.splits.train))


def test_a_chart_of_few_or_equal_values_is_a_chart():
    for values in ([1.0], [0.0, 0.0], [-1.0, 3.0]):
        x = np.geomspace(1e-3, 1e-2, len(values))
        text = chart.log_chart(x, [('a & b', np.array(values))], title='<x>', axes=('x', 'y'))
        assert ET.fromstring(text) is not None
        assert 'nan' not in text

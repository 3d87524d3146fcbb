"""Runs compared: images matched by contents, verdicts, and the files and lines that say so."""

import csv
import hashlib
import html
import json
from pathlib import Path

import numpy as np
import pytest
from helpers import make_folders, run_module, small_config

import tlflax
from tlflax.report.comparison.compare import compare, differing
from tlflax.report.comparison.shared import share
from tlflax.report.comparison.text import format_comparison
from tlflax.report.gather.predictions import Predictions, read
from tlflax.train import train_and_evaluate
from tlflax.utils.errors import UserError

NAMES = ('a', 'b', 'c')


def predictions(name, right, *, first=0, classes=NAMES, chance=0.9, units=None):
    """A run that predicts images number `first`, ... of class number % 3, some of them right."""
    numbers = np.arange(first, first + len(right))
    labels = numbers % 3
    predicted = np.where(right, labels, (labels + 1) % 3)
    probabilities = np.full((len(right), 3), (1 - chance) / 2)
    probabilities[np.arange(len(right)), predicted] = chance
    columns = [NAMES.index(c) for c in classes]
    return Predictions(
        name=name,
        class_names=tuple(classes),
        paths=np.array([f'{name}/{k}' for k in numbers], object),
        digests=np.array([f'{k:064x}' for k in numbers], object),
        labels=np.array([classes.index(NAMES[k]) for k in labels]),
        probabilities=probabilities[:, columns],
        units=units,
        cost={'wall_seconds': 1.5, 'parameters': 1234, 'epochs': None},
    )


def rights(n, wrong):
    right = np.ones(n, bool)
    right[list(wrong)] = False
    return right


def test_images_are_matched_by_contents_and_classes_by_name(said):
    one = predictions('one', rights(20, [3, 4]))
    other = predictions('other', rights(20, [0, 12]), first=5, classes=('c', 'a', 'b'))
    shared = share([one, other])
    assert list(shared.paths) == [f'one/{k}' for k in range(5, 20)]
    assert said == [
        'warning WARNING: compared on the 15 images that they share: one has 20, other has 20'
    ]
    found = compare([one, other], shared)
    assert found['num_images'] == 15
    assert [row['accuracy'] for row in found['runs']] == [1, pytest.approx(13 / 15)]
    assert [row['own_images'] for row in found['runs']] == [20, 20]
    (pair,) = found['pairs']
    assert (pair['only_first_right'], pair['only_second_right']) == (2, 0)
    assert pair['accuracy_difference'] == pytest.approx(-2 / 15)
    assert sorted(shared.paths[differing(shared)]) == ['one/17', 'one/5']


def test_the_same_images_are_compared_without_a_word(said):
    one, other = predictions('one', rights(9, [3])), predictions('other', rights(9, [1])[::-1])
    assert len(share([one, other]).labels) == 9
    assert said == []


@pytest.mark.parametrize(
    ('other', 'message'),
    [
        ({'first': 50}, 'one and other: these runs have no validation image in common; compare'),
        ({'classes': ('a', 'b', 'x')}, "other: its classes are not those of one: only one has 'c'"),
    ],
    ids=['images', 'classes'],
)
def test_runs_that_cannot_be_compared(other, message):
    one, two = predictions('one', rights(9, [])), predictions('other', rights(9, []), first=0)
    if 'first' in other:
        two = predictions('other', rights(9, []), **other)
    else:
        two = Predictions(**{**vars(two), 'class_names': other['classes']})
    with pytest.raises(UserError, match=message):
        share([one, two])


def test_verdicts():
    """12 images against 2, then the same the other way round, then 3 against 2."""
    worse = predictions('A', rights(60, range(12)))
    better = predictions('B', rights(60, [20, 21]))
    (pair,) = compare([worse, better], share([worse, better]))['pairs']
    assert pair['p_value'] == pytest.approx(0.012939453125)  # binomtest(2, 14)
    low, high = (100 * end for end in pair['accuracy_interval'])
    assert low > 0
    assert (
        pair['verdict'] == f'B is better than A: +16.7 points ({low:.1f} to {high:.1f}), p = 0.013'
    )
    (turned,) = compare([better, worse], share([better, worse]))['pairs']
    assert turned['verdict'].startswith('B is better than A: +16.7 points (')
    assert turned['accuracy_interval'] == pytest.approx([-high / 100, -low / 100])
    same = predictions('C', rights(60, [20, 21, 22]))
    (pair,) = compare([better, same], share([better, same]))['pairs']
    assert pair['verdict'].startswith(
        'no difference in accuracy can be shown between B and C: -1.7 points ('
    )
    assert pair['verdict'].endswith(', p = 1')


def test_three_runs_are_corrected_and_the_best_meets_all():
    runs = [
        predictions('first', rights(60, range(6))),
        predictions('worst', rights(60, range(15))),
        predictions('best', rights(60, [])),
    ]
    found = compare(runs, share(runs))
    assert found['best'] == 'best'
    met = [(pair['first'], pair['second']) for pair in found['pairs']]
    assert met == [('first', 'worst'), ('first', 'best'), ('worst', 'best')]
    raw = [2 / 2**9, 2 / 2**6, 2 / 2**15]
    assert [pair['p_value'] for pair in found['pairs']] == pytest.approx(raw)
    corrected = [pair['corrected_p_value'] for pair in found['pairs']]
    assert corrected == pytest.approx([2 * raw[0], raw[1], 3 * raw[2]])
    assert all('(Holm, 3 pairs)' in pair['verdict'] for pair in found['pairs'])
    lines = format_comparison(found).splitlines()
    assert lines[0].split()[0] == 'run'
    assert lines[1].endswith('1.5               1,234       -')
    assert len({line.index('seconds') for line in lines[:1]}) == 1
    assert len(lines) == 8


def test_groups_that_one_run_knows_count_for_both():
    units = np.array([f'scene {k // 4}' for k in range(60)], object)
    plain = [predictions('A', rights(60, range(12))), predictions('B', rights(60, []))]
    (alone,) = compare(plain, share(plain))['pairs']
    grouped = [plain[0], predictions('B', rights(60, []), units=units)]
    (together,) = compare(grouped, share(grouped))['pairs']
    assert alone['p_value'] == pytest.approx(2 / 2**12)
    assert together['p_value'] == pytest.approx(2 / 2**3)  # 12 images of 3 groups


# Whole runs


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """Two finished runs of the same images at other places, and another's out-of-fold file."""
    root = tmp_path_factory.mktemp('runs')
    for side in ('here', 'there'):
        make_folders(root / side / 'Train', 7, seed=1, noise=120)
        make_folders(root / side / 'Test', 5, seed=2, noise=120)
    train_and_evaluate(small_config(root / 'here', train__epochs=1), root / 'one')
    train_and_evaluate(small_config(root / 'there', train__epochs=6), root / 'two')
    table, probabilities = tlflax.load(root / 'one').predict_val()
    (root / 'folds').mkdir()
    with open(root / 'folds' / 'predictions.csv', 'w', newline='') as file:
        lines = csv.writer(file)
        names = table.class_names
        about = ['repeat', 'fold', 'path', 'digest', 'true_class', 'class']
        lines.writerow([*about, *(f'probability:{name}' for name in names)])
        for repeat, shift in enumerate((0.1, -0.1)):  # whose mean is the run's
            for path, digest, label, row in zip(
                table.paths, table.digests, table.labels, probabilities, strict=True
            ):
                lines.writerow([repeat, 0, path, digest, names[label], '?', *(row + shift)])
    return root


def test_two_runs_from_the_command_line(place):
    file = place / 'differences.csv'
    runs = [str(place / name) for name in ('one', 'two')]
    output = place / 'compared.html'
    done = run_module('report', *runs, f'--differences={file}', f'--output={output}')
    assert done.returncode == 0, done.stderr
    *text, name, last = done.stdout.splitlines()
    assert name == str(output)
    found = json.loads(last)
    loaded = [tlflax.load(run) for run in runs]
    for row, run, one in zip(found['runs'], runs, loaded, strict=True):
        own = one.evaluate()
        assert row['run'] == run
        assert row['accuracy'] == own['accuracy']
        assert row['loss'] == pytest.approx(own['loss'], rel=1e-5)
        assert row['macro_f1'] == own['macro_f1']
        assert row['intervals']['macro_f1'] == own['intervals']['macro_f1']
        result = json.loads((place / run / 'result.json').read_text())
        assert row['wall_seconds'] == result['wall_seconds']
        assert row['epochs'] == result['epochs_run']
        assert row['parameters'] == 3 * (256 * 4 * 4 + 1)
    (pair,) = found['pairs']
    assert pair['verdict'] in text[4]
    page = output.read_text()
    assert html.escape(pair['verdict'], quote=False) in page
    assert page.count('data:image/webp') == found['num_differences']
    with open(file, newline='') as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == found['num_differences'] > 0
    for row in rows:
        predicted = [row[f'{run}:class'] for run in runs]
        assert predicted[0] != predicted[1]
        assert f'/here/Test/{row["class"]}/' in row['path']
    for run, one in zip(runs, loaded, strict=True):
        table, probabilities = one.predict_val()
        digests = dict(zip(table.digests, probabilities, strict=True))
        for row in rows:
            own = digests[hashlib.sha256(Path(row['path']).read_bytes()).hexdigest()]
            assert row[f'{run}:class'] == one.class_names[own.argmax()]
            assert float(row[f'{run}:probability']) == own[one.class_names.index(row['class'])]


def test_repeats_of_a_cross_validation_are_averaged(place):
    one, folds = read(str(place / 'one')), read(str(place / 'folds'))
    assert list(folds.digests) == list(one.digests)
    np.testing.assert_allclose(folds.probabilities, one.probabilities, atol=1e-12)
    np.testing.assert_array_equal(folds.labels, one.labels)
    assert folds.cost == {'wall_seconds': None, 'epochs': None, 'parameters': None}


def test_a_damaged_file_is_one_sentence(place, tmp_path):
    text = (place / 'folds' / 'predictions.csv').read_text()
    for bad, reason in (
        (text.replace('digest', 'hash'), "no column 'digest'"),
        (text.splitlines()[0], 'it has no rows'),
        (text[: len(text) // 2].rsplit(',', 2)[0], 'a row is cut off'),
        (text.replace('red', 'rot', 12), 'not in list'),
    ):
        (tmp_path / 'predictions.csv').write_text(bad)
        with pytest.raises(UserError, match=reason):
            read(str(tmp_path))


def test_what_cannot_be_reported(place, tmp_path):
    one = str(place / 'one')
    (tmp_path / 'begun').mkdir()
    (tmp_path / 'begun' / 'config.json').write_text('{}')
    for arguments, message in (
        ([], 'no run is given; for example: python -m tlflax.report '),
        ([one, '--differences=d.csv'], '--differences needs several runs'),
        ([one, f'--workdir={one}'], f'{one}: this run is given twice'),
        ([one, f'{one}/'], f'{one}: this run is given twice'),
        ([one, f'{one}/../one'], f'{one}/../one: this run is given twice'),
        ([one, 'x', '--output=both', '--differences=./both'], 'both: this file is to be both'),
        ([one, str(tmp_path / 'begun')], f'{tmp_path}/begun: the run is not finished'),
        ([one, str(tmp_path / 'nowhere')], f'{tmp_path}/nowhere'),
        ([one, str(place / 'two'), '--differences=/nowhere/d.csv'], "no folder '/nowhere'"),
    ):
        done = run_module('report', *arguments)
        assert done.returncode == 2
        assert message in done.stderr.splitlines()[-1]
        assert 'Traceback' not in done.stderr

"""Pages of real runs: what they show equals what the run, its files and its images say."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from helpers import make_folders, run_module, toy_config
from PIL import Image

import tlflax
from tlflax.inference import embeddings
from tlflax.report import write_run
from tlflax.report.gather import choice, cross_validation
from tlflax.report.gather.run import gather
from tlflax.report.write import write_after
from tlflax.sweep import auto, folds
from tlflax.train import train_and_evaluate
from tlflax.utils.errors import UserError


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('pages')
    make_folders(root / 'Train', 8, seed=1, noise=150)
    make_folders(root / 'Test', 6, seed=2, noise=150)
    return root


@pytest.fixture(scope='module')
def workdir(root):
    changes = {'augment__horizontal_flip': True, 'optim__learning_rate': 1e-6}
    config = toy_config(root, train__epochs=3, **changes)  # hardly trained, so it is often wrong
    train_and_evaluate(config, root / 'run')
    return root / 'run'


@pytest.fixture(scope='module')
def page(workdir):
    return gather(workdir)


def test_a_page_says_what_the_run_says(page, workdir):
    result = json.loads((workdir / 'result.json').read_text())
    assert page.result == result
    assert page.confusion == result['val']['confusion_matrix']
    assert len(page.records) == 3
    assert page.config == json.loads((workdir / 'config.json').read_text())
    assert page.environment['seed'] == 0
    assert page.notes == []
    error = sum(
        bin.count * abs(bin.accuracy - bin.confidence) for bin in page.reliability if bin.count
    )
    assert error / 18 == pytest.approx(result['val']['expected_calibration_error'], abs=1e-6)


def test_images_are_those_that_are_classified_so(page, workdir):
    trained = tlflax.load(workdir)
    table, probabilities = trained.predict_val()
    predicted = probabilities.argmax(1)
    wrong = np.flatnonzero(predicted != table.labels)
    assert len(wrong) > 0
    assert sorted(page.mistakes) == wrong.tolist()
    shown = [page.examples[number].probability for number in page.mistakes]
    assert shown == sorted(shown, reverse=True)
    least = min(page.examples.values(), key=lambda example: example.probability)
    assert page.uncertain[0] == least.number == probabilities.max(1).argmin()
    for (true, guess), numbers in page.cells.items():
        assert len(numbers) == page.confusion[true][guess]
        for number in numbers:
            example = page.examples[number]
            assert example.true == table.class_names[true] == example.path.split('/')[0]
            assert example.predicted == table.class_names[guess]
            assert table.paths[number].endswith(example.path)
            assert example.picture.source.startswith('data:image/webp;base64,')


def test_nearest_images_and_the_map_are_of_the_training_images(page, workdir, root):
    trained = tlflax.load(workdir)
    table, _ = trained.predict_val()
    assert {point.split for point in page.points} == {'train', 'validation'}
    assert len(page.points) == 24 + 18
    assert sum(point.wrong for point in page.points) == len(page.mistakes)
    train = [*sorted((root / 'Train').glob('*/*.jpg'))]
    vectors = embeddings.of_table(trained, table).astype(np.float64)
    others = np.stack(
        [vector for _, vector in embeddings.of_images(trained, list(map(str, train)))]
    ).astype(np.float64)
    for number in page.mistakes:
        own = vectors[number]
        cosines = others @ own / np.linalg.norm(others, axis=1) / np.linalg.norm(own)
        best = train[cosines.argmax()]
        nearest = page.examples[number].neighbors[0]
        assert nearest.path == f'{best.parent.name}/{best.name}'
        assert nearest.label == best.parent.name
        assert nearest.similarity == pytest.approx(cosines.max(), abs=1e-6)


def test_few_images_are_compared_where_features_must_be_computed(workdir, monkeypatch):
    monkeypatch.setattr('tlflax.report.gather.run._MOST_COMPUTED', 9)
    found = gather(workdir)  # they are kept, so all are compared
    assert len(found.points) == 24 + 18
    monkeypatch.setattr(
        'tlflax.features.select.SourceSelector.kept', lambda self, table: table.labels < 0
    )
    found = gather(workdir)
    train = [point for point in found.points if point.split == 'train']
    assert np.bincount([point.label for point in train]).tolist() == [3, 3, 3]
    assert found.notes == ['The map and the nearest images are of 9 of the 24 training images.']


def test_the_file_is_whole_and_opens_without_others(workdir, tmp_path):
    path = write_run(workdir, tmp_path / 'page.html')
    text = path.read_text()
    assert text.startswith('<!doctype html>')
    assert 'http://' not in text.replace('http://www.w3.org/', '')
    assert 'https://' not in text
    assert [each.name for each in tmp_path.iterdir()] == ['page.html']


def test_what_is_missing_is_said(root, workdir, tmp_path, said):
    moved = tmp_path / 'Train'
    shutil.move(root / 'Train', moved)
    try:
        found = gather(workdir)
    finally:
        shutil.move(moved, root / 'Train')
    assert found.points == ()
    assert found.mistakes
    (note,) = found.notes  # once, although the audit misses them too
    assert note.startswith('config.data.train: no such folder')


def test_training_images_that_changed_are_said(root, workdir, tmp_path):
    one = next((root / 'Train' / 'red').iterdir())
    shutil.move(one, tmp_path)
    try:
        found = gather(workdir)
    finally:
        shutil.move(tmp_path / one.name, one)
    assert found.notes == ['The training images are not those of the run any more.']


def test_a_report_that_fails_leaves_the_command_alone(root, workdir, tmp_path, said):
    with Image.open(next((root / 'Test').glob('red/*'))) as image:
        image.save(root / 'Test' / 'red' / 'new.png')
    try:
        with pytest.raises(UserError, match='these are not the validation images'):
            write_run(workdir)
        write_after(workdir)
    finally:
        (root / 'Test' / 'red' / 'new.png').unlink()
    assert said[-1].startswith('warning WARNING: no report was written: ')
    assert not (workdir / 'report.html').exists()
    write_after(workdir)
    assert said[-1] == f'info the report is {workdir}/report.html'
    before = (workdir / 'report.html').stat().st_mtime_ns
    write_after(workdir)
    assert (workdir / 'report.html').stat().st_mtime_ns == before


def test_a_mistake_of_the_page_is_logged(workdir, monkeypatch, said):
    def broken(_):
        raise MemoryError

    monkeypatch.setattr('tlflax.report.write.render_run', broken)
    (workdir / 'report.html').unlink(missing_ok=True)
    write_after(workdir)
    again = f'`python -m tlflax.report --workdir={workdir}` shows where'
    assert said[-1].endswith(f'no report was written (MemoryError: MemoryError); {again}')


@pytest.mark.parametrize(
    'text',
    ['', '[]', '{"candidates": 5, "why": ""}', '{"candidates": [1], "why": ""}',
     '{"candidates": [{"a": 1}, {"b": 2}], "why": ""}', '{"candidates": [], "why": 3}'],
)  # fmt: skip
def test_a_damaged_choice_is_a_note(workdir, text):
    (workdir / 'auto.json').write_text(text)
    try:
        found = gather(workdir)
    finally:
        (workdir / 'auto.json').unlink()
    assert found.notes == [f'{workdir}/auto.json is damaged: what was tried is not shown.']
    assert (found.tried, found.tried_note) == ((), '')


def test_exported_files_are_shown(workdir):
    rows = [{'format': 'onnx', 'bytes': 5}, {'format': 'tflite', 'bytes': 3}]
    path = workdir / 'exports.json'
    try:
        path.write_text(json.dumps(rows))
        assert gather(workdir).exports == rows
        for damaged in ('', '{}', '[1]', '[{"a": 1}, {"b": 2}]'):
            path.write_text(damaged)
            found = gather(workdir)
            assert found.exports == ()
            assert found.notes == [f'{path} is damaged: what was exported is not shown.']
    finally:
        path.unlink()


@pytest.mark.parametrize('text', ['{}', '{"val": 3}'])
def test_a_result_of_nothing_is_refused(workdir, tmp_path, text):
    shutil.copy(workdir / 'config.json', tmp_path)
    (tmp_path / 'result.json').write_text(text)  # as of released versions, without a digest
    with pytest.raises(UserError, match=r'result.json: it has no result of the validation'):
        write_run(tmp_path)


def test_a_run_that_is_not_finished(workdir, tmp_path):
    shutil.copy(workdir / 'config.json', tmp_path)
    with pytest.raises(UserError, match='the run is not finished; finish it by the command'):
        write_run(tmp_path)


def test_a_cross_validation_has_a_page(root, tmp_path):
    config = toy_config(root, data__val='', data__folds=2, data__fold='all')
    report = folds.cross_validate(config, tmp_path / 'folds')
    found = cross_validation.gather(tmp_path / 'folds')
    assert found.result['val'] == report['pooled']
    assert found.confusion == report['pooled']['confusion_matrix']
    assert [row['fold'] for row in found.folds] == [0, 1]
    wrong = 24 - np.trace(found.confusion)
    assert len(found.mistakes) == min(24, wrong)
    text = write_run(tmp_path / 'folds').read_text()
    assert 'A cross-validation' in text
    assert 'fold1' in text


def test_the_automatic_choice_shows_what_was_tried(root, tmp_path, cheap_choice):
    config = toy_config(root, model__head='auto', features__layer='auto')
    _, report = auto.choose_and_evaluate(config, tmp_path / 'auto')
    found = gather(tmp_path / 'auto')
    assert list(found.tried) == report['candidates']
    assert found.tried_note == report['why']
    text = write_run(tmp_path / 'auto').read_text()
    assert report['candidates'][0]['candidate'] in text


def test_the_training_command_writes_it(root, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(
        'from math import inf, nan\n'
        'from tlflax.config import default_config\n'
        'def get_config():\n'
        f'    config = default_config()\n'
        f'    config.update({toy_config(root).to_dict()!r})\n'
        '    return config\n'
    )
    run = tmp_path / 'run'
    done = run_module('train', f'--config={config}', f'--workdir={run}')
    assert done.returncode == 0, done.stderr
    assert (run / 'report.html').exists()
    assert 'report.html' not in done.stdout
    (run / 'report.html').unlink()
    done = run_module('report', f'--workdir={run}')
    assert done.returncode == 0, done.stderr
    assert done.stdout == f'{run}/report.html\n'
    other = tmp_path / 'other'
    done = run_module(
        'train', f'--config={config}', f'--workdir={other}', '--config.train.report=False'
    )
    assert done.returncode == 0, done.stderr
    assert not (other / 'report.html').exists()


def test_the_largest_cells_of_mistakes_come_first():
    labels = np.repeat(np.arange(40), 40)
    predicted = np.tile(np.arange(40), 40)
    probabilities = np.full((1600, 40), 0.01)
    probabilities[np.arange(1600), predicted] = 0.6
    found = choice.choose(labels, probabilities)
    assert 600 <= sum(map(len, found.cells.values())) <= 1200
    assert all(len(rows) >= 1 for rows in found.cells.values())
    assert not any(true == guess for true, guess in list(found.cells)[:-40])
    few = choice.choose(labels[:80], probabilities[:80])
    assert len(few.cells) == 80
    assert dataclasses.asdict(few)['mistakes'][:2] == [1, 2]

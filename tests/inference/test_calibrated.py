"""The temperature of a run: fitted to validation, measured on what it did not see, applied."""

import json

import numpy as np
import pytest
import scipy.optimize
import scipy.special
from helpers import make_folders, run_module, scan_folder, small_config

import tlflax
from tlflax.data.splits.stratify import fold_numbers
from tlflax.train import train_and_evaluate
from tlflax.train.metrics.scores import calibration_error
from tlflax.train.result import calibrate, format_calibration
from tlflax.utils.errors import UserError
from tlflax.utils.files import signed


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp('calibrated')
    make_folders(root / 'Train', 10, seed=1, noise=370.0)
    make_folders(root / 'Test', 12, seed=2, noise=370.0)
    result = train_and_evaluate(small_config(root, optim__learning_rate=0.01), root / 'w')
    return root, result


def reference(logits, label):
    """The best temperature by a general optimizer; its logarithm is normal, deviation 1/2."""

    def loss(log_temperature):
        tempered = scipy.special.log_softmax(logits / np.exp(log_temperature), axis=1)
        own = tempered[np.arange(len(label)), label]
        return log_temperature**2 / (2 * 0.5**2) - own.sum()

    return np.exp(scipy.optimize.minimize_scalar(loss, bounds=(-3, 3), method='bounded').x)


def test_what_result_json_says_of_it(run):
    root, result = run
    restored = tlflax.load(root / 'w')
    found = result['calibration']
    table = scan_folder(root / 'Test')
    paths = table.paths.tolist()
    rows = [list(one.probabilities.values()) for one in restored.predict(paths)]
    logits, label = np.log(np.array(rows)), table.labels
    assert found['temperature'] == pytest.approx(reference(logits, label), rel=2e-3)
    assert abs(np.log(found['temperature'])) > 0.2
    assert found['loss']['before'] == pytest.approx(result['val']['loss'], rel=1e-4)
    error = result['val']['expected_calibration_error']
    assert found['expected_calibration_error']['before'] == error
    one_class = scan_folder(root / 'Test')
    object.__setattr__(one_class, 'labels', np.zeros(36, np.int32))
    object.__setattr__(one_class, 'class_names', ('',))
    fold = fold_numbers(one_class, 5)
    assert sorted(np.bincount(fold)) == [7, 7, 7, 7, 8]
    after = np.zeros_like(logits)
    for number in range(5):
        out = fold == number
        temperature = reference(logits[~out], label[~out])
        after[out] = scipy.special.softmax(logits[out] / temperature, axis=1)
    expected = -np.log(after[np.arange(36), label]).mean()
    assert found['loss']['after'] == pytest.approx(expected, rel=1e-3)
    assert found['expected_calibration_error']['after'] == pytest.approx(
        calibration_error(label, after), abs=2e-3
    )


def test_applied_it_changes_probabilities_and_no_decision(run, tmp_path):
    root, result = run
    restored = tlflax.load(root / 'w')
    plain, calibrated = restored.evaluate(), restored.evaluate(calibrated=True)
    assert calibrated['accuracy'] == plain['accuracy']
    assert calibrated['confusion_matrix'] == plain['confusion_matrix']
    assert calibrated['loss'] < plain['loss']  # it is the best one for these images
    paths = sorted((root / 'Test').rglob('*.jpg'))[:5]
    temperature = result['calibration']['temperature']
    for one, other in zip(
        restored.predict(paths), restored.predict(paths, calibrated=True), strict=True
    ):
        assert one.label == other.label
        logits = np.log(list(one.probabilities.values()))
        np.testing.assert_allclose(
            list(other.probabilities.values()), scipy.special.softmax(logits / temperature)
        )
    twice = restored.evaluate(calibrated=True, tta=True, mistakes=tmp_path / 'm.csv')
    assert twice['accuracy'] == restored.evaluate(tta=True)['accuracy']


def test_the_commands(run):
    root, result = run
    workdir = f'--workdir={root / "w"}'
    done = run_module('evaluate', workdir, '--calibrated')
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout.splitlines()[-1])
    assert printed['loss'] == tlflax.load(root / 'w').evaluate(calibrated=True)['loss']
    photo = str(root / 'Test' / 'red' / '000.jpg')
    answers = [
        run_module('predict', workdir, photo, '--format=json', *more).stdout
        for more in ([], ['--calibrated'])
    ]
    first, second = map(json.loads, answers)
    assert first['class'] == second['class']
    assert first['probability'] != second['probability']
    line = format_calibration(result['calibration'])
    assert line.startswith(f'calibrated by temperature {result["calibration"]["temperature"]:.4g}')


@pytest.mark.parametrize('change', ['older', 'damaged', 'missing', 'other step'])
def test_without_a_temperature_it_is_one_sentence(run, tmp_path, change):
    root, result = run
    path = root / 'w' / 'result.json'
    before = path.read_text()
    plain = {key: value for key, value in result.items() if key not in ('sha256', 'calibration')}
    other = {**plain, 'calibration': result['calibration'], 'step': 1}
    texts = {
        'older': json.dumps(signed(plain)),
        'damaged': before.replace('"temperature": ', '"temperature": 1'),
        'other step': json.dumps(signed(other)),
    }
    try:
        path.unlink()
        if change in texts:
            path.write_text(texts[change])
        restored = tlflax.load(root / 'w')
        assert restored.evaluate()['num_examples'] == 36
        for use in (restored.evaluate, lambda **flag: restored.predict([], **flag)):
            with pytest.raises(UserError, match=r'calibrated: no temperature of step \d+ is in'):
                use(calibrated=True)
    finally:
        path.write_text(before)


def test_what_cannot_be_measured(run):
    table = scan_folder(run[0] / 'Test').select(np.array([0, 0]))
    probabilities = np.full((2, 3), 1 / 3, np.float32)
    found = calibrate(probabilities, table)
    assert found['loss'] == {'before': pytest.approx(np.log(3)), 'after': None}
    assert 'loss 1.0986 to -' in format_calibration(found)
    assert calibrate(probabilities * np.nan, table) is None
    assert 'not finite' in format_calibration(None)

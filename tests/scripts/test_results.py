"""The study of stopping and the page of results: arithmetic, and once in the shortest form."""

import math
import re
import sys

import numpy as np
import pytest
from helpers import ROOT, make_folders, run_script
from scipy import stats

SCRIPTS = ROOT / 'scripts'


@pytest.fixture
def scripts(monkeypatch):
    """Makes the scripts importable."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    names = ('image_sets', 'study_stopping', 'reproduce_methods', 'reproduce_page')
    yield
    for name in names:
        sys.modules.pop(name, None)


def trajectory(scripts, loss, correct):
    from study_stopping import Trajectory

    return Trajectory(np.array(loss, np.float32), np.array(correct, bool), 100)


LOSS = np.array([4, 3, 5, 5, 5, 2, 5, 5, 5, 5])[:, None] * np.ones(2)
CORRECT = np.array([[0, 0], [0, 0], [1, 0], *[[0, 0]] * 6, [1, 1]])


@pytest.mark.parametrize(
    ('rule', 'kept', 'ran'),
    [
        ({'monitor': 'val_loss'}, 1, 5),
        ({'monitor': 'val_accuracy'}, 0, 4),  # until the third epoch nothing was better
        ({'monitor': 'val_accuracy', 'patience': 6}, 2, 9),
        ({'monitor': 'val_loss', 'patience_steps': 400, 'min_steps': 500}, 5, 10),
        ({'monitor': 'val_loss', 'min_steps': 500}, 1, 5),
        ({'monitor': ''}, 9, 10),
    ],
)
def test_kept_epochs_by_hand(scripts, rule, kept, ran):
    from study_stopping import keep

    correct = CORRECT.copy()
    if rule.get('patience') is None:
        correct[2] = 0
    assert keep(rule, trajectory(scripts, LOSS, correct)) == (kept, ran)


def test_halves_have_half_of_each_class(scripts):
    from study_stopping import halves

    label = np.array([0] * 10 + [1] * 7 + [2])
    first = halves(label, 3)
    assert np.bincount(label[first], minlength=3).tolist() in ([5, 4, 0], [5, 3, 1])
    assert first.tolist() == halves(label, 3).tolist() != halves(label, 4).tolist()


def test_rules_are_measured_on_images_that_they_have_not_seen(scripts):
    """Each half likes an epoch of its own; what it chooses is wrong about the other."""
    from study_stopping import RULES, Outcome, compare, halves

    label = np.zeros(8, int)
    first = halves(label, 0)
    correct = np.stack([first, ~first, np.arange(8) < 2])
    whole = trajectory(scripts, np.where(correct, 0.1, 3.0), correct)
    found = {o.rule: o for o in compare('x', label, {'traffic': whole}, 0)}
    assert set(found) == set(RULES)
    assert found['val_accuracy, patience 3'] == Outcome(
        'x', 'traffic', 'val_accuracy, patience 3', 0.0, 100.0, 300.0
    )
    assert found['the last epoch'].accuracy == 25.0


def test_table_of_the_study(scripts):
    from study_stopping import RULES, TRAININGS, Outcome, markdown

    outcomes = [
        Outcome(name, training, rule, 90.0 + seed, cost, 1000.0)
        for training in TRAININGS
        for rule in RULES
        for name in ('a', 'b')
        for seed, cost in enumerate((1.0, 2.0, 3.0))
    ]
    lines = markdown(outcomes).splitlines()
    assert len(lines) == 2 + len(RULES) * len(TRAININGS)
    half = stats.t.ppf(0.975, 5) * np.std([1, 2, 3] * 2, ddof=1) / math.sqrt(6)
    assert f'| 2.0 ({2 - half:.1f} to {2 + half:.1f}) | 91.0 | 91.0 | 1,000 |' in lines[2]


def test_page_says_what_is_flattered(scripts):
    from reproduce_methods import AUTO, KERAS, PROBE, RECIPE, RIGHT, WRONG, Effort, Measured
    from reproduce_page import Circumstances, Figures, page

    methods = {RECIPE: [90.0, 92.0, 97.0], PROBE: [93.0], AUTO: [99.9], KERAS: [100, 100, 99.0]}
    measured = {name: Measured(own, [12.0] * len(own)) for name, own in methods.items()}
    row = {'shots': 5, 'mean_accuracy': 0.5, 'low': 0.4, 'high': 0.6}
    one = Figures(
        'signs', 300, 200, 10, 128, {RIGHT: measured, WRONG: measured},
        {RIGHT: [row], WRONG: [row]},
    )  # fmt: skip
    text = page(
        [one],
        'STUDY',
        Circumstances('run this', 'a machine', 'a day', Effort(3, (5,), 20, (WRONG, RIGHT))),
    )
    assert (
        '| signs (ardamavi/Sign-Language-Digits-Dataset, Apache 2.0) | 10 | 300 | 200 | 128 |'
        in text
    )
    assert '| `configs/traffic.py` * | 93.0 (84.0 to 100.0) | 12 |' in text
    assert '| `python -m tlflax.probe` | 93.0 | 12 |' in text
    assert '| the same head, Keras * | 99.7 (98.2 to 100.0) | 12 |' in text
    assert 'PyTorch *' not in text  # was not measured
    assert '| signs, rescale | 50.0 (40.0 to 60.0) | 93.0 |' in text
    assert 'traffic lights' not in text.lower()
    assert text.endswith('STUDY\n')


def test_everything_in_its_shortest_form(tmp_path):
    make_folders(tmp_path / 'toys' / 'train', 7, seed=1)
    make_folders(tmp_path / 'toys' / 'val', 4, seed=2)
    page = tmp_path / 'results.md'
    done = run_script(
        SCRIPTS / 'reproduce.py', tmp_path / 'toys', '--quick', f'--out={page}', timeout=300
    )
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert str(tmp_path) not in text
    assert 'python scripts/reproduce.py toys --quick\n' in text
    assert '| toys | 3 | 21 | 12 | 32 |' in text
    rows = dict(re.findall(r'^\| ([^|]+?) \| ([\d.]+) \| [\d.]+ \|$', text, re.MULTILINE))
    wanted = ['auto', 'probe', 'flatten_linear', 'traffic.py']
    wanted += ['Keras', 'PyTorch'] if {'keras', 'torch'} <= installed() else []
    for name in wanted:
        (accuracy,) = (float(value) for method, value in rows.items() if name in method)
        assert 0 <= accuracy <= 100
    assert text.count('the last epoch |') == 2


def installed():
    import importlib.util

    return {name for name in ('keras', 'torch') if importlib.util.find_spec(name)}

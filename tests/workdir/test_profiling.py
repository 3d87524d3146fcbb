"""`train.profile`: which steps are traced; a trace is written, and the numbers stay the same."""

from pathlib import Path

import pytest
from helpers import make_folders, toy_config

from tlflax.train import train_and_evaluate
from tlflax.utils.errors import UserError
from tlflax.workdir.profiling import Profile


def profile(first, last):
    return Profile(first, last, Path('w'))


@pytest.mark.parametrize(
    ('start', 'end', 'parts'),
    [
        (0, 10, [(10, False)]),
        (10, 20, [(2, False), (5, True), (3, False)]),
        (14, 20, [(3, True), (3, False)]),
        (0, 13, [(12, False), (1, True)]),
        (13, 15, [(2, True)]),
        (17, 30, [(13, False)]),
        (5, 5, []),
    ],
)
def test_parts(start, end, parts):
    assert profile(12, 17).parts(start, end) == parts


@pytest.mark.parametrize(
    'text', ['10', '10:', ':5', '5:5', '7:5', '-1:5', 'a:b', '1:2:3', '１:２', f'1:{"9" * 5000}']
)
def test_what_names_no_steps_is_refused(text):
    with pytest.raises(UserError, match=r'config.train.profile: .* names no steps'):
        Profile.parse(text, Path('w'))


def test_parse():
    assert Profile.parse('', Path('w')) is None
    assert Profile.parse('10:20', Path('w')) == Profile(10, 20, Path('w/profile'))


@pytest.mark.parametrize('cached', ['auto', 'False'])
def test_a_trace_is_written_and_the_numbers_stay(cached, tmp_path):
    make_folders(tmp_path / 'Train', 6, seed=1)
    make_folders(tmp_path / 'Test', 2, seed=2)
    options = {'train__epochs': 2, 'train__batch_size': 4, 'features__cache': cached}
    plain = train_and_evaluate(toy_config(tmp_path, **options), tmp_path / 'plain')
    config = toy_config(tmp_path, train__profile='3:7', **options)  # over the end of an epoch
    traced = train_and_evaluate(config, tmp_path / 'traced')
    assert traced['val'] == plain['val']
    assert traced['best_val_loss'] == plain['best_val_loss']
    assert list((tmp_path / 'traced/profile').rglob('*.xplane.pb'))
    assert not (tmp_path / 'plain/profile').exists()


def test_a_mistake_is_found_before_anything_is_read(tmp_path):
    config = toy_config(tmp_path, train__profile='20:10', data__train='nowhere')
    with pytest.raises(UserError, match='names no steps'):
        train_and_evaluate(config, tmp_path / 'w')


@pytest.mark.parametrize(('steps', 'warned'), [('6:9', True), ('5:9', False)])
def test_steps_that_the_run_does_not_have(steps, warned, tmp_path, caplog):
    make_folders(tmp_path / 'Train', 4, seed=1)
    make_folders(tmp_path / 'Test', 2, seed=2)
    options = {'train__epochs': 2, 'train__batch_size': 4, 'train__profile': steps}
    train_and_evaluate(toy_config(tmp_path, **options), tmp_path / 'w')
    sentence = 'begins with step 6, and the last one was 5'
    assert (sentence in caplog.text) == warned
    assert (tmp_path / 'w/profile').exists() != warned

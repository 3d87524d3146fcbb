"""Saving and restoring through Orbax: what is kept, exactness, damage, full disks."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers import TESTS, run_code

from tlflax.models.base.modules import Variables
from tlflax.train.optim import build
from tlflax.utils import trees
from tlflax.utils.errors import UserError
from tlflax.utils.labels import label_tree
from tlflax.workdir import recovery
from tlflax.workdir.checkpoints import NOTHING, Checkpoints

PARAMS = {'head': {'kernel': jnp.arange(6.0).reshape(2, 3), 'bias': jnp.ones(3)}}


def make_state(scale=1.0):
    labels = label_tree(PARAMS, (('head/.*', 'head'),))
    tx = build.build(labels, name='adam', learning_rates={'head': 0.1})
    params = {'head': {k: v * scale for k, v in PARAMS['head'].items()}}
    _, opt_state = tx.update(params, tx.init(params), params)
    return params, opt_state


def save(checkpoints, step, rank, scale=1.0, **meta):
    params, opt_state = make_state(scale)
    checkpoints.save(step, trained=Variables(params, {}), opt_state=opt_state, meta=meta, rank=rank)


def steps_on_disk(folder):
    return {int(path.name) for path in folder.iterdir() if path.name.isdigit()}


def test_keeps_the_latest_the_best_and_the_best_before(tmp_path):
    with Checkpoints(tmp_path / 'c') as saved:
        for step, rank in ((5, 0), (10, 1), (20, 2), (30, -1), (40, -1)):
            save(saved, step, rank)
        saved.wait()
        assert steps_on_disk(tmp_path / 'c') == {10, 20, 40}
        assert (saved.find('best'), saved.find('last'), saved.find('20')) == (20, 40, 20)
        saved.drop_former()
        assert steps_on_disk(tmp_path / 'c') == {20, 40}


def test_first_save_without_improvement_is_still_found(tmp_path):
    with Checkpoints(tmp_path / 'c') as saved:
        save(saved, 3, -1)
        saved.wait()
        assert saved.find('best') == saved.find('last') == 3


def test_restores_bit_for_bit_with_metadata(tmp_path):
    params, opt_state = make_state(1 / 3)
    with Checkpoints(tmp_path / 'c') as saved:
        meta = {'a': [1, float('nan')], 'b': {'c': float('-inf'), 'd': None}, 'e': 'é'}
        average, _ = make_state(1 / 7)
        trained = Variables(params, {})
        saved.save(5, trained=trained, opt_state=opt_state, ema=average, meta=meta, rank=1)
    with Checkpoints(tmp_path / 'c', read_only=True) as saved:
        back, back_opt, back_ema = saved.state(5, trained, opt_state, average)
        for averaged in (back_ema, saved.evaluated(5, trained).params):
            np.testing.assert_array_equal(averaged['head']['bias'], average['head']['bias'])
        for path, leaf in trees.flatten(back.params).items():
            np.testing.assert_array_equal(leaf, trees.flatten(params)[path])
        mu = back_opt.inner_states['head'].inner_state[0][0].mu
        expected = opt_state.inner_states['head'].inner_state[0][0].mu
        np.testing.assert_array_equal(mu['head']['kernel'], expected['head']['kernel'])
        meta = saved.meta(5)
        assert meta['a'] == [1, None]
        assert meta['b'] == {'c': None, 'd': None}
        assert meta['e'] == 'é'
        assert saved.frozen(5, Variables(params, {})) == NOTHING


def test_saved_arrays_may_be_donated_at_once(tmp_path):
    params, opt_state = make_state()
    with Checkpoints(tmp_path / 'c') as saved:
        saved.save(1, trained=Variables(params, {}), opt_state=opt_state, meta={}, rank=1)
        for leaf in trees.flatten(params).values():
            leaf.delete()  # what donation does
    with Checkpoints(tmp_path / 'c', read_only=True) as saved:
        like = make_state()[0]
        np.testing.assert_array_equal(
            saved.evaluated(1, Variables(like, {})).params['head']['bias'], np.ones(3)
        )


def test_a_step_is_never_deleted_for_the_same_step(tmp_path):
    with Checkpoints(tmp_path / 'c') as saved:
        save(saved, 5, 1, scale=1.0)
        with pytest.raises(UserError, match='already exists'):
            save(saved, 5, -1, scale=2.0)
        assert saved.best() == 5
        np.testing.assert_array_equal(
            saved.evaluated(5, Variables(PARAMS, {})).params['head']['bias'], np.ones(3)
        )


def like():
    params, opt_state = make_state()
    return Variables(params, {}), opt_state, {}


def damage(folder, step, item):
    """Changes an item of a step: metadata by a bit, arrays to those of another step."""
    path = folder / str(step) / item
    if item == 'meta':
        flip(next(p for p in path.iterdir() if p.is_file()), 40)
        return
    shutil.rmtree(path)
    shutil.copytree(folder / ('30' if step != 30 else '10') / item, path)


def flip(path, at, bit=2):
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def make_steps(folder):
    """The first epoch, the best one, and the last."""
    with Checkpoints(folder) as saved:
        for step, rank in ((10, 1), (20, 2), (30, -1)):
            save(saved, step, rank, scale=float(step))


@pytest.mark.parametrize('item', ['params', 'opt_state', 'meta'])
@pytest.mark.parametrize(('damaged', 'resumed'), [(30, 20), (20, 10), (10, 30)])
def test_resumes_from_the_newest_state_that_leads_to_the_same_end(
    tmp_path, caplog, item, damaged, resumed
):
    make_steps(tmp_path / 'c')
    damage(tmp_path / 'c', damaged, item)
    if damaged == 20 and item == 'opt_state':  # of the best, only the parameters are needed
        resumed = 30
    with Checkpoints(tmp_path / 'c') as saved:
        found = recovery.newest(saved, lambda meta: like())
        assert found.step == resumed
        np.testing.assert_array_equal(found.trained.params['head']['bias'], resumed * np.ones(3))
        aside = {int(path.name) for path in tmp_path.glob('damaged/*')}
        unreadable = {10} if (damaged, item) == (10, 'meta') else set()
        assert aside == {step for step in (20, 30) if step > resumed} | unreadable
        warnings = [r.getMessage() for r in caplog.records if r.levelname == 'WARNING']
        assert bool(aside) == any(f'step {damaged}' in line for line in warnings)
        for step in (20, 30):  # the same steps can be saved again
            if step > resumed:
                save(saved, step, -1)


def test_no_state_that_leads_to_the_same_end(tmp_path):
    make_steps(tmp_path / 'c')
    for step in (10, 20):
        damage(tmp_path / 'c', step, 'params')
    with (
        Checkpoints(tmp_path / 'c') as saved,
        pytest.raises(UserError, match='no state is left'),
    ):
        recovery.newest(saved, lambda meta: like())
    assert steps_on_disk(tmp_path / 'c') == {10, 20, 30}


def test_no_flipped_bit_gives_other_parameters(tmp_path):
    make_steps(tmp_path / 'c')
    files = sorted(p for p in (tmp_path / 'c' / '20').rglob('*') if p.is_file())
    rng = np.random.default_rng(0)
    detected = 0
    for _ in range(60):
        path = files[rng.integers(len(files))]
        whole = path.read_bytes()
        flip(path, rng.integers(len(whole)), rng.integers(8))
        try:
            with Checkpoints(tmp_path / 'c', read_only=True) as saved:
                trained = saved.evaluated(saved.find('best'), Variables(PARAMS, {}))
        except UserError:
            detected += 1
        else:
            np.testing.assert_array_equal(trained.params['head']['bias'], 20 * np.ones(3))
        path.write_bytes(whole)
    assert detected > 3


@pytest.mark.parametrize('item', ['params', 'meta'])
def test_damage_is_an_error_where_it_decides_the_answer(tmp_path, item):
    make_steps(tmp_path / 'c')
    damage(tmp_path / 'c', 20, item)
    with (
        Checkpoints(tmp_path / 'c', read_only=True) as saved,
        pytest.raises(UserError, match=r'step 20 (is damaged|cannot be read)'),
    ):
        saved.evaluated(saved.find('best'), Variables(PARAMS, {}))


def test_a_best_step_that_is_gone_is_not_replaced_by_another(tmp_path):
    make_steps(tmp_path / 'c')
    shutil.rmtree(tmp_path / 'c' / '20')
    with (
        Checkpoints(tmp_path / 'c', read_only=True) as saved,
        pytest.raises(UserError, match='step 20, the best before step 30, is missing'),
    ):
        saved.find('best')


def test_missing_folder_and_damaged_step(tmp_path):
    with pytest.raises(UserError, match='no checkpoint'):
        Checkpoints(tmp_path / 'none', read_only=True)
    with Checkpoints(tmp_path / 'c') as saved:
        save(saved, 5, 1)
    shutil.rmtree(tmp_path / 'c' / '5' / 'params')
    with (
        Checkpoints(tmp_path / 'c', read_only=True) as saved,
        pytest.raises(UserError, match='step 5 cannot be read'),
    ):
        saved.evaluated(5, Variables(PARAMS, {}))


def test_a_folder_in_which_a_training_deletes_steps_is_looked_at_again(tmp_path, monkeypatch):
    with Checkpoints(tmp_path / 'c') as checkpoints:
        save(checkpoints, 1, 0)
    real, failures = ocp.CheckpointManager, iter([True, True, False])

    def racing(*args, **options):
        if next(failures):
            raise FileNotFoundError(2, 'gone', str(tmp_path / 'c/0'))
        return real(*args, **options)

    monkeypatch.setattr(ocp, 'CheckpointManager', racing)
    with Checkpoints(tmp_path / 'c', read_only=True) as checkpoints:
        assert checkpoints.steps() == [1]


def test_another_models_parameters_are_refused(tmp_path):
    with Checkpoints(tmp_path / 'c') as saved:
        save(saved, 5, 1)
    other = {'head': {'kernel': jnp.zeros((2, 4)), 'bias': jnp.zeros(4)}}
    with (
        Checkpoints(tmp_path / 'c', read_only=True) as saved,
        pytest.raises(UserError, match='another model'),
    ):
        saved.evaluated(5, Variables(other, {}))


FULL_DISK = """
import sys; sys.path[:0] = [{tests!r}, {tests!r} + "/workdir"]
import resource, signal
from pathlib import Path
import numpy as np
from tlflax.workdir.checkpoints import Checkpoints
from tlflax.models.base.modules import Variables
from tlflax.utils.errors import UserError
import test_checkpoints as t
with Checkpoints(Path({folder!r})) as saved:
    t.save(saved, 1, 1)
    saved.wait()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    try:
        noise = np.random.default_rng(0).normal(size=100_000)
        saved.save(2, trained=Variables({{'x': noise}}, {{}}), opt_state={{}}, meta={{}}, rank=2)
        saved.wait()
    except UserError as error:
        print(error)
"""


def test_disk_full_is_one_sentence_and_the_older_step_stands(tmp_path):
    script = FULL_DISK.format(tests=str(TESTS), folder=str(tmp_path / 'c'))
    done = run_code(script)
    assert 'cannot be saved' in done.stdout, done.stderr
    with Checkpoints(tmp_path / 'c', read_only=True) as saved:
        assert saved.find('last') == 1
        np.testing.assert_array_equal(
            saved.evaluated(1, Variables(PARAMS, {})).params['head']['bias'], np.ones(3)
        )


def test_metadata_of_released_versions_is_read(tmp_path):
    """They wrote a NaN as {'float': 'nan'}."""
    params, opt_state = make_state()
    with Checkpoints(tmp_path / 'c') as saved:
        meta = {'baseline': {'float': 'nan'}, 'best': [{'float': '-inf'}]}
        saved.save(1, trained=Variables(params, {}), opt_state=opt_state, meta=meta, rank=1)
    with Checkpoints(tmp_path / 'c', read_only=True) as saved:
        assert np.isnan(saved.meta(1)['baseline'])
        assert saved.meta(1)['best'] == [float('-inf')]


RELEASED = {
    'config': {}, 'classes': ['a', 'b'], 'preprocess': 'caffe', 'weights_digest': 'w',
    'data_digest': 'd', 'position': {'epoch': 1}, 'record': {'epoch': 1}, 'wall_seconds': 1.5,
    'rank': 1,
}  # fmt: skip


def rewrite(folder, step, content):
    """Replaces the metadata of a step."""
    (folder / str(step) / 'meta' / 'metadata').write_text(content)


def test_metadata_without_a_digest_is_taken_if_it_is_whole(tmp_path):
    with Checkpoints(tmp_path / 'c') as saved:
        save(saved, 1, 1)
    rewrite(tmp_path / 'c', 1, json.dumps(RELEASED))
    with Checkpoints(tmp_path / 'c', read_only=True) as saved:
        assert saved.meta(1) == RELEASED
        assert saved.find('best') == 1


WRONG = [json.dumps({**RELEASED, name: None}) for name in RELEASED]
WRONG += [json.dumps({k: v for k, v in RELEASED.items() if k != name}) for name in RELEASED]
WRONG += [json.dumps({**RELEASED, 'digests': 'x'}), json.dumps({**RELEASED, 'split_digests': 3})]
WRONG += ['', 'null', '[]', '{}', '3', '"text"', json.dumps(RELEASED)[:50], '[' * 100_000]


@pytest.mark.parametrize('content', WRONG, ids=range(len(WRONG)))
def test_damaged_metadata_is_a_sentence_and_training_goes_on_before_it(tmp_path, content):
    with Checkpoints(tmp_path / 'c') as saved:
        save(saved, 1, 1)
        save(saved, 2, -1)
    rewrite(tmp_path / 'c', 2, content)
    with (
        Checkpoints(tmp_path / 'c', read_only=True) as saved,
        pytest.raises(UserError, match=r'step 2 (is damaged|cannot be read)') as caught,
    ):
        saved.meta(2)
    assert '\n' not in str(caught.value)
    with Checkpoints(tmp_path / 'c') as saved:
        params, opt_state = make_state()
        found = recovery.newest(saved, lambda meta: (Variables(params, {}), opt_state, {}))
    assert found is not None
    assert found.step == 1
    assert steps_on_disk(tmp_path / 'damaged') == {2}


@pytest.mark.parametrize(
    'content', ['[]', '3', '{"metrics": "x"}', '{"init_timestamp_nsecs": "x"}']
)
def test_damaged_notes_of_orbax_are_a_sentence_and_are_not_needed(tmp_path, content):
    with Checkpoints(tmp_path / 'c') as saved:
        save(saved, 1, 1)
    notes = tmp_path / 'c' / '1' / '_CHECKPOINT_METADATA'
    notes.write_text(content)
    for read_only in (False, True):
        with pytest.raises(UserError, match='delete what is damaged of the files _CHECK') as caught:
            Checkpoints(tmp_path / 'c', read_only=read_only)
        assert '\n' not in str(caught.value)
    notes.unlink()
    with Checkpoints(tmp_path / 'c', read_only=True) as saved:
        saved.evaluated(1, Variables(PARAMS, {}))

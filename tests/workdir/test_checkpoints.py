"""Saving and restoring through Orbax: what is kept, exactness, damage, full disks."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TESTS, run_code

from tlflax.models.base.modules import Variables
from tlflax.train import optim
from tlflax.utils import trees
from tlflax.utils.errors import UserError
from tlflax.utils.labels import label_tree
from tlflax.workdir.checkpoints import NOTHING, Checkpoints

PARAMS = {'head': {'kernel': jnp.arange(6.0).reshape(2, 3), 'bias': jnp.ones(3)}}


def make_state(scale=1.0):
    labels = label_tree(PARAMS, (('head/.*', 'head'),))
    tx = optim.build(labels, name='adam', learning_rates={'head': 0.1})
    params = {'head': {k: v * scale for k, v in PARAMS['head'].items()}}
    _, opt_state = tx.update(params, tx.init(params), params)
    return params, opt_state


def save(checkpoints, step, rank, scale=1.0, **meta):
    params, opt_state = make_state(scale)
    checkpoints.save(step, trained=Variables(params, {}), opt_state=opt_state, meta=meta, rank=rank)


def test_keeps_the_best_and_the_latest(tmp_path):
    with Checkpoints(tmp_path / 'c') as saved:
        for step, rank in ((10, 1), (20, 2), (30, -1), (40, -1)):
            save(saved, step, rank)
        saved.wait()
        assert {int(p.name) for p in (tmp_path / 'c').iterdir() if p.name.isdigit()} == {20, 40}
        assert (saved.find('best'), saved.find('last'), saved.find('20')) == (20, 40, 20)


def test_first_save_without_improvement_is_still_found(tmp_path):
    with Checkpoints(tmp_path / 'c') as saved:
        save(saved, 3, -1)
        saved.wait()
        assert saved.find('best') == saved.find('last') == 3


def test_restores_bit_for_bit_with_metadata(tmp_path):
    params, opt_state = make_state(1 / 3)
    with Checkpoints(tmp_path / 'c') as saved:
        meta = {'a': [1, float('nan')], 'b': {'c': float('-inf'), 'd': None}, 'e': 'é'}
        saved.save(5, trained=Variables(params, {}), opt_state=opt_state, meta=meta, rank=1)
    with Checkpoints(tmp_path / 'c', read_only=True) as saved:
        back, back_opt = saved.state(5, Variables(params, {}), opt_state)
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
            saved.trained(1, Variables(like, {})).params['head']['bias'], np.ones(3)
        )


def test_same_step_again_replaces(tmp_path):
    with Checkpoints(tmp_path / 'c') as saved:
        save(saved, 5, -1, scale=1.0)
        save(saved, 5, 1, scale=2.0)
        saved.wait()
        np.testing.assert_array_equal(
            saved.trained(5, Variables(PARAMS, {})).params['head']['bias'], 2 * np.ones(3)
        )


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
        saved.trained(5, Variables(PARAMS, {}))


def test_another_models_parameters_are_refused(tmp_path):
    with Checkpoints(tmp_path / 'c') as saved:
        save(saved, 5, 1)
    other = {'head': {'kernel': jnp.zeros((2, 4)), 'bias': jnp.zeros(4)}}
    with (
        Checkpoints(tmp_path / 'c', read_only=True) as saved,
        pytest.raises(UserError, match='another model'),
    ):
        saved.trained(5, Variables(other, {}))


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
            saved.trained(1, Variables(PARAMS, {})).params['head']['bias'], np.ones(3)
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

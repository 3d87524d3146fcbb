"""A function for many members at once: by `jax.vmap`, or one by one on a CPU."""

import gc
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from tlflax.sweep import per_member


@pytest.fixture
def mesh():
    return Mesh(np.array(jax.devices()[:1]), ('data',))


def step(state, shared, rate):
    """An update that depends on everything, with an optional leaf as `steps.OnDevice` has."""
    moved = jnp.tanh(state['w'] @ shared['x']) * rate
    return {'w': state['w'] + moved, 'count': state['count'] + 1}, moved.sum()


AXES = ({'w': 0, 'count': None}, None, 0)


def operands(count):
    rng = np.random.default_rng(0)
    state = {'w': rng.normal(size=(count, 5, 5)).astype(np.float32), 'count': jnp.int32(3)}
    shared = {'x': jnp.asarray(rng.normal(size=(5, 5)), jnp.float32), 'weight': None}
    return state, shared, np.linspace(0.1, 1, count, dtype=np.float32)


def test_results_are_those_of_vmap_and_each_alone_to_the_last_bit(mesh):
    args = operands(5)
    state, total = per_member.members(step, AXES, mesh)(*args)
    expected = jax.vmap(step, in_axes=AXES)(*args)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), (state, total), expected)
    for i in range(5):
        own = ({'w': args[0]['w'][i], 'count': args[0]['count']}, args[1], args[2][i])
        alone, own_total = jax.jit(step)(*own)
        np.testing.assert_array_equal(state['w'][i], alone['w'])
        np.testing.assert_array_equal(total[i], own_total)
        assert state['count'][i] == 4


def test_any_number_of_members_is_one_program(mesh):
    traced = []

    def counted(*args):
        traced.append(None)
        return step(*args)

    function = per_member.members(counted, AXES, mesh)
    assert per_member.one_by_one(mesh)
    for count in (5, 3, 1):
        function(*operands(count))
    assert len(traced) == 1


def test_an_error_of_one_member_is_raised(mesh):
    def fails(x):
        def check(value):
            if value == 2:
                raise ZeroDivisionError
            return value

        return jax.pure_callback(check, jax.ShapeDtypeStruct((), jnp.float32), x)

    with pytest.raises(Exception, match='ZeroDivisionError'):
        per_member.members(fails, (0,), mesh)(np.arange(4, dtype=np.float32))


def test_a_dropped_function_leaves_neither_threads_nor_arrays_nor_programs(mesh):
    def running():
        return [thread for thread in threading.enumerate() if thread.name.startswith('members')]

    args, client = operands(5), jax.devices()[0].client
    counts = []
    for _ in range(4):
        function = per_member.members(lambda *args: step(*args), AXES, mesh)
        function(*args)
        assert running()
        del function
        gc.collect()
        deadline = time.monotonic() + 10
        while running() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not running()
        counts.append((len(jax.live_arrays()), len(client.live_executables())))
    assert len(set(counts)) == 1

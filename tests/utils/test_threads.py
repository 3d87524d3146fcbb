"""One compiled program on several threads."""

import gc
import threading
import time
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tlflax.utils import cpu
from tlflax.utils.threads import ThreadedProgram


@pytest.fixture(autouse=True)
def _cores(monkeypatch):
    monkeypatch.setattr(cpu, 'cores', lambda: 2)


def threads(name):
    return [thread for thread in threading.enumerate() if thread.name.startswith(name)]


def wait_until_none(name):
    deadline = time.monotonic() + 10
    while threads(name) and time.monotonic() < deadline:
        time.sleep(0.01)
    return threads(name)


def double(x):
    return {'y': 2 * x}


def calls(count, size=3):
    return [(np.full(size, i, np.float32),) for i in range(count)]


def test_results_come_in_the_order_of_the_calls():
    program = ThreadedProgram(double, name='ordered')
    results = program.map(calls(7))
    np.testing.assert_array_equal([r['y'][0] for r in results], 2 * np.arange(7))
    assert len(threads('ordered')) == 2


def test_shapes_are_enough_to_compile():
    traced = []

    def function(x):
        traced.append(x.shape)
        return x

    program = ThreadedProgram(function, name='ahead')
    program.begin_to_compile((jax.ShapeDtypeStruct((3,), np.float32),))
    program.map(calls(4, 3))
    assert traced == [(3,)]


def test_each_shape_is_compiled_once():
    traced = []

    def function(x):
        traced.append(x.shape)
        return x

    program = ThreadedProgram(function, name='shapes')
    for size in (3, 4, 3):
        program.map([*calls(4, size), *calls(1, 5)])
    assert traced == [(3,), (5,), (4,)]


def test_a_single_call_starts_no_thread():
    program = ThreadedProgram(double, name='single')
    assert program.map(calls(1))[0]['y'].shape == (3,)
    assert not threads('single')


def test_an_error_is_raised_and_the_program_stays_usable():
    def check(value):
        if value == 2:
            raise ZeroDivisionError
        return value

    def function(x):
        return jax.pure_callback(check, jax.ShapeDtypeStruct((), jnp.float32), x)

    program = ThreadedProgram(function, name='errors')
    with pytest.raises(Exception, match='ZeroDivisionError'):
        program.map([(np.float32(i),) for i in range(4)])
    assert float(program.map([(np.float32(1),), (np.float32(3),)])[1]) == 3


def test_threads_end_and_memory_is_freed_with_the_last_reference():
    held = jnp.ones(1000)
    gc.collect()  # what other tests left in cycles
    arrays = len(jax.live_arrays())
    programs = []
    for _ in range(5):
        program = ThreadedProgram(lambda x: x + 1, name='dropped')
        program.map([(held,), (held,)])
        programs.append(weakref.ref(program))
        assert threads('dropped')
        del program
        gc.collect()
        assert not wait_until_none('dropped')
    assert not any(reference() for reference in programs)
    assert len(jax.live_arrays()) == arrays

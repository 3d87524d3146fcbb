"""Heads: their first variables, and what is remembered of them."""

import jax
import numpy as np
import pytest

from tlflax.models import heads, standard_heads
from tlflax.models.base import modules
from tlflax.models.base.modules import Variables
from tlflax.models.standard_heads import HEADS
from tlflax.utils.errors import UserError

SHAPE = (5, 4, 6)
OPTIONS = {'units': 7, 'dropout': 0.5}


@pytest.mark.parametrize('name', HEADS)
def test_first_variables_are_those_of_one_operation_after_the_other(name):
    """To the bit: a seed means the same head in every version."""
    key = jax.random.fold_in(jax.random.key(3), 1)
    alone = modules.init(heads.builder(name, SHAPE, 3, **OPTIONS), key)
    together = heads.init(name, SHAPE, 3, key, **OPTIONS)
    assert isinstance(together, Variables)
    assert jax.tree.structure(alone) == jax.tree.structure(together)
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
        assert one.dtype == other.dtype


def test_the_static_half_is_made_once():
    one = heads.static('conv', SHAPE, 3, **OPTIONS)
    assert heads.static('conv', SHAPE, 3, **OPTIONS) is one
    assert heads.static('conv', SHAPE, 4, **OPTIONS) is not one


def test_a_head_that_does_not_fit_is_refused_again():
    for _ in range(2):
        with pytest.raises(UserError, match='at least 4x4'):
            heads.static('conv', (3, 3, 6), 3, **OPTIONS)
        with pytest.raises(UserError, match='at least 4x4'):
            heads.init('conv', (3, 3, 6), 3, jax.random.key(0), **OPTIONS)


def test_tracing_for_these_devices_leaves_other_devices_out():
    """And changes no value; exports need the way of other devices."""
    static = heads.static('conv', SHAPE, 3, **OPTIONS)
    variables = heads.init('conv', SHAPE, 3, jax.random.key(0), **OPTIONS)
    x = jax.random.normal(jax.random.key(1), (2, *SHAPE))

    def here(variables, x):
        with standard_heads.for_these_devices():
            return static.apply(variables, x)[0]

    def anywhere(variables, x):
        return static.apply(variables, x)[0]

    assert 'platform_index' in str(jax.make_jaxpr(anywhere)(variables, x))
    assert 'platform_index' not in str(jax.make_jaxpr(here)(variables, x))
    expected = np.asarray(jax.jit(anywhere)(variables, x))
    np.testing.assert_array_equal(np.asarray(jax.jit(here)(variables, x)), expected)

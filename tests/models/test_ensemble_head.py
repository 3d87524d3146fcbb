"""The head of several branches, against NumPy in float64, and its name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from tlflax.models import ensemble_head, heads
from tlflax.models.linear.representations import Part
from tlflax.utils.errors import UserError

BRANCHES = (
    (Part(0, 4, 'row'),),
    (Part(0, 4, 'power', 0.5**0.5), Part(4, 9, 'raw')),
)
NAME = ensemble_head.name_of(BRANCHES)


def test_a_name_says_all():
    assert NAME == 'ensemble:0:4 row|0:4 power*0.7071067811865476,4:9 raw'
    assert ensemble_head.parse(NAME) == BRANCHES


@pytest.mark.parametrize('text', ['', '0:4', '0:4 cube', '0:4 raw,', '0:4 raw||', '-1:4 raw'])
def test_other_names_are_refused(text):
    with pytest.raises(UserError, match='is not a branch of an ensemble'):
        ensemble_head.parse(f'ensemble:{text}')


def test_columns_that_do_not_exist_are_refused():
    with pytest.raises(UserError, match='the branches read 9 columns'):
        heads.static(NAME, (8,), 3, units=1, dropout=0.0)


def test_it_is_the_logarithm_of_the_mean_of_probabilities():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(7, 9))
    rows = [
        x[:, :4] / np.linalg.norm(x[:, :4], axis=1, keepdims=True),
        np.concatenate([0.5**0.5 * unit_root(x[:, :4]), x[:, 4:]], 1),
    ]
    shares = np.array([0.25, 0.75])
    head, total = {'log_weight': jnp.asarray(np.log(shares), jnp.float32)}, 0
    for number, (row, share) in enumerate(zip(rows, shares, strict=True)):
        kernel, bias = rng.normal(size=(row.shape[1], 3)), rng.normal(size=3)
        head[f'branch{number}'] = {'kernel': jnp.float32(kernel), 'bias': jnp.float32(bias)}
        total = total + share * np.exp(log_softmax(row @ kernel + bias, axis=1))
    static = heads.static(NAME, (9,), 3, units=1, dropout=0.0)
    first = heads.init(NAME, (9,), 3, jax.random.key(0), units=1, dropout=0.0)
    assert jax.tree.structure(first.params) == jax.tree.structure(head)
    logits = static.apply(first._replace(params=head), jnp.float32(x))[0]
    np.testing.assert_allclose(logits, np.log(total), atol=1e-5)


def unit_root(rows):
    root = np.sign(rows) * np.sqrt(np.abs(rows))
    return root / np.linalg.norm(root, axis=1, keepdims=True)

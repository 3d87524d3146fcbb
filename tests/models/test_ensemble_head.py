"""The head of several branches, against NumPy in float64, and its name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from tlflax.models import ensemble_head, heads
from tlflax.models.ensemble_head import Branch
from tlflax.models.linear.representations import Part
from tlflax.utils.errors import UserError

BRANCHES = (
    Branch((Part(0, 4, 'row'),)),
    Branch((Part(0, 4, 'power', 0.5**0.5), Part(4, 9, 'raw'))),
)
OTHERS = (
    Branch((Part(0, 4, 'row'),), 'knn', 3, (20,)),
    Branch((Part(1, 9, 'raw', 0.25),), 'mlp', 5, (2, 2, 2)),
)
NAME = ensemble_head.name_of(BRANCHES)


def test_a_name_says_all():
    assert NAME == 'ensemble:0:4 row|0:4 power*0.7071067811865476,4:9 raw'
    assert ensemble_head.parse(NAME) == BRANCHES
    name = ensemble_head.name_of(OTHERS)
    assert name == 'ensemble:knn:3:20 0:4 row|mlp:5:2x2x2 1:9 raw*0.25'
    assert ensemble_head.parse(name) == OTHERS


@pytest.mark.parametrize(
    'text', ['', '0:4', '0:4 cube', '0:4 raw,', '0:4 raw||', '-1:4 raw', 'rnn:3:20 0:4 raw']
)
def test_other_names_are_refused(text):
    with pytest.raises(UserError, match='is not a branch of an ensemble'):
        ensemble_head.parse(f'ensemble:{text}')


def test_columns_that_do_not_exist_are_refused():
    with pytest.raises(UserError, match='the branches read 9 columns'):
        heads.static(NAME, (8,), 3, units=1, dropout=0.0)


def test_columns_that_do_not_have_the_shape_are_refused():
    with pytest.raises(UserError, match=r'4 columns do not have the shape \(2, 3\)'):
        heads.static('ensemble:mlp:5:2x3 0:4 raw', (9,), 3, units=1, dropout=0.0)


def test_branches_that_are_not_linear():
    rng = np.random.default_rng(1)
    x, bank = rng.normal(size=(7, 9)), rng.normal(size=(20, 4))
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    label, name = np.arange(20) % 3, ensemble_head.name_of(OTHERS)
    first = heads.init(name, (9,), 3, jax.random.key(0), units=1, dropout=0.0)
    hidden = rng.normal(size=(8, 5))
    logits = rng.normal(size=(5, 3))
    params = {
        'log_weight': jnp.log(jnp.array([0.5, 0.5])),
        'branch0': {
            'rows': jnp.float32(bank),
            'targets': jnp.eye(3)[label],
            'factor': jnp.float32(2.0),
        },
        'branch1': {
            'factor': jnp.float32(0.5),
            'head': {
                'hidden': {'kernel': jnp.float32(hidden), 'bias': jnp.zeros(5)},
                'logits': {'kernel': jnp.float32(logits), 'bias': jnp.zeros(3)},
            },
        },
    }
    assert jax.tree.structure(first.params) == jax.tree.structure(params)
    static = heads.static(name, (9,), 3, units=1, dropout=0.0)
    found = static.apply(first._replace(params=params), jnp.float32(x))[0]

    cosine = (x[:, :4] / np.linalg.norm(x[:, :4], axis=1, keepdims=True)) @ bank.T
    votes = np.zeros((7, 3))
    for row, similar in enumerate(cosine):
        for near in np.argsort(-similar)[:3]:
            votes[row, label[near]] += np.exp(similar[near] / 0.07)
    votes /= votes.sum(1, keepdims=True)
    knn = log_softmax(2 * np.log((1 - 1e-6) * votes + 1e-6 / 3), axis=1)
    mlp = log_softmax(0.5 * np.maximum(0.25 * x[:, 1:] @ hidden, 0) @ logits, axis=1)
    np.testing.assert_allclose(found, np.log((np.exp(knn) + np.exp(mlp)) / 2), atol=1e-4)


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

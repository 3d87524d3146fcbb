"""Labels of parameters: rules, partition, table."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import same_leaves

from tlflax.utils.errors import UserError
from tlflax.utils.labels import format_table, label_tree, partition
from tlflax.utils.trees import merge

RULES = (('backbone/.*', 'frozen'), ('head/.*', 'head'))


def test_first_matching_pattern_gives_the_label(params):
    rules = (
        ('backbone/block5_.*/kernel', 'tuned'),
        ('backbone/.*', 'frozen'),
        (r'.*/bias', 'biases'),
        ('head/.*', 'head'),
    )
    labels = label_tree(params, rules)
    assert labels == {
        'backbone': {
            'block1_conv1': {'kernel': 'frozen', 'bias': 'frozen'},
            'block5_conv1': {'kernel': 'tuned', 'bias': 'frozen'},
        },
        'head': {
            'dense': {'kernel': 'head', 'bias': 'biases'},
            'predictions': {'kernel': 'head', 'bias': 'biases'},
        },
    }


def refused(params, rules):
    with pytest.raises(UserError) as caught:
        label_tree(params, rules)
    assert caught.value.where == 'config.optim.labels'
    return str(caught.value)


@pytest.mark.parametrize(
    ('pattern', 'near'),
    [
        ('backbon/.*', 'backbone/.*'),
        ('backbone/block6_conv1/.*', 'backbone/block5_conv1/.*'),
        ('backbone/block5_conv1/kernle', 'backbone/block5_conv1/kernel'),
        ('block5_conv1', 'backbone/block5_conv1/bias'),  # part of a path is not enough
        ('dense/kernel', 'head/dense/kernel'),
        ('conv1', 'backbone/block1_conv1/bias'),
        ('backbone/block5', 'backbone/block5_conv1/bias'),
        ('heads/.*', 'head/.*'),
        ('zzz', 'backbone/.*'),
    ],
)
def test_a_pattern_that_matches_nothing_names_near_misses(params, pattern, near):
    message = refused(params, ((pattern, 'tuned'), *RULES))
    assert repr(pattern) in message
    assert f'near misses: {near!r}' in message


def test_a_pattern_that_comes_too_late_is_named(params):
    message = refused(params, (('.*', 'head'), ('backbone/.*', 'frozen')))
    assert "'backbone/.*'" in message
    assert 'earlier' in message


def test_an_uncovered_parameter_is_named(params):
    message = refused(params, (('backbone/.*', 'frozen'), ('head/dense/.*', 'head')))
    assert "'head/predictions/bias'" in message
    assert "'head/predictions/kernel'" in message
    assert 'head/dense' not in message


def test_everything_frozen_is_refused(params):
    assert "'frozen'" in refused(params, (('.*', 'frozen'),))


def test_an_invalid_regular_expression_is_named(params):
    message = refused(params, (('head/(', 'head'), ('.*', 'frozen')))
    assert "'head/('" in message
    assert 'regular expression' in message


def test_partition_and_merge(params):
    labels = label_tree(params, RULES)
    trainable, frozen = partition(params, labels)
    assert set(trainable) == {'head'}
    assert set(frozen) == {'backbone'}
    assert same_leaves(merge(trainable, frozen), params)
    assert same_leaves(merge(frozen, trainable), params)


def test_partition_leaves_no_empty_branches(params):
    labels = label_tree(params, (('.*/kernel', 'tuned'), ('.*/bias', 'frozen')))
    trainable, frozen = partition(params, labels)
    assert set(trainable['head']['dense']) == {'kernel'}
    assert set(frozen['head']['dense']) == {'bias'}
    assert same_leaves(merge(trainable, frozen), params)
    all_trainable, nothing = partition(params, label_tree(params, (('.*', 'x'),)))
    assert nothing == {}
    assert same_leaves(all_trainable, params)


def test_merge_inside_jit_and_grad(params):
    """Gradients are those of the trainable subtree alone."""
    trainable, frozen = partition(params, label_tree(params, RULES))

    def loss(trainable):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(merge(trainable, frozen)))

    grads = jax.jit(jax.grad(loss))(trainable)
    assert set(grads) == {'head'}
    np.testing.assert_allclose(
        grads['head']['dense']['kernel'], 2 * params['head']['dense']['kernel'], rtol=1e-6
    )


def test_table_counts_tensors_parameters_and_optimizer_bytes(params):
    rules = (('backbone/.*', 'frozen'), ('head/.*/bias', 'head'), ('head/.*', 'head'))
    lines = format_table(params, rules, {'frozen': 0, 'head': 2 * 4 * (8 * 5 + 5 + 5 * 3 + 3) + 4})
    rows = [re.split(r'\s{2,}', line.strip()) for line in lines.splitlines()]
    assert rows == [
        ['pattern', 'label', 'tensors', 'parameters', 'optimizer bytes'],
        ['backbone/.*', 'frozen', '4', f'{3 * 3 * 3 * 4 + 4 + 3 * 3 * 4 * 8 + 8:,}', '0'],
        ['head/.*/bias', 'head', '2', '8', '508'],
        ['head/.*', 'head', '2', '55', 'as above'],
        ['all', '8', '471', '508'],
    ]

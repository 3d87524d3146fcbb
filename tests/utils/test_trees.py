"""Trees of parameters: paths, merge, strict comparison, digest."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import same_leaves

from tlflax.utils import trees
from tlflax.utils.errors import UserError


def test_flatten_names_every_leaf_by_its_path(params):
    flat = trees.flatten(params)
    assert set(flat) == {
        f'{layer}/{name}'
        for layer in (
            'backbone/block1_conv1',
            'backbone/block5_conv1',
            'head/dense',
            'head/predictions',
        )
        for name in ('kernel', 'bias')
    }
    assert flat['head/dense/kernel'] is params['head']['dense']['kernel']
    assert same_leaves(trees.unflatten(flat), params)


def test_flatten_works_on_labels_and_on_abstract_arrays(params):
    assert trees.flatten({'a': {'b': 'frozen'}}) == {'a/b': 'frozen'}
    abstract = jax.eval_shape(lambda: params)
    assert trees.flatten(abstract)['head/dense/bias'].shape == (5,)


@pytest.mark.parametrize('flat', [{'a': 1, 'a/b': 2}, {'a/b': 2, 'a': 1}, {'a/b/c': 1, 'a/b': 2}])
def test_unflatten_refuses_a_leaf_that_is_also_a_branch(flat):
    with pytest.raises(ValueError, match='both a leaf and a branch'):
        trees.unflatten(flat)


def test_merge_joins_what_was_split(params):
    head, backbone = {'head': params['head']}, {'backbone': params['backbone']}
    assert same_leaves(trees.merge(head, backbone), params)
    kernels = {p: leaf for p, leaf in trees.flatten(params).items() if p.endswith('kernel')}
    biases = {p: leaf for p, leaf in trees.flatten(params).items() if p.endswith('bias')}
    assert same_leaves(trees.merge(trees.unflatten(biases), trees.unflatten(kernels)), params)


def test_merge_refuses_a_parameter_given_twice(params):
    with pytest.raises(ValueError, match='head/dense/bias'):
        trees.merge(params, {'head': {'dense': {'bias': params['head']['dense']['bias']}}})


def test_check_same_accepts_the_same_shapes_and_types(params):
    trees.check_same(jax.eval_shape(lambda: params), params, where='file', fix='fix')


def test_check_same_shows_every_difference(params):
    got = trees.unflatten(
        {
            ('head/extra/bias' if path == 'head/dense/bias' else path): leaf
            for path, leaf in trees.flatten(params).items()
        }
    )
    got['head']['predictions']['kernel'] = np.zeros((5, 7), np.float32)
    got['head']['predictions']['bias'] = np.zeros(3, np.int8)
    with pytest.raises(UserError) as caught:
        trees.check_same(params, got, where='weights.h5', fix='use another file')
    message = str(caught.value)
    assert message.startswith('weights.h5: ')
    assert [line.strip() for line in message.splitlines()[1:]] == [
        '- head/dense/bias float32[5]',
        '+ head/extra/bias float32[5]',
        '! head/predictions/bias float32[3], not int8[3]',
        '! head/predictions/kernel float32[5,3], not float32[5,7]; use another file',
    ]


def test_check_same_shortens_a_long_list():
    expected = {f'layer{i}': np.zeros(1) for i in range(100)}
    with pytest.raises(UserError, match='and 80 more') as caught:
        trees.check_same(expected, {}, where='x', fix='y')
    assert len(str(caught.value).splitlines()) == 22


def test_digest_is_sha256_over_the_bytes_in_path_order(params):
    names = sorted(trees.flatten(params))
    joined = b''.join(trees.flatten(params)[name].tobytes() for name in names)
    assert trees.digest(params) == hashlib.sha256(joined).hexdigest()


def test_digest_ignores_container_order_and_memory_layout(params):
    wanted = trees.digest(params)
    backwards = {key: params[key] for key in reversed(params)}
    assert trees.digest(backwards) == wanted
    assert trees.digest(jax.tree.map(jnp.asarray, params)) == wanted
    assert trees.digest(jax.tree.map(np.asfortranarray, params)) == wanted
    assert trees.digest(jax.tree.map(lambda x: x.astype('>f4'), params)) == wanted


def test_digest_of_a_strided_view_and_a_scalar():
    steps = np.arange(6, dtype=np.float32)[::2]
    tree = {'a': steps, 'b': np.float32(7)}
    assert trees.digest(tree) == trees.digest({'a': steps.copy(), 'b': np.full(1, 7, np.float32)})


def test_digest_sees_a_single_bit(params):
    wanted = trees.digest(params)
    params['head']['dense']['bias'].view(np.uint32)[2] ^= 1
    assert trees.digest(params) != wanted


def test_digest_of_small_floats():
    leaf = jnp.asarray([1.0, -2.0], jnp.bfloat16)  # 0x3f80, 0xc000
    assert trees.digest({'a': leaf}) == hashlib.sha256(bytes.fromhex('803f00c0')).hexdigest()

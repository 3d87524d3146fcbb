"""Every translation to TensorFlow Lite computes what JAX computes, for any number of images."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from export.test_primitives import CASES, REFUSED, RNG, SHAPE, H, W, conv, primitives
from flax import nnx

from tlflax.export import tflite_file
from tlflax.export.model import Exported
from tlflax.export.tf_graph.translate import TABLE
from tlflax.models.base.modules import Variables
from tlflax.utils.errors import UserError

LACKING = ('acos', 'acosh', 'asin', 'asinh', 'atan', 'atanh')
"""What TensorFlow Lite has not built in."""
HERE = {name: function for name, function in CASES.items() if name not in LACKING}


def written(function, path):
    """Writes the model of a function of images to f32[images, n]."""
    metadata = {'classes': '[]'}
    what = Exported(lambda _, image: function(image), Variables({}, {}), SHAPE, metadata)
    tflite_file.write(what, path)
    return tflite_file.program(path)


def operations(path):
    """Returns the kinds of operations in a file, in order."""
    return [one['op_name'] for one in Interpreter(str(path))._get_ops_details()]


def test_a_conversion_leaves_what_is_logged_as_it_is(tmp_path):
    logger = logging.getLogger('absl')
    before = logger.level
    try:
        logger.setLevel(logging.INFO)
        written(lambda image: as_rows(CASES['abs'], image), tmp_path / 'file')
        assert logger.level == logging.INFO
    finally:
        logger.setLevel(before)


def as_rows(function, image):
    """What a function that returns anything gives, by image."""
    return function(image).astype(jnp.float32).reshape(image.shape[0], -1)


@pytest.fixture(scope='module')
def found(tmp_path_factory):
    """The results of all cases, as one file computes them: a conversion takes a second or more."""
    path, x = tmp_path_factory.mktemp('file') / 'file', RNG.integers(1, 256, (3, H, W, 3), np.uint8)
    expected = {
        name: np.asarray(jax.jit(as_rows, static_argnums=0)(one, x)) for name, one in HERE.items()
    }
    program = written(
        lambda image: jnp.concatenate([as_rows(one, image) for one in HERE.values()], 1), path
    )
    ends = np.cumsum([one.shape[1] for one in expected.values()])
    parts = np.split(program(x), ends[:-1], 1)
    return dict(zip(HERE, zip(parts, expected.values(), strict=True), strict=True))


@pytest.mark.parametrize('case', HERE)
def test_computes_what_jax_computes(case, found):
    own, expected = found[case]
    assert np.ptp(expected) > 0
    np.testing.assert_allclose(own, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize('named', [*REFUSED, *(f"'{name}'" for name in LACKING)])
def test_what_has_no_translation_is_refused_by_name(named, tmp_path):
    function = {**REFUSED, **{f"'{name}'": CASES[name] for name in LACKING}}[named]
    with pytest.raises(UserError, match=named) as caught:
        written(lambda image: as_rows(function, image), tmp_path / 'file')
    assert caught.value.where == '--format'


def test_what_the_converter_refuses_is_named():
    said = "error: 'tf.Acos' op is neither a custom op nor a flex op\nerror: 'tf.Foo' op is not"
    assert 'it has Acos, Foo' in str(tflite_file.refused(ValueError(said)))


def test_biases_and_relu_become_part_of_convolutions(tmp_path):
    bias = np.array([0.5] * 8, np.float32)

    def function(image):
        x = nnx.relu(conv(image) + bias)
        return nnx.max_pool(x, (2, 2), (1, 1), 'SAME').max((1, 2))

    written(function, tmp_path / 'file')
    kinds = operations(tmp_path / 'file')
    assert kinds == ['CAST', 'MUL', 'SUB', 'CONV_2D', 'MAX_POOL_2D', 'REDUCE_MAX']


def test_every_translation_is_tested():
    assert set(TABLE) <= primitives(HERE.values())

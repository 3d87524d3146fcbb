"""Every translation to ONNX computes what JAX computes, for any number of images."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from flax import nnx
from jax import lax

from tlflax.export.onnx_graph.graph import INPUT
from tlflax.export.onnx_graph.translate import TABLE, to_model
from tlflax.utils.errors import UserError

H, W = 4, 6
SHAPE = f'images, {H}, {W}, 3'
RNG = np.random.default_rng(0)
VECTOR = RNG.normal(size=3).astype(np.float32)
KERNEL = RNG.normal(size=(3, 3, 3, 8)).astype(np.float32)
MATRIX = RNG.normal(size=(H * W * 3, 5)).astype(np.float32)
PLACES = np.array([[2, 0], [1, 1]], np.int32)


def small(x):
    """Pixels as numbers in -1..1."""
    return x.astype(jnp.float32) / 127.5 - 1


def integers(x):
    """Pixels as odd integers in -255..255."""
    return 2 * x.astype(jnp.int32) - 255


def positive(x):
    """Pixels as numbers in 0.5..1.5."""
    return x.astype(jnp.float32) / 255 + 0.5


def window(x, kind, start, size=2, stride=2, padding='VALID'):
    """Pools over height and width."""
    return lax.reduce_window(
        small(x), start, kind, (1, size, size, 1), (1, stride, stride, 1), padding
    )


def rows(x):
    return small(x).reshape(x.shape[0], -1)


def widened(x, *shape):
    return jnp.broadcast_to(x, (x.shape[0], *shape))


def conv(x, features_out=8, size=(3, 3), kind=nnx.Conv, **options):
    """A layer with weights that are constants of the trace."""
    with jax.ensure_compile_time_eval():
        layer = kind(x.shape[-1], features_out, size, rngs=nnx.Rngs(0), **options)
    return layer(x if x.dtype == jnp.float32 else small(x))


# What is computed of pixels u8[b, 4, 6, 3], by the primitives that it covers.
CASES = {
    'abs': lambda x: jnp.abs(small(x)),
    'acos': lambda x: jnp.arccos(small(x) * 0.9),
    'acosh': lambda x: lax.acosh(positive(x) + 1),
    'add sub mul div neg': lambda x: (small(x) + VECTOR) * (small(x) - 2) / positive(x) - -small(x),
    'asin': lambda x: jnp.arcsin(small(x) * 0.9),
    'asinh': lambda x: lax.asinh(small(x)),
    'atan': lambda x: lax.atan(small(x)),
    'atanh': lambda x: lax.atanh(small(x) * 0.9),
    'argmax': lambda x: jnp.argmax(small(x), 2),
    'argmin': lambda x: jnp.argmin(small(x).transpose(0, 3, 1, 2), 1),
    'ceil': lambda x: jnp.ceil(3 * small(x) + 0.1),
    'floor': lambda x: jnp.floor(3 * small(x) + 0.1),
    'round': lambda x: jnp.round(3 * small(x) + 0.1),
    'clamp': lambda x: lax.clamp(-0.5, small(x), 0.25),
    'cos sin tan': lambda x: jnp.cos(small(x)) + jnp.sin(2 * small(x)) + jnp.tan(small(x)),
    'cosh sinh tanh': lambda x: lax.cosh(small(x)) + lax.sinh(small(x)) * lax.tanh(small(x)),
    'erf': lambda x: nnx.gelu(small(x), approximate=False) + lax.erf(small(x)),
    'erfc': lambda x: lax.erfc(small(x)),
    'exp': lambda x: jnp.exp(small(x)),
    'exp2': lambda x: jnp.exp2(small(x)),
    'expm1': lambda x: jnp.expm1(small(x)),
    'log log1p': lambda x: jnp.log(positive(x)) + jnp.log1p(positive(x)),
    'logistic': lambda x: nnx.silu(small(x)),
    'sqrt rsqrt': lambda x: jnp.sqrt(positive(x)) + lax.rsqrt(positive(x)),
    'pow': lambda x: positive(x) ** small(x),
    'integer_pow square': lambda x: small(x) ** 3 + lax.square(small(x)) + positive(x) ** -2,
    'div of integers': lambda x: lax.div(integers(x), 7) + lax.div(1000, integers(x)),
    'div of pixels': lambda x: lax.div(x, jnp.uint8(7)),
    'rem': lambda x: lax.rem(3 * small(x), jnp.float32(0.7)),
    'rem of multiples': lambda x: lax.rem(integers(x).astype(jnp.float32), jnp.float32(-0.1)),
    'rem of integers': lambda x: lax.rem(integers(x), 7) + lax.rem(1000, integers(x)),
    'rem of pixels': lambda x: lax.rem(x, jnp.uint8(7)),
    'sign': lambda x: jnp.sign(small(x)),
    'is_finite': lambda x: jnp.isfinite(1 / (small(x) - small(x)[0:1, 0:1, 0:1, 0:1])),
    'max min': lambda x: jnp.maximum(jnp.minimum(small(x), 0.5), VECTOR),
    'eq ne': lambda x: (x == x[:, ::-1]) | (x != x[:, :, :1]),
    'lt le gt ge': lambda x: ((x < 40) | (x <= 90)) ^ ((x > 100) & ~(x >= 200)),
    'and or xor not': lambda x: (x > 9) & ~(x > 100) | (x > 200) ^ (x > 250),
    'select_n': lambda x: jnp.where(x > 128, small(x), VECTOR),
    'convert_element_type': lambda x: x.astype(jnp.int32) * 3,
    'broadcast_in_dim': lambda x: widened(small(x)[:, None, :, :1], 2, H, W, 3),
    'concatenate': lambda x: jnp.concatenate([rows(x), jnp.zeros((x.shape[0], 2))], 1),
    'dynamic_slice': lambda x: lax.dynamic_slice(small(x), (0, 9, 2, 0), (x.shape[0], 2, 3, 3)),
    'gather': lambda x: small(x)[..., jnp.asarray(PLACES)],
    'gather of channels': lambda x: small(x)[..., ::-1],
    'gather of one': lambda x: small(x)[:, 1, :, 2],
    'gather by values': lambda x: jnp.asarray(MATRIX)[jnp.argmax(rows(x), 1)],
    'gather in the middle': lambda x: jnp.take(small(x), jnp.asarray(PLACES), axis=1, mode='clip'),
    'iota': lambda x: small(x) * jnp.arange(W)[:, None],
    'pad': lambda x: jnp.pad(small(x), ((0, 0), (1, 2), (0, 1), (0, 0)), constant_values=2.5),
    'pad cuts': lambda x: lax.pad(small(x), 0.0, ((0, 0, 0), (-1, 1, 0), (0, 0, 0), (0, 0, 0))),
    'reshape': lambda x: small(x).reshape(-1, W, 3),
    'rev': lambda x: lax.rev(small(x), (1, 3)),
    'slice': lambda x: lax.slice_in_dim(lax.slice_in_dim(small(x), 1, 4, 2, axis=1), 2, 5, axis=2),
    'slices by index': lambda x: small(x)[:, 1:4:2, 2:, 1],
    'split': lambda x: jnp.split(small(x), 3, axis=2)[1],
    'squeeze': lambda x: lax.squeeze(small(x)[:, 1:2], (1,)),
    'stack': lambda x: jnp.stack([small(x), positive(x)], 2),
    'tile': lambda x: jnp.tile(small(x), (1, 2, 1, 3)),
    'transpose': lambda x: small(x).transpose(3, 0, 2, 1) * positive(x).transpose(3, 0, 2, 1),
    'conv_general_dilated': conv,
    'conv with strides': lambda x: conv(x, strides=2, padding=((0, 1), (2, 1))),
    'conv dilated': lambda x: conv(x, kernel_dilation=2),
    'conv by channel': lambda x: conv(x, 6, feature_group_count=3),
    'conv twice': lambda x: nnx.relu(conv(x)) - conv(x, size=(1, 1)),
    'conv along rows': lambda x: conv(small(x).reshape(-1, H, 18), 4, (3,)),
    'cumsum': lambda x: jnp.cumsum(small(x), 2) + lax.cumsum(small(x), 1, reverse=True),
    'dot_general': lambda x: rows(x) @ MATRIX,
    'dot of maps': lambda x: jnp.einsum('bhwc,hwd->bcd', small(x), MATRIX.reshape(H, W, 15)),
    'dot by image': lambda x: jnp.einsum('bhwc,bhwd->bhcd', small(x), positive(x)),
    'dot and relu': lambda x: nnx.relu(jnp.einsum('bhwc,bhwd->bhcd', small(x), small(x[:, ::-1]))),
    'dot of a row each': lambda x: jnp.einsum('bi,bi->b', rows(x), rows(x)),
    'reduce_and': lambda x: (x > 5).all((1, 3)),
    'reduce_or': lambda x: (x > 250).any((1, 2)),
    'reduce_max': lambda x: small(x).max((1, 3)),
    'reduce_min': lambda x: small(x).transpose(0, 3, 1, 2).min((1, 2)),
    'reduce_prod': lambda x: small(x).prod(3),
    'reduce_sum': lambda x: small(x).mean((1, 2)) + small(x).sum((1, 2)),
    'reduce of a broadcast': lambda x: widened(small(x)[:, :1], 5, W, 3).sum((1, 3)),
    'reduce_window_max': lambda x: window(x, lax.max, -jnp.inf),
    'max pool with padding': lambda x: nnx.max_pool(small(x), (3, 3), (2, 2), 'SAME'),
    'reduce_window_min': lambda x: window(x, lax.min, jnp.inf),
    'reduce_window_sum': lambda x: window(x, lax.add, 0.0, 3, 2, 'SAME'),
    'avg pool': lambda x: nnx.avg_pool(small(x), (2, 3), (2, 3)),
    'top_k': lambda x: jnp.concatenate(lax.top_k(rows(x), 4), 1),
    'softmax': lambda x: nnx.softmax(rows(x) @ MATRIX),
    'softplus': lambda x: nnx.softplus(small(x)),
    'per number of images': lambda x: rows(x) / x.shape[0],
    'rematerialized': lambda x: jax.checkpoint(nnx.relu)(small(x)),
    'constants of one image': lambda x: small(x)[:, 0] + jnp.cumsum(jnp.ones((W, 3)), 0).T.T,
}  # fmt: skip


def outputs(function, x):
    """What the exported model of a function that returns anything gives for images."""

    def whole(constants, image):
        return function(image).astype(jnp.float32).reshape(image.shape[0], -1)

    model = to_model(whole, {}, SHAPE, {})
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {INPUT: x})[0]


@pytest.mark.parametrize('case', CASES)
def test_computes_what_jax_computes(case):
    function, x = CASES[case], RNG.integers(1, 256, (3, H, W, 3), np.uint8)
    expected = np.asarray(jax.jit(function)(x), np.float32).reshape(3, -1)
    assert np.ptp(expected) > 0
    np.testing.assert_allclose(outputs(function, x), expected, rtol=2e-5, atol=2e-5)


def primitives(functions):
    """Returns the names of the primitives in functions of images."""
    seen = set()

    def collect(jaxpr):
        for equation in jaxpr.eqns:
            seen.add(equation.primitive.name)
            for value in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr):
                if is_jaxpr(value):
                    collect(getattr(value, 'jaxpr', value))

    def is_jaxpr(value):
        return hasattr(value, 'eqns') or hasattr(value, 'jaxpr')

    (batch,) = jax.export.symbolic_shape('b')
    image = jax.ShapeDtypeStruct((batch, H, W, 3), jnp.uint8)
    for function in functions:
        collect(jax.make_jaxpr(function)(image).jaxpr)
    return seen


def test_every_translation_is_tested():
    assert set(TABLE) <= primitives(CASES.values())


def test_what_is_made_for_one_kind_of_device_is_not_exported():
    x = RNG.integers(0, 256, (2, H, W, 3), np.uint8)

    def function(image):
        return lax.platform_dependent(small(image), cpu=jnp.sort, default=jnp.abs)

    expected = np.abs(x / 127.5 - 1).reshape(2, -1)
    np.testing.assert_allclose(outputs(function, x), expected, atol=1e-6)


REFUSED = {
    "'sort'": lambda x: jnp.sort(small(x)),
    "'scan'": lambda x: lax.scan(lambda c, y: (c + y, c), rows(x)[:, 0], rows(x).T)[1].T,
    "'random_seed'": lambda x: small(x) + jax.random.normal(jax.random.key(0), (3,)),
    "'gather' other": lambda x: jnp.take_along_axis(rows(x), lax.top_k(rows(x), 2)[1], 1),
    "'pad' between": lambda x: lax.pad(small(x), 0.0, ((0, 0, 0), (0, 0, 1), (0, 0, 0), (0, 0, 0))),
    'dilated input': lambda x: conv(x, 4, (2, 2), nnx.ConvTranspose, strides=2),
    "'and' on the bits": lambda x: x & 15,
    "'round' of halves": lambda x: lax.round(small(x)),
    "'reduce_window_max' over all": lambda x: lax.reduce_window(
        rows(x)[:, :4], -jnp.inf, lax.max, (1, 2), (1, 2), 'VALID'
    ),
}  # fmt: skip


@pytest.mark.parametrize('named', REFUSED)
def test_what_has_no_translation_is_refused_by_name(named):
    with pytest.raises(UserError, match=named) as caught:
        outputs(REFUSED[named], np.zeros((1, H, W, 3), np.uint8))
    assert caught.value.where == '--format=onnx'


def test_transpositions_of_convolutions_cancel():
    def function(constants, image):
        x = small(image)
        for _ in range(3):
            x = nnx.max_pool(nnx.relu(conv(x)), (2, 2), (1, 1), 'SAME')
        return x.mean((1, 2))

    kinds = [node.op_type for node in to_model(function, {}, SHAPE, {}).graph.node]
    assert kinds.count('Transpose') == 1  # of the image
    assert kinds.count('Conv') == kinds.count('MaxPool') == 3
    assert 'Expand' not in kinds


def test_what_follows_a_convolution_is_joined_to_it():
    scale, bias = np.linspace(-2, 2, 8, dtype=np.float32), np.ones(8, np.float32)

    def function(image):
        x = conv(image)
        return nnx.relu((x - bias) * scale + 3 * bias) + conv(image, use_bias=False) * -3.0

    def whole(constants, image):
        return function(image).reshape(image.shape[0], -1)

    kinds = [node.op_type for node in to_model(whole, {}, SHAPE, {}).graph.node]
    assert kinds.count('Conv') == 2
    assert kinds.count('Relu') == kinds.count('Add') == 1
    assert 'Mul' not in kinds
    assert 'Max' not in kinds
    x = RNG.integers(1, 256, (3, H, W, 3), np.uint8)
    expected = np.asarray(function(x)).reshape(3, -1)
    np.testing.assert_allclose(outputs(function, x), expected, rtol=2e-5, atol=2e-5)


def test_what_others_use_too_is_not_joined():
    bias = np.ones(8, np.float32)

    def function(image):
        x = conv(image)
        return jnp.concatenate([x, x + bias, bias - conv(image)], 3)

    x = RNG.integers(1, 256, (3, H, W, 3), np.uint8)
    expected = np.asarray(function(x)).reshape(3, -1)
    np.testing.assert_allclose(outputs(function, x), expected, rtol=2e-5, atol=2e-5)


def test_equal_constants_are_stored_once_and_named_by_path():
    twice = {'one': {'kernel': MATRIX}, 'two': {'kernel': MATRIX.copy()}}

    def function(constants, image):
        return rows(image) @ constants['one']['kernel'] + rows(image) @ constants['two']['kernel']

    stored = [one.name for one in to_model(function, twice, SHAPE, {}).graph.initializer]
    assert [name for name in stored if 'kernel' in name] == ['one/kernel']

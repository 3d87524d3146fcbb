"""The network against Keras and PyTorch, at every block and at the softmax."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import vgg_reference as reference
from flax import nnx
from PIL import Image

from tlflax.models import classifier as classifiers
from tlflax.models import pretrained
from tlflax.models.base.modules import Variables
from tlflax.models.vgg import network as vgg
from tlflax.models.vgg import rows, tensor_names
from tlflax.models.vgg.rows import VGG16, VGG19
from tlflax.models.weights.file_formats import Container
from tlflax.models.weights.preprocess import PREPROCESS
from tlflax.utils.errors import UserError
from tlflax.utils.trees import unflatten

NARROW = {'widths': (4, 6, 8, 10, 12), 'units': 16, 'num_classes': 5}


NARROW_ROW = rows.make('vgg16', vgg.VGG16, **NARROW)


def apply(params, x, layer='block5_pool', **options):
    """Runs VGG16 up to a layer."""
    return VGG16.apply(Variables(params, {}), x, stop=layer, **options)[0]


def relative_error(got, want):
    """The largest deviation over the largest value, in float64."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    assert np.abs(want).max() > 0
    return np.abs(got - want).max() / np.abs(want).max()


def random_images(seed, *shape):
    return np.random.default_rng(seed).uniform(-128, 128, shape).astype(np.float32)


def assert_blocks_agree(params, images, references):
    assert vgg.POOLS == reference.POOLS
    # In one program, as XLA computes only once what the five have in common.
    ours = jax.jit(lambda *args: {name: apply(*args, layer=name) for name in vgg.POOLS})
    for name, output in ours(params, images).items():
        for theirs in references:
            assert relative_error(output, theirs[name]) < 1e-4, name


@pytest.fixture(scope='module')
def keras_network():
    return reference.keras_network()


@pytest.fixture(scope='module')
def torch_network():
    return reference.TorchVGG16()


@pytest.mark.parametrize('size', [(64, 64), (97, 61), (32, 47)])
def test_every_block_agrees_with_keras_and_torch(keras_network, torch_network, size):
    params = reference.random_arrays(1)
    reference.keras_set(keras_network, params)
    torch_network.set_convolutions(params)
    images = random_images(2, 2, *size, 3)
    theirs = [reference.keras_blocks(keras_network, images), torch_network.blocks(images)]
    assert_blocks_agree(params, images, theirs)


@pytest.mark.assets
@pytest.mark.parametrize('size', [(224, 224), (97, 61)])
def test_real_weights_on_real_photographs(
    imagenet_weights_path, traffic_lights_dir, keras_network, torch_network, size
):
    params = pretrained.load(imagenet_weights_path, VGG16).variables.params
    reference.keras_set(keras_network, params)
    torch_network.set_convolutions(params)
    paths = sorted(traffic_lights_dir.rglob('*.jpg'))
    pixels = [
        np.asarray(Image.open(path).convert('RGB').resize(size[::-1]))
        for path in (paths[0], paths[len(paths) // 2], paths[-1])
    ]
    images = np.stack(pixels)
    theirs = keras.applications.vgg16.preprocess_input(images.astype(np.float32))
    ours = np.asarray(PREPROCESS['caffe'](jnp.asarray(images)))
    np.testing.assert_array_equal(ours, theirs)
    blocks = [reference.keras_blocks(keras_network, theirs), torch_network.blocks(theirs.copy())]
    assert_blocks_agree(params, ours, blocks)


def test_softmax_of_the_full_network_in_both_fc1_orders():
    """PyTorch's weights, channels first, read by us, then given to Keras, channels last."""
    torch_network = reference.TorchVGG16(top=True)
    torch_network.randomize(3)
    images = random_images(4, 2, 224, 224, 3) / 64
    want = torch_network.probabilities(images)
    state = {name: tensor.numpy() for name, tensor in torch_network.state_dict().items()}
    container = Container('PyTorch', state, {})
    found = tensor_names.canonical(container, vgg.VGG16, top=True, where='memory')
    params = jax.device_put(unflatten(found.tensors))
    del state, container, torch_network, found
    ours = apply(params, jnp.asarray(images), layer='predictions')
    assert want.max() > 3 * np.median(want)  # far enough from uniform to tell an order apart
    assert relative_error(ours, want) < 1e-4
    keras_full = reference.keras_network(top=True)
    reference.keras_set(keras_full, params)
    assert relative_error(ours, keras_full(images)) < 1e-4


def test_fc1_fc2_agree_with_keras():
    params = reference.random_arrays(5, top=True, **NARROW)
    network = reference.keras_network(top=True, **NARROW)
    reference.keras_set(network, params)
    images = random_images(6, 3, 224, 224, 3)
    for layer in vgg.TOP:
        theirs = keras.Model(network.input, network.get_layer(layer).output)(images)
        assert relative_error(apply(params, jnp.asarray(images), layer=layer), theirs) < 1e-4, layer


SHAPES = {  # of one example, for images of 230 x 251 pixels and the widths of NARROW
    'block1_pool': (115, 125, 4),
    'block2_pool': (57, 62, 6),
    'block3_pool': (28, 31, 8),
    'block4_pool': (14, 15, 10),
    'block5_pool': (7, 7, 12),
    'fc1': (16,),
    'fc2': (16,),
    'predictions': (5,),
}


@pytest.mark.parametrize('layer', SHAPES)
def test_shape_of_every_output(layer):
    assert NARROW_ROW.feature_shape((230, 251), layer) == SHAPES[layer]


def test_shapes_of_the_real_network():
    for layer, shape in {'block5_pool': (7, 7, 512), 'predictions': (1000,)}.items():
        assert VGG16.feature_shape((224, 224), layer) == shape


def test_bfloat16_computes_in_bfloat16_with_float32_parameters():
    params = reference.random_arrays(0, widths=NARROW['widths'])
    images = random_images(7, 2, 64, 64, 3)
    exact = apply(params, jnp.asarray(images))
    rough = apply(params, jnp.asarray(images), dtype=jnp.bfloat16)
    assert exact.dtype == jnp.float32
    assert rough.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    assert 1e-4 < relative_error(rough, exact) < 5e-2


@pytest.mark.parametrize(
    ('dtype', 'type_name', 'precision'),
    [
        ('float32', 'f32', 'HIGHEST'),
        ('tensorfloat32', 'f32', 'HIGH'),
        ('bfloat16', 'bf16', 'DEFAULT'),
    ],
)
def test_compute_types_ask_accelerators_for_their_precision(dtype, type_name, precision):
    params = reference.random_arrays(0, top=True, **NARROW)
    model = classifiers.create(
        NARROW_ROW, {}, image_size=(224, 224), num_classes=3, head='mlp', units=4, dropout=0.0,
        preprocess='caffe', layer='predictions', dtype=dtype,
    )  # fmt: skip
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.uint8)
    text = jax.jit(functools.partial(model.features, Variables(params, {}))).lower(image).as_text()
    operations = [
        line
        for line in text.splitlines()
        if 'stablehlo.convolution' in line or 'stablehlo.dot_general' in line
    ]
    assert len(operations) == 16
    for line in operations:
        assert set(re.findall(r'\b(DEFAULT|HIGH|HIGHEST)\b', line)) == {precision}, line
        assert line.count(f'x{type_name}>') == 3, line


def test_nothing_after_the_layer_is_computed():
    params = reference.random_arrays(0, widths=NARROW['widths'])
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    program = jax.make_jaxpr(functools.partial(apply, layer='block2_pool'))(params, image)
    kernels = [
        equation.invars[1].aval.shape
        for equation in program.eqns
        if equation.primitive.name == 'conv_general_dilated'
    ]
    assert kernels == [(3, 3, 3, 4), (3, 3, 4, 4), (3, 3, 4, 6), (3, 3, 6, 6)]


def test_init_is_he_normal_and_decided_by_the_key():
    one, same, other = (vgg.init(jax.random.key(seed)) for seed in (0, 0, 1))
    assert {f'{n}/{k}': a.shape for n in one for k, a in one[n].items()} == vgg.shapes()
    kernel = one['block4_conv2']['kernel']
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / (9 * 512)), rel=0.01)
    assert not one['block4_conv2']['bias'].any()
    np.testing.assert_array_equal(kernel, same['block4_conv2']['kernel'])
    assert (kernel != other['block4_conv2']['kernel']).mean() > 0.99


def test_the_real_network_has_the_published_numbers_of_parameters():
    for top, count in ((False, 14_714_688), (True, 138_357_544)):
        assert sum(math.prod(shape) for shape in vgg.shapes(top=top).values()) == count


def test_too_small_images_are_refused():
    params = reference.random_arrays(0, widths=NARROW['widths'])
    with pytest.raises(UserError, match=r'config.data.image_size: 31x224 .* at least 32x32'):
        apply(params, jnp.ones((1, 31, 224, 3)))
    with pytest.raises(UserError, match='40x20'):
        NARROW_ROW.feature_shape((40, 20), 'block1_pool')


def test_an_unknown_layer_gets_a_suggestion():
    assert VGG16.choose('auto') == 'block5_pool'
    with pytest.raises(UserError, match=r"config.features.layer.*did you mean 'block5_pool'"):
        VGG16.choose('blok5_pool')


def test_layers_of_the_top_need_weights_and_an_image_that_fit():
    without = reference.random_arrays(0, widths=NARROW['widths'])
    with pytest.raises(UserError, match='have no fc1'):
        apply(without, jnp.ones((1, 224, 224, 3)), layer='fc2')
    full = reference.random_arrays(0, top=True, **NARROW)
    with pytest.raises(UserError, match='made for 224x224 pixels, not 192x224'):
        apply(full, jnp.ones((1, 192, 224, 3)), layer='fc1')


def test_the_module_holds_the_parameters_it_was_given():
    params = vgg.init(jax.random.key(0), top=True, **NARROW)
    held = nnx.to_pure_dict(nnx.state(vgg.VGG(params)))
    assert jax.tree.structure(held) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, held, params)


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
@pytest.mark.parametrize('mode', ['caffe', 'torch'])
def test_preprocessing_is_that_of_keras(mode, dtype):
    images = np.random.default_rng(10).integers(0, 256, (2, 5, 4, 3)).astype(dtype)
    before = images.copy()
    theirs = keras.applications.imagenet_utils.preprocess_input(
        images.astype(np.float32), data_format='channels_last', mode=mode
    )
    ours = PREPROCESS[mode](jnp.asarray(images))
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(images, before)


def test_rescale_is_to_one():
    images = np.arange(256, dtype=np.uint8)[:255].reshape(1, 5, 17, 3)
    np.testing.assert_allclose(PREPROCESS['rescale'](jnp.asarray(images)), images / 255, rtol=1e-7)


def test_vgg19_agrees_with_keras_at_every_layer():
    theirs = keras.applications.VGG19(weights=None, include_top=False, input_shape=(64, 64, 3))
    params = jax.device_get(VGG19.init(jax.random.key(1), 'block5_pool').params)
    reference.keras_set(theirs, params)
    images = random_images(11, 2, 64, 64, 3)
    names = [layer for layer in VGG19.layers if layer not in vgg.TOP]
    assert names == [layer.name for layer in theirs.layers[1:]]
    outputs = keras.Model(theirs.input, [layer.output for layer in theirs.layers[1:]])(images)

    @jax.jit
    def ours(params, images):
        return [VGG19.apply(Variables(params, {}), images, stop=name)[0] for name in names]

    for name, got, want in zip(names, ours(params, images), outputs, strict=True):
        assert relative_error(got, want) < 1e-4, name


@pytest.mark.parametrize('row', [VGG16, VGG19], ids=lambda row: row.name)
def test_a_network_that_is_cut_anywhere_is_the_whole(row):
    depths = {'vgg16': vgg.VGG16, 'vgg19': vgg.VGG19}[row.name]
    narrow = rows.make(row.name, depths, **NARROW)
    variables = narrow.init(jax.random.key(0), 'predictions')
    x = jnp.asarray(random_images(12, 1, 224, 224, 3))
    whole = narrow.apply(variables, x, stop='predictions')[0]
    for cut in ('block1_conv1', 'block3_conv2', 'block4_pool', 'fc1'):
        below = narrow.apply(variables, x, stop=cut)[0]
        assert below.shape[1:] == narrow.feature_shape((224, 224), cut)
        above = narrow.apply(variables, below, start=cut, stop='predictions')[0]
        np.testing.assert_allclose(above, whole, rtol=1e-6)

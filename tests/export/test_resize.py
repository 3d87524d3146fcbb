"""Files that take images of any size resize them as the run does."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from helpers import make_folders, run_module, toy_config, untrained
from onnx import numpy_helper
from PIL import Image

from tlflax.data.augment.color_ops import to_uint8
from tlflax.data.images.format import ImageFormat
from tlflax.data.pipeline.resize import resize_image
from tlflax.export import saved_model_file, stablehlo_file, tflite_file, verify
from tlflax.export.model import Options, exported
from tlflax.export.onnx_graph.graph import INPUT
from tlflax.export.onnx_graph.translate import to_model
from tlflax.export.resize import resize
from tlflax.utils.errors import UserError

MODES = list(itertools.product(('stretch', 'pad', 'crop'), ('bilinear', 'bicubic'), (True, False)))
SHAPES = ((48, 40), (100, 61), (7, 90), (1, 1), (33, 257), (40, 48), (80, 96))
# Of images, with the size of the result.
UNITS = [((5, 10), (4, 4)), ((10, 5), (4, 4)), ((3, 9), (10, 5)), ((64, 32), (32, 32))]


def of_shapes(count=None):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in SHAPES[:count]]


@pytest.mark.parametrize(('mode', 'interpolation', 'antialias'), MODES)
def test_the_same_pixels_as_the_pipeline(mode, interpolation, antialias):
    form = ImageFormat((40, 48), mode, antialias, interpolation=interpolation)
    total = different = 0
    for image in of_shapes():
        expected = to_uint8(
            resize_image(
                tf.constant(image), (40, 48), mode, antialias=antialias, interpolation=interpolation
            )
        ).numpy()
        (found,) = np.asarray(resize(jnp.asarray(image[None]), form, (40, 48)))
        assert (found == np.round(found)).all()
        assert np.abs(found - expected).max() <= 1  # a half that was rounded the other way
        total, different = total + found.size, different + (found != expected).sum()
    assert different <= total / 200


@pytest.mark.parametrize(('shape', 'size'), UNITS)
@pytest.mark.parametrize('mode', ['pad', 'crop'])
def test_halves_of_a_pixel_are_rounded_as_in_the_pipeline(shape, size, mode):
    image = np.full((*shape, 3), 200, np.uint8)
    expected = to_uint8(resize_image(tf.constant(image), size, mode, antialias=True)).numpy()
    (found,) = np.asarray(resize(jnp.asarray(image[None]), ImageFormat(size, mode), size))
    np.testing.assert_array_equal(found, expected)


def test_an_image_of_the_size_stays_as_it_is():
    image = of_shapes()[5]
    for mode, interpolation, antialias in MODES:
        form = ImageFormat((40, 48), mode, antialias, interpolation=interpolation)
        np.testing.assert_array_equal(resize(jnp.asarray(image[None]), form, (40, 48))[0], image)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('resize')
    make_folders(root / 'Train', 3, seed=1)
    make_folders(root / 'Test', 2, seed=2)
    make_folders(root / 'Own', 2, seed=2)
    return root


CONFIGS = {
    'pad': {'data__resize': 'pad'},
    'crop, bicubic': {'data__resize': 'crop', 'data__interpolation': 'bicubic'},
    'center crop': {'augment__crops': 'five', 'augment__crop_fraction': 0.8},
}


@pytest.mark.parametrize('name', CONFIGS)
def test_onnx_takes_any_size(name, root):
    trained = untrained(toy_config(root, model__head='conv', **CONFIGS[name]))
    what = exported(trained, Options(resize=True))
    assert what.metadata['resized'] == 'true'
    model = to_model(what.function, what.variables, what.shape, what.metadata)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    assert session.get_inputs()[0].shape == ['images', 'height', 'width', 3]
    for image in of_shapes(3):
        expected = list(trained.predict([image])[0].probabilities.values())
        (found,) = session.run(None, {INPUT: np.stack([image, image])})
        np.testing.assert_allclose(found, [expected, expected], atol=5e-3)  # see `<= 1` above


@pytest.mark.parametrize('form', [saved_model_file, tflite_file])
@pytest.mark.parametrize('name', CONFIGS)
def test_tensorflow_takes_any_size(name, form, root, tmp_path):
    trained = untrained(toy_config(root, model__head='conv', **CONFIGS[name]))
    form.write(exported(trained, Options(resize=True)), tmp_path / 'file')
    run = form.program(tmp_path / 'file')
    for image in of_shapes(3):
        expected = list(trained.predict([image])[0].probabilities.values())
        found = run(np.stack([image, image]))
        np.testing.assert_allclose(found, [expected, expected], atol=5e-3)


def kinds_in_onnx(what, path):
    model = to_model(what.function, what.variables, what.shape, what.metadata)
    arrays = map(numpy_helper.to_array, model.graph.initializer)
    return [(array.dtype, array.size) for array in arrays]


def kinds_in_saved_model(what, path):
    saved_model_file.write(what, path)
    numbers = tf.saved_model.load(str(path)).numbers
    return [(np.dtype(one.dtype.as_numpy_dtype), np.prod(one.shape)) for one in numbers]


def kinds_in_tflite(what, path):
    tflite_file.write(what, path)
    details = Interpreter(str(path)).get_tensor_details()
    return [(np.dtype(one['dtype']), np.prod(one['shape'])) for one in details]


@pytest.mark.parametrize('kinds', [kinds_in_onnx, kinds_in_saved_model, kinds_in_tflite])
def test_float16_is_stored_with_16_bits(kinds, root, tmp_path):
    trained = untrained(toy_config(root, model__head='conv', data__resize='pad'))
    what = exported(trained, Options(resize=True, precision='float16'))
    found = kinds(what, tmp_path / 'file')
    kernels = [one for one in jax.tree.leaves(what.variables.params['head']) if one.ndim > 1]
    assert len(kernels) == 4
    assert {one.size for one in kernels} <= {size for kind, size in found if kind == np.float16}


def test_stablehlo_takes_any_size(root, tmp_path):
    trained = untrained(toy_config(root, model__head='conv', data__resize='crop'))
    what = exported(trained, Options(resize=True))
    stablehlo_file.write(what, tmp_path / 'file')
    run = stablehlo_file.program(tmp_path / 'file')
    for image in of_shapes(3):
        expected = [list(trained.predict([image])[0].probabilities.values())]
        np.testing.assert_allclose(run(image[None]), expected, atol=5e-3)


def test_the_check_reads_photographs_in_their_own_sizes(root, monkeypatch):
    for number, path in enumerate(sorted((root / 'Own').glob('*/*'))):
        Image.new('RGB', (20 + number, 30), (40 * number, 0, 0)).save(path)
    config = toy_config(root, model__head='conv', data__val=str(root / 'Own'))
    trained = untrained(config)
    plain = verify.sample(trained, Options())
    assert plain.photographs == ()
    both = verify.sample(trained, Options(resize=True))
    assert [image.shape for _, image in both.photographs] == [(30, 20 + n, 3) for n in range(6)]
    assert len(both.pixels) == 6
    what = exported(trained, Options(resize=True))
    program = jax.jit(what.function)
    found = verify.check(lambda x: program(what.variables, x), both, 'file')
    assert (found.images, found.labels) == (6, 0)
    monkeypatch.setattr(verify, 'MOST_SIZES', 2)
    assert len(verify.sample(trained, Options(resize=True)).photographs) == 2

    def wrong_about_photographs(image):
        found = np.asarray(program(what.variables, image))
        return found if len(image) > 1 else found[:, ::-1]

    with pytest.raises(UserError, match='6 validation images differ'):
        verify.check(wrong_about_photographs, both, 'file')


def test_safetensors_cannot_resize(tmp_path):
    (tmp_path / 'checkpoints').mkdir()
    done = run_module('export', f'--workdir={tmp_path}', '--format=safetensors', '--resize')
    assert done.returncode == 2
    assert 'has no program that could resize' in done.stderr

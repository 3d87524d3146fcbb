"""Files with 8 bits: what is quantized in them, and that they classify as well."""

import collections

import numpy as np
import onnx
import onnxruntime
import pytest
from ai_edge_litert.interpreter import Interpreter
from helpers import make_folders, small_config
from onnx import numpy_helper

from tlflax.export import onnx_int8, tflite_file
from tlflax.export.model import Options
from tlflax.export.run import export
from tlflax.train import train_and_evaluate
from tlflax.utils.errors import UserError

NARROW = """
from tlflax.models.vgg import network, rows

vgg16 = rows.make('vgg16', network.VGG16, widths=(16, 16, 32, 64, 64), units=16)
"""
INT8 = Options(precision='int8')


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    """A run of a narrow VGG16, whose images are easy to tell apart."""
    root = tmp_path_factory.mktemp('int8')
    make_folders(root / 'Train', 8, seed=1)
    make_folders(root / 'Test', 6, seed=2)
    (root / 'narrow.py').write_text(NARROW)
    config = small_config(
        root,
        model__backbone=f'py:{root / "narrow.py"}:vgg16',
        model__head='mlp',
        features__layer='block5_pool',
        weights__preprocess='caffe',
        train__epochs=30,
        train__report=False,
    )
    train_and_evaluate(config, root / 'w')
    return root / 'w'


@pytest.fixture(scope='module')
def files(workdir, tmp_path_factory):
    """Files of 8 bits, what the check found, and the size of the same with floats."""
    root, found = tmp_path_factory.mktemp('files'), {}
    for name in ('onnx', 'tflite'):
        floats = export(workdir, name, root / f'float.{name}')
        eight = export(workdir, name, root / f'int8.{name}', INT8)
        found[name] = root / f'int8.{name}', eight, floats['bytes']
    return found


@pytest.mark.parametrize('name', ['onnx', 'tflite'])
def test_a_quarter_of_the_size_and_the_same_classes(name, files):
    path, found, floats = files[name]
    assert found['accuracy'] >= found['classifier_accuracy'] > 0.8
    assert 0 < found['max_difference'] < 0.4
    assert found['bytes'] == path.stat().st_size
    assert found['bytes'] < floats / 2.5  # the toy has more program than parameters


def test_onnx_computes_convolutions_with_8_bits(files):
    path, *_ = files['onnx']
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    arrays = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    kernels = [one for one in arrays.values() if one.ndim == 4 and len(one) > 1]
    assert {kernel.dtype.name for kernel in kernels} == {'int8'}
    assert len(kernels) == 13
    assert max(np.abs(kernel).max() for kernel in kernels) < 65  # 7 bits
    metadata = {one.key: one.value for one in model.metadata_props}
    assert metadata['precision'] == 'int8'
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_name('optimized.onnx'))
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    optimized = onnx.load(path.with_name('optimized.onnx'), load_external_data=False)
    kinds = collections.Counter(node.op_type for node in optimized.graph.node)
    assert kinds['QLinearConv'] == 13
    assert 'Conv' not in kinds
    assert 'Relu' not in kinds
    assert [one.type for one in session.get_inputs()] == ['tensor(uint8)']
    assert [one.type for one in session.get_outputs()] == ['tensor(float)']


def test_tflite_computes_convolutions_with_8_bits(files):
    path, *_ = files['tflite']
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    details = {one['index']: one for one in interpreter.get_tensor_details()}
    operations = interpreter._get_ops_details()
    convolutions = [one for one in operations if one['op_name'] == 'CONV_2D']
    assert len(convolutions) == 13
    for one in convolutions:
        image, kernel, _ = (details[index] for index in one['inputs'])
        assert image['dtype'] == kernel['dtype'] == np.int8
        assert len(kernel['quantization_parameters']['scales']) == kernel['shape'][0]
    softmax = next(one for one in operations if one['op_name'] == 'EXP')
    assert details[softmax['inputs'][0]]['dtype'] == np.float32
    signature = interpreter.get_signature_runner()
    assert signature.get_input_details()['image']['dtype'] == np.uint8
    assert signature.get_output_details()['probabilities']['dtype'] == np.float32


def test_a_file_that_loses_accuracy_is_not_kept(workdir, tmp_path, monkeypatch):
    real = onnx_int8.quantized
    monkeypatch.setattr(onnx_int8, 'quantized', lambda model, images: real(model, 0 * images))
    with pytest.raises(UserError, match=r'may lose 0\.5 points'):
        export(workdir, 'onnx', tmp_path / 'file', INT8)
    assert not list(tmp_path.iterdir())


def test_the_calibrated_temperature_is_part_of_it(workdir, tmp_path):
    options = Options(precision='int8', calibrated=True)
    for name in ('onnx', 'tflite'):
        assert export(workdir, name, tmp_path / name, options)['max_difference'] < 0.4


def test_what_is_computed_in_float_exists():
    from tensorflow.lite.python import schema_py_generated as schema

    assert set(tflite_file.IN_FLOAT) <= set(vars(schema.BuiltinOperator))

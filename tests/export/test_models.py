"""Whole models in each format: backbones, heads, an ensemble, and what docs/extend.md adds."""

import dataclasses

import documents
import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import make_folders, small_config, toy_config, untrained

from tlflax.export import saved_model_file, tflite_file
from tlflax.export.model import exported
from tlflax.export.onnx_graph.graph import INPUT
from tlflax.export.onnx_graph.translate import to_model
from tlflax.inference.predictor import class_probabilities

NARROW = """
from tlflax.models.vgg import network, rows

vgg16 = rows.make('vgg16', network.VGG16, widths=(4, 4, 8, 8, 8), units=16)
vgg19 = rows.make('vgg19', network.VGG19, widths=(4, 4, 8, 8, 8), units=16)
"""
ENSEMBLE = (
    'ensemble:0:16 row,16:272 power*0.7|knn:3:7 0:16 raw|conv:5:4x4x16 16:272 raw*0.1'
    '|mlp:4:16 0:16 power'
)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """A folder with images and with Python files of the user's own."""
    root = tmp_path_factory.mktemp('models')
    make_folders(root / 'Train', 3, seed=1)
    make_folders(root / 'Test', 2, seed=2)
    (root / 'narrow.py').write_text(NARROW)
    for block in documents.blocks('docs/extend.md'):
        if block.code.startswith('# my_'):
            (root / block.code.split('\n')[0].removeprefix('# ')).write_text(block.code)
    return root


def narrow(root, name, **changes):
    return small_config(root, model__backbone=f'py:{root / "narrow.py"}:{name}', **changes)


def own(root, **changes):
    return small_config(
        root,
        model__backbone=f'py:{root / "my_backbone.py"}:backbone',
        model__head=f'py:{root / "my_head.py"}:Head',
        features__layer='block2',
        **changes,
    )


CONFIGS = {
    'conv': lambda root: toy_config(root, model__head='conv'),
    'gap_linear': lambda root: toy_config(root, model__head='gap_linear'),
    'flatten_linear': lambda root: toy_config(root, model__head='flatten_linear'),
    'mlp': lambda root: toy_config(root, model__head='mlp', weights__preprocess='tf'),
    'ensemble': lambda root: toy_config(
        root, model__head=ENSEMBLE, features__layers=('block2:mean', 'block2:grid4')
    ),
    'all trained': lambda root: toy_config(root, optim__labels=(('.*', 'all'),)),
    'own': own,
    'vgg16': lambda root: narrow(
        root, 'vgg16', model__head='conv', weights__preprocess='caffe'
    ),
    'vgg16, trained': lambda root: narrow(
        root,
        'vgg16',
        features__layer='block5_pool',
        optim__labels=(('backbone/block[45].*', 'tail'), ('backbone/.*', 'frozen'), ('.*', 'head')),
    ),
    'vgg16, top': lambda root: narrow(
        root, 'vgg16', features__layer='predictions', data__image_size=(224, 224)
    ),
    'vgg19': lambda root: narrow(
        root, 'vgg19', features__layer='block5_pool', weights__preprocess='rescale'
    ),
    'bfloat16': lambda root: narrow(root, 'vgg16', model__dtype='bfloat16'),
}  # fmt: skip


def moved(trained):
    """A classifier whose state differs from what a module begins with; no share is negative."""
    rng = np.random.default_rng(0)

    def other(leaf):
        return (leaf + rng.uniform(0.1, 0.5, leaf.shape)).astype(np.float32)

    if trained.config.model.head.startswith('ensemble'):
        trainable = jax.tree.map(np.abs, trained.trainable)
        trained = dataclasses.replace(trained, trainable=trainable)
    frozen = trained.frozen._replace(state=jax.tree.map(other, trained.frozen.state))
    return dataclasses.replace(trained, frozen=frozen)


@pytest.mark.parametrize('name', CONFIGS)
def test_any_number_of_images(name, root):
    trained = moved(untrained(CONFIGS[name](root)))
    what = exported(trained)
    model = to_model(what.function, what.variables, what.shape, what.metadata)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    size = trained.config.data.image_size
    most = 17 if size == (32, 32) else 2
    x = np.random.default_rng(0).integers(0, 256, (most, *size, 3), np.uint8)
    batch = {'image': x}
    own = class_probabilities(trained.variables, batch, classifier=trained.classifier)
    expected = np.asarray(own)
    assert expected.std() > 1e-3
    tolerance = 0.02 if name == 'bfloat16' else 1e-5
    for images in {1, min(3, most), most}:
        (found,) = session.run(None, {INPUT: x[:images]})
        assert found.shape == (images, 3)
        np.testing.assert_allclose(found, expected[:images], rtol=0, atol=tolerance)
    operators = [node.op_type for node in model.graph.node]
    assert operators.count('Transpose') <= 4


@pytest.mark.parametrize('form', [saved_model_file, tflite_file])
@pytest.mark.parametrize('name', CONFIGS)
def test_tensorflow_computes_the_same(name, form, root, tmp_path):
    trained = moved(untrained(CONFIGS[name](root)))
    what = exported(trained)
    path = tmp_path / 'file'
    if form is saved_model_file:
        path.mkdir()
    form.write(what, path)
    program = form.program(path)
    size = trained.config.data.image_size
    most = 17 if size == (32, 32) else 2
    x = np.random.default_rng(0).integers(0, 256, (most, *size, 3), np.uint8)
    expected = np.asarray(jax.jit(what.function)(what.variables, x))
    assert expected.std() > 1e-3
    for images in {1, min(3, most), most}:
        np.testing.assert_allclose(program(x[:images]), expected[:images], rtol=0, atol=1e-5)

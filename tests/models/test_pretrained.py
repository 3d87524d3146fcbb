"""Reading and writing weights: every format as its own library writes it, and every refusal."""

import contextlib
import dataclasses
import hashlib
import os
import pickle
import sys
import zipfile

import h5py
import jax.numpy as jnp
import keras
import numpy as np
import onnx
import pytest
import safetensors.numpy
import torch
import vgg_reference as reference

from tlflax.models import pretrained
from tlflax.models.base.modules import Variables
from tlflax.models.vgg import network as vgg
from tlflax.models.vgg import rows
from tlflax.models.weights import file_formats
from tlflax.models.weights.identity import Identity
from tlflax.utils import trees
from tlflax.utils.errors import UserError

SIZES = {'widths': (4, 6, 8, 10, 12), 'units': 16, 'num_classes': 5}
NARROW = rows.make('vgg16', vgg.VGG16, **SIZES)


def load(path, row=rows.VGG16, *, top=False):
    """Reads weights, those of the top too if the file has them."""
    return pretrained.load(path, row, layer=None if top else 'block5_pool')


@pytest.fixture(scope='module')
def arrays():
    return reference.random_arrays(0, top=True, **SIZES)


@pytest.fixture
def keras_network(arrays):
    network = reference.keras_network(top=True, **SIZES)
    reference.keras_set(network, arrays)
    return network


@pytest.fixture(scope='module')
def torch_network():
    network = reference.TorchVGG16(top=True, **SIZES)
    network.randomize(1)
    return network


def numpy_state(network):
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def assert_same(params, want, *, top):
    want = {name: want[name] for name in want if top or name not in vgg.TOP}
    assert sorted(params) == sorted(want)
    for path, tensor in trees.flatten(want).items():
        got = trees.flatten(params)[path]
        assert got.dtype == np.float32, path
        np.testing.assert_array_equal(got, tensor, err_msg=path)


def assert_reads(path, want, *, top=True):
    """Loads a narrow network with and without its top, and compares bit by bit."""
    if top:
        found = load(path, NARROW, top=True)
        assert_same(found.variables.params, want, top=True)
        assert found.digest == trees.digest(found.variables.params)
    found = load(path, NARROW)
    assert_same(found.variables.params, want, top=False)
    assert (found.name, found.assumed) == ('custom', True)
    return found


# Keras


@pytest.mark.parametrize('name', ['n.h5', 'n.weights.h5', 'n.keras'])
def test_keras_files(arrays, keras_network, tmp_path, name):
    save = keras_network.save_weights if 'weights' in name else keras_network.save
    save(tmp_path / name)
    # The extension does not matter.
    os.rename(tmp_path / name, tmp_path / 'unnamed')
    found = assert_reads(tmp_path / 'unnamed', arrays)
    assert found.preprocess == 'caffe'
    assert 'named as in Keras' in found.recognized


@pytest.mark.parametrize('name', ['n.h5', 'n.weights.h5', 'n.keras'])
def test_keras_classifier_around_a_trained_vgg16(arrays, tmp_path, name):
    """The base nested in a Sequential model with another head and an optimizer's moments."""
    base = reference.keras_network(widths=SIZES['widths'])
    reference.keras_set(base, {k: v for k, v in arrays.items() if k not in vgg.TOP})
    base.trainable = False
    model = keras.Sequential([base, keras.layers.Flatten(), keras.layers.Dense(3)])
    model.compile('adam', 'mse')
    model.fit(np.zeros((1, 224, 224, 3)), np.zeros((1, 3)), verbose=0)
    save = model.save_weights if 'weights' in name else model.save
    save(tmp_path / name)
    found = assert_reads(tmp_path / name, arrays, top=False)
    assert 'other tensors are ignored' in found.recognized


@pytest.mark.parametrize('chunked', [False, True])
def test_the_file_that_keras_1_wrote(arrays, tmp_path, chunked):
    """The layout of vgg16_weights_tf_dim_ordering_tf_kernels.h5: bytes, `_W_1:0`, empty layers."""
    path = tmp_path / 'old.h5'
    with h5py.File(path, 'w') as file:
        names = ['input_1', *arrays, 'block5_pool']
        if chunked:
            file.attrs['layer_names0'] = [name.encode() for name in names[:7]]
            file.attrs['layer_names1'] = [name.encode() for name in names[7:]]
        else:
            file.attrs['layer_names'] = [name.encode() for name in names]
        for name in names:
            group = file.create_group(name)
            stored = {f'{name}_W_1:0': 'kernel', f'{name}_b_1:0': 'bias'} if name in arrays else {}
            group.attrs['weight_names'] = [key.encode() for key in stored]
            for key, leaf in stored.items():
                group[key] = arrays[name][leaf]
    assert_reads(path, arrays)


# PyTorch


@pytest.mark.parametrize('zipped', [True, False])
def test_pytorch_state_dict(torch_network, tmp_path, zipped):
    path = tmp_path / 'vgg16.pth'
    torch.save(torch_network.state_dict(), path, _use_new_zipfile_serialization=zipped)
    assert_computes_as_pytorch(path, torch_network)


def test_pytorch_training_checkpoint(torch_network, tmp_path):
    state = {f'module.{name}': t for name, t in torch_network.state_dict().items()}
    optimizer = torch.optim.Adam(torch_network.parameters())
    content = {'state_dict': state, 'epoch': 3, 'optimizer': optimizer.state_dict()}
    torch.save(content, tmp_path / 'last.ckpt')
    assert_computes_as_pytorch(tmp_path / 'last.ckpt', torch_network)


def test_torchvision_names_in_safetensors_and_npz(torch_network, tmp_path):
    state = numpy_state(torch_network)
    safetensors.numpy.save_file(state, tmp_path / 'a.safetensors', metadata={'format': 'pt'})
    np.savez(tmp_path / 'a.npz', **state)
    for name in ('a.safetensors', 'a.npz'):
        assert_computes_as_pytorch(tmp_path / name, torch_network)


def test_torchvision_names_in_onnx(torch_network, tmp_path):
    initializers = [
        onnx.numpy_helper.from_array(tensor, name)
        for name, tensor in numpy_state(torch_network).items()
    ]
    save_onnx(initializers, tmp_path / 'vgg16.onnx')
    assert_computes_as_pytorch(tmp_path / 'vgg16.onnx', torch_network)


def assert_computes_as_pytorch(path, network):
    """A wrong order of fc1's rows would fit every shape, so the outcome is compared."""
    found = load(path, NARROW, top=True)
    assert (found.name, found.preprocess, found.assumed) == ('custom', 'torch', True)
    images = np.random.default_rng(2).normal(size=(2, 224, 224, 3)).astype(np.float32)
    got = vgg.VGG(found.variables.params)(jnp.asarray(images), stop='predictions')
    np.testing.assert_allclose(got, network.probabilities(images), rtol=1e-4)
    assert 'fc1' not in load(path, NARROW).variables.params


def test_pytorch_file_that_carries_code_is_refused_unrun(tmp_path):
    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / 'ran'),))

    for zipped in (True, False):
        path = tmp_path / f'evil{zipped}.pth'
        torch.save({'a': Payload()}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(UserError, match=r'more than tensors; .*state_dict'):
            load(path)
    assert not (tmp_path / 'ran').exists()


def test_pytorch_file_without_pytorch(torch_network, tmp_path, monkeypatch):
    torch.save(torch_network.state_dict(), tmp_path / 'a.pth')
    monkeypatch.setitem(sys.modules, 'torch', None)
    with pytest.raises(UserError, match=r"pip install 'tlflax\[torch\]'"):
        load(tmp_path / 'a.pth')


# ONNX, npz, safetensors


def save_onnx(initializers, path, **options):
    graph = onnx.helper.make_graph([], 'graph', [], [], initializer=initializers)
    onnx.save(onnx.helper.make_model(graph), path, **options)


@pytest.mark.parametrize('beside', [False, True])
def test_onnx_with_the_names_of_tf2onnx(arrays, tmp_path, beside):
    initializers = []
    for name, layer in arrays.items():
        kernel = layer['kernel']
        if kernel.ndim == 4:
            kernel = kernel.transpose(3, 2, 0, 1)
            names = ('convolution/ReadVariableOp:0', 'Squeeze:0')
        else:
            names = ('Cast/ReadVariableOp:0', 'BiasAdd/ReadVariableOp:0')
        for tensor, leaf in zip((kernel, layer['bias']), names, strict=True):
            full = f'functional_1/{name}_1/{leaf}'
            initializers.append(onnx.numpy_helper.from_array(np.ascontiguousarray(tensor), full))
    shape = np.array([-1, 588], np.int64)
    initializers.append(onnx.numpy_helper.from_array(shape, 'functional_1/fc1_1/shape:0'))
    save_onnx(initializers, tmp_path / 'a.onnx', save_as_external_data=beside, size_threshold=0)
    found = assert_reads(tmp_path / 'a.onnx', arrays)
    assert found.source == 'a.onnx (ONNX)'


@pytest.mark.parametrize('prefix', ['', 'backbone/', 'params.'])
def test_npz(arrays, tmp_path, prefix):
    separator = prefix[-1:] or '/'
    flat = {prefix + k.replace('/', separator): a for k, a in trees.flatten(arrays).items()}
    np.savez(tmp_path / 'a.npz', step=np.int64(3), **flat)
    assert_reads(tmp_path / 'a.npz', arrays)


def test_big_endian_and_fortran_order_are_only_storage(arrays, tmp_path):
    flat = {k: np.asfortranarray(a.astype('>f4')) for k, a in trees.flatten(arrays).items()}
    np.savez(tmp_path / 'a.npz', **flat)
    found = assert_reads(tmp_path / 'a.npz', arrays)
    pretrained.save(tmp_path / 'a.safetensors', found)
    assert_same(load(tmp_path / 'a.safetensors', NARROW).variables.params, arrays, top=False)


def test_save_and_load_keep_everything(arrays, tmp_path):
    given = pretrained.Pretrained(
        variables=Variables(arrays, {}),
        name='mine',
        preprocess='rescale',
        license='CC0',
        digest=trees.digest(arrays),
        source='elsewhere',
    )
    path = tmp_path / 'new folder' / 'mine.safetensors'
    pretrained.save(path, given)
    found = load(path, NARROW, top=True)
    assert_same(found.variables.params, arrays, top=True)
    for key in ('name', 'preprocess', 'license', 'digest', 'assumed'):
        assert getattr(found, key) == getattr(given, key)
    with safetensors.safe_open(path, framework='numpy') as file:
        assert file.metadata()['source'] == 'elsewhere'
    without = load(path, NARROW)
    assert_same(without.variables.params, arrays, top=False)
    assert without.digest == trees.digest(without.variables.params) != given.digest
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_arrays_are_saved_in_their_own_order_whatever_their_strides(arrays, tmp_path):
    np.savez(tmp_path / 'a.npz', **trees.flatten(arrays))
    found = load(tmp_path / 'a.npz', NARROW)
    strided = trees.unflatten(
        {k: np.asfortranarray(a) for k, a in trees.flatten(found.variables.params).items()}
    )
    pretrained.save(
        tmp_path / 'a.safetensors', dataclasses.replace(found, variables=Variables(strided, {}))
    )
    assert_same(load(tmp_path / 'a.safetensors', NARROW).variables.params, arrays, top=False)


def test_a_name_that_the_digest_contradicts(arrays, tmp_path):
    given = pretrained.Pretrained(
        **dataclasses.asdict(rows.CAFFE),
        variables=Variables(arrays, {}),
        digest='',
        source='fine-tuned',
    )
    pretrained.save(tmp_path / 'a.safetensors', given)
    found = load(tmp_path / 'a.safetensors', NARROW)
    assert (found.name, found.preprocess) == ('custom', 'caffe')


def test_an_assumption_survives_saving(arrays, tmp_path):
    np.savez(tmp_path / 'a.npz', **trees.flatten(arrays))
    pretrained.save(tmp_path / 'a.safetensors', load(tmp_path / 'a.npz', NARROW))
    assert load(tmp_path / 'a.safetensors', NARROW).assumed


def test_save_leaves_the_old_file_whole_when_it_fails(arrays, tmp_path, monkeypatch):
    np.savez(tmp_path / 'a.npz', **trees.flatten(arrays))
    found = load(tmp_path / 'a.npz', NARROW)
    target = tmp_path / 'out' / 'a.safetensors'
    pretrained.save(target, found)
    before = target.read_bytes()

    def full_disk(*args):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'replace', full_disk)
    with pytest.raises(UserError, match=r'a.safetensors: cannot be written: .*No space left'):
        pretrained.save(target, dataclasses.replace(found, name='other'))
    assert target.read_bytes() == before
    assert [path.name for path in target.parent.iterdir()] == ['a.safetensors']


def test_save_where_no_file_can_be(arrays, tmp_path):
    (tmp_path / 'file').write_text('')
    np.savez(tmp_path / 'a.npz', **trees.flatten(arrays))
    found = load(tmp_path / 'a.npz', NARROW)
    with pytest.raises(UserError, match='cannot be written'):
        pretrained.save(tmp_path / 'file' / 'a.safetensors', found)


@pytest.mark.parametrize('change', ['tensor', 'preprocess', 'digest'])
def test_an_edited_file_of_ours_is_refused(arrays, tmp_path, change):
    np.savez(tmp_path / 'a.npz', **trees.flatten(arrays))
    path = tmp_path / 'a.safetensors'
    pretrained.save(path, load(tmp_path / 'a.npz', NARROW, top=True))
    tensors = safetensors.numpy.load_file(path)
    with safetensors.safe_open(path, framework='numpy') as file:
        metadata = file.metadata()
    if change == 'tensor':
        tensors['fc2/bias'] = tensors['fc2/bias'] + np.float32(1e-3)
    else:
        metadata[change] = 'nonsense'
    safetensors.numpy.save_file(tensors, path, metadata=metadata)
    with pytest.raises(UserError, match='were changed after it was written'):
        load(path, NARROW)


# Networks other than VGG16


def test_every_difference_is_listed(arrays, tmp_path):
    flat = trees.flatten(arrays)
    del flat['block2_conv1/bias']
    flat['block3_conv4/kernel'] = np.zeros((3, 3, 8, 8), np.float32)  # VGG19 has one
    flat['block5_conv3/kernel'] = flat['block5_conv3/kernel'][..., :-1]
    flat['block4_conv1/bias'] = flat['block4_conv1/bias'].astype(np.float16)
    np.savez(tmp_path / 'a.npz', **flat)
    with pytest.raises(UserError) as caught:
        load(tmp_path / 'a.npz', NARROW)
    lines = str(caught.value).splitlines()
    assert str(tmp_path / 'a.npz') in lines[0]
    assert [line.strip() for line in lines[1:4]] == [
        '- block2_conv1/bias float32[6]',
        '+ block3_conv4/kernel float32[3,3,8,8]',
        '! block4_conv1/bias float32[10], not float16[10]',
    ]
    assert '! block5_conv3/kernel float32[3,3,12,12], not float32[3,3,12,11]' in lines[4]
    assert len(lines) == 5


def test_batch_normalization_is_refused(tmp_path):
    layers, channels = [], 3
    for depth, width in zip(reference.DEPTHS, SIZES['widths'], strict=True):
        for _ in range(depth):
            convolution = torch.nn.Conv2d(channels, width, 3)
            layers += [convolution, torch.nn.BatchNorm2d(width), torch.nn.ReLU()]
            channels = width
        layers.append(torch.nn.MaxPool2d(2))
    network = torch.nn.ModuleDict({'features': torch.nn.Sequential(*layers)})
    torch.save(network.state_dict(), tmp_path / 'bn.pth')
    with pytest.raises(UserError, match=r'running_mean(.|\n)*batch normalization'):
        load(tmp_path / 'bn.pth', NARROW)


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_values_that_are_not_finite(arrays, tmp_path, value):
    flat = {k: a.copy() for k, a in trees.flatten(arrays).items()}
    flat['block3_conv2/kernel'][1, 1, 2, 3] = value
    np.savez(tmp_path / 'a.npz', **flat)
    with pytest.raises(UserError, match='block3_conv2/kernel holds NaN or infinity'):
        load(tmp_path / 'a.npz', NARROW)


def test_two_networks_in_one_file(arrays, tmp_path):
    flat = trees.flatten(arrays)
    ema = {f'ema/{path}': a for path, a in flat.items()}
    np.savez(tmp_path / 'a.npz', **flat, **ema)
    with pytest.raises(UserError, match='two tensors are block1_conv1/bias'):
        load(tmp_path / 'a.npz', NARROW)


def test_weights_of_something_else(tmp_path):
    np.savez(tmp_path / 'a.npz', conv1=np.zeros((7, 7, 3, 64), np.float32))
    with pytest.raises(UserError, match=r'no tensor is of a VGG \(it has conv1\)'):
        load(tmp_path / 'a.npz')


@pytest.mark.parametrize('sign', ['name', 'backend'])
def test_theano_kernels_are_refused(arrays, tmp_path, sign):
    path = tmp_path / ('vgg16_th_kernels_notop.h5' if sign == 'name' else 'a.h5')
    with h5py.File(path, 'w') as file:
        file.attrs['layer_names'] = [name.encode() for name in arrays]
        file.attrs['backend'] = b'theano' if sign == 'backend' else b'tensorflow'
        for name, layer in arrays.items():
            file.create_group(name).attrs['weight_names'] = [b'kernel:0', b'bias:0']
            for leaf, tensor in layer.items():
                file[name][f'{leaf}:0'] = tensor
    with pytest.raises(UserError, match=r'for Theano.* tf_kernels'):
        load(path, NARROW)


# Files that hold no weights


@pytest.mark.parametrize(
    ('name', 'content'),
    [
        ('page.h5', b'<!DOCTYPE html><html>404</html>'),
        ('empty.npz', b''),
        ('short.onnx', b'\x00'),
        ('image.pth', b'\x89PNG\r\n\x1a\n' + bytes(100)),
        ('object.pkl', pickle.dumps({'a': 1})),
        ('noise.safetensors', bytes(range(256)) * 4),
    ],
)
def test_a_file_that_holds_no_weights(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load(tmp_path / name)
    assert '\n' not in str(caught.value)
    assert name in str(caught.value)
    assert 'is not a weights file' in str(caught.value)
    assert 'safetensors' in caught.value.fix


def test_a_zip_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.keras', 'w') as archive:
        archive.writestr('readme.txt', 'hello')
    with pytest.raises(UserError, match='is not a weights file'):
        load(tmp_path / 'a.keras')


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match=r'none.h5: cannot be opened: No such file'):
        load(tmp_path / 'none.h5')
    with pytest.raises(UserError, match='it is a folder, not a file'):
        load(tmp_path)


BEGINNINGS = {
    'h5': b'\x89HDF\r\n\x1a\n',
    'npz': b'PK\x03\x04',
    'onnx': b'\x08',
    'safetensors': (1 << 20).to_bytes(8, 'little') + b'{',
    'legacy pth': b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.',
}


@pytest.mark.parametrize('kind', BEGINNINGS)
def test_a_file_much_larger_than_the_network_is_not_read(tmp_path, kind):
    with open(tmp_path / 'a', 'wb') as file:
        file.write(BEGINNINGS[kind])
        file.truncate(5 << 30)  # takes no room on the disk
    with pytest.raises(UserError, match='has 5,368,709,120 bytes, far more than the network needs'):
        load(tmp_path / 'a')


def test_tensors_much_larger_than_the_network_are_not_unpacked(tmp_path):
    np.savez_compressed(tmp_path / 'a.npz', a=np.zeros(1 << 20, np.float32))
    with h5py.File(tmp_path / 'a.h5', 'w') as file:
        file.create_dataset('a/vars/0', data=np.zeros(1 << 20, np.float32), compression=9)
    for name in ('a.npz', 'a.h5'):
        assert file_formats.read(tmp_path / name, most=1 << 23).tensors
        with pytest.raises(UserError, match=r'announces 4,19.,... bytes, and 1,048,576 are'):
            file_formats.read(tmp_path / name, most=1 << 20)


@pytest.mark.parametrize('kind', ['h5', 'keras', 'onnx', 'safetensors', 'npz', 'pth', 'legacy'])
def test_damaged_files_end_in_a_sentence(arrays, keras_network, torch_network, tmp_path, kind):
    """Cut short anywhere, or with bytes changed, a file is refused or, rarely, reads the same."""
    path = tmp_path / f'a.{kind}'
    state = torch_network.state_dict()
    if kind in ('h5', 'keras'):
        keras_network.save(path)
    elif kind == 'onnx':
        items = [onnx.numpy_helper.from_array(a, k) for k, a in numpy_state(torch_network).items()]
        save_onnx(items, path)
    elif kind == 'safetensors':
        safetensors.numpy.save_file(numpy_state(torch_network), path)
    elif kind == 'npz':
        np.savez(path, **trees.flatten(arrays))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == 'pth')
    whole = path.read_bytes()
    load(path, NARROW)
    rng = np.random.default_rng(0)
    for cut in (9, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError):
            load(path, NARROW)
    for _ in range(20):
        harmed = np.frombuffer(whole, np.uint8).copy()
        harmed[rng.integers(0, 600, 5)] = rng.integers(0, 256, 5)
        path.write_bytes(harmed.tobytes())
        with contextlib.suppress(UserError):
            load(path, NARROW)


# Identity and preprocessing


@pytest.mark.assets
def test_the_canonical_weights_are_known_by_their_digest(imagenet_weights_path, tmp_path):
    found = load(imagenet_weights_path)
    assert found.digest == rows.CANONICAL == trees.digest(found.variables.params)
    assert (found.name, found.preprocess, found.assumed) == ('imagenet-caffe', 'caffe', False)
    assert 'CC BY 4.0' in found.license
    first = found.variables.params['block1_conv1']
    for got, want in (
        (first['kernel'][0, :, 0, 0], [0.42947057, 0.373467, -0.06136011]),
        (first['bias'][:4], [0.73429835, 0.09340367, 0.06775674, 0.8862966]),
    ):
        np.testing.assert_allclose(got, want, rtol=1e-6)
    # In any file format; and they are not the same weights if one number differs in its last bit.
    flat = trees.flatten(found.variables.params)
    np.savez(tmp_path / 'same.npz', **flat)
    assert load(tmp_path / 'same.npz').name == 'imagenet-caffe'
    bias = flat['block5_conv3/bias'].copy()
    bias[511] = np.nextafter(bias[511], np.float32(1))
    np.savez(tmp_path / 'other.npz', **flat | {'block5_conv3/bias': bias})
    other = load(tmp_path / 'other.npz')
    assert (other.name, other.preprocess, other.assumed) == ('custom', 'caffe', True)


@pytest.mark.assets
def test_ports_of_the_canonical_weights(imagenet_weights_path, tmp_path):
    params = load(imagenet_weights_path).variables.params
    network = reference.TorchVGG16()
    network.set_convolutions(params)
    torch.save(network.state_dict(), tmp_path / 'bgr.pth')
    assert load(tmp_path / 'bgr.pth').digest == rows.CANONICAL
    with torch.no_grad():
        network.features[0].weight.copy_(network.features[0].weight.flip(1))
    torch.save(network.state_dict(), tmp_path / 'rgb.pth')
    found = load(tmp_path / 'rgb.pth')
    assert (found.name, found.digest) == ('imagenet-caffe', rows.CANONICAL)
    assert 'converted from RGB back to BGR' in found.recognized
    flat = trees.flatten(params)
    rotated = {k: a[::-1, ::-1] if a.ndim == 4 else a for k, a in flat.items()}
    np.savez(tmp_path / 'rotated.npz', **rotated)
    with pytest.raises(UserError, match='Theano'):
        load(tmp_path / 'rotated.npz')


def test_torchvisions_file_is_known_by_its_digest(torch_network, tmp_path, monkeypatch):
    path = tmp_path / 'vgg16.pth'
    torch.save(torch_network.state_dict(), path)
    assert load(path, NARROW).name == 'custom'
    monkeypatch.setitem(
        rows._FILES, hashlib.sha256(path.read_bytes()).hexdigest(), rows.TORCHVISION
    )
    found = load(path, NARROW)
    assert (found.name, found.preprocess, found.assumed) == ('imagenet-torchvision', 'torch', False)


def test_preprocessing_follows_the_weights_unless_told_otherwise():
    assert pretrained.resolve_preprocess(rows.CAFFE, 'auto') == ('caffe', None)
    assert pretrained.resolve_preprocess(rows.TORCHVISION, 'auto') == ('torch', None)
    assert pretrained.resolve_preprocess(rows.CAFFE, 'caffe') == ('caffe', None)


@pytest.mark.parametrize('requested', ['rescale', 'torch'])
def test_wrong_preprocessing_is_used_with_a_warning(requested):
    name, warning = pretrained.resolve_preprocess(rows.CAFFE, requested)
    assert name == requested
    assert warning.startswith('WRONG PREPROCESSING')
    assert repr(requested) in warning
    assert warning.endswith('--config.weights.preprocess=auto')


def test_assumed_preprocessing_is_said_and_can_be_overruled_in_silence():
    mine = Identity('custom', 'caffe', '', assumed=True)
    name, warning = pretrained.resolve_preprocess(mine, 'auto')
    assert name == 'caffe'
    assert '--config.weights.preprocess=torch' in warning
    assert pretrained.resolve_preprocess(mine, 'torch') == ('torch', None)
    assert pretrained.resolve_preprocess(mine, 'caffe') == ('caffe', None)


def test_unknown_preprocessing():
    with pytest.raises(UserError, match=r"config.weights.preprocess.*did you mean 'caffe'"):
        pretrained.resolve_preprocess(rows.CAFFE, 'cafe')

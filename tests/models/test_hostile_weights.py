"""Files of weights that would fill the memory, take forever or lead elsewhere are refused first."""

import io
import os
import struct
import time
import tracemalloc
import zipfile

import h5py
import numpy as np
import onnx
import pytest
import torch

from tlflax.models.weights import file_formats
from tlflax.utils.errors import UserError


def refused(path, *, match):
    """Checks that a file is refused with a sentence, soon and before it takes memory."""
    tracemalloc.start()
    began = time.monotonic()
    try:
        with pytest.raises(UserError, match=match) as caught:
            file_formats.read(path)
        assert '\n' not in str(caught.value)
        assert time.monotonic() - began < 5
        assert tracemalloc.get_traced_memory()[1] < 1 << 26
    finally:
        tracemalloc.stop()


# HDF5


@pytest.mark.parametrize('shape', [(10**14,), (2 * 10**8,)])
def test_a_dataset_that_announces_more_than_the_file_has(tmp_path, shape):
    path = tmp_path / 'a.h5'
    with h5py.File(path, 'w') as file:
        file.create_dataset('a/vars/0', shape=shape, chunks=(1000,), dtype='f4')
    refused(path, match='announces [0-9,]+ bytes, and [0-9,]+ are expected')


def test_a_chunk_larger_than_its_dataset(tmp_path):
    path = tmp_path / 'a.h5'
    with h5py.File(path, 'w') as file:
        file.create_dataset('a', shape=(1,), maxshape=(None,), chunks=(2**29,), dtype='f4')
    refused(path, match='announces')


def test_a_dataset_in_very_many_chunks(tmp_path):
    path = tmp_path / 'a.h5'
    with h5py.File(path, 'w') as file:
        file.create_dataset('a/vars/0', shape=(2**20,), chunks=(1,), dtype='f4')
    refused(path, match='cut into more than 65,536 pieces')


def test_datasets_in_other_files(tmp_path):
    (tmp_path / 'other').write_bytes(bytes(400))
    with h5py.File(tmp_path / 'a.h5', 'w') as file:
        file.create_dataset('a', (100,), 'f4', external=[(str(tmp_path / 'other'), 0, 400)])
    refused(tmp_path / 'a.h5', match='stored in other files')


@pytest.mark.parametrize('listed', [True, False])
def test_virtual_datasets_of_unlimited_length(tmp_path, listed):
    """Their shape is that of another file, which HDF5 opens for it; here it would wait."""
    os.mkfifo(tmp_path / 'pipe')
    layout = h5py.VirtualLayout((1, 3), 'f4', maxshape=(None, 3))
    source = h5py.VirtualSource(str(tmp_path / 'pipe'), 'x', (1, 3), 'f4', maxshape=(None, 3))
    layout[0 : h5py.h5s.UNLIMITED] = source[0 : h5py.h5s.UNLIMITED]
    with h5py.File(tmp_path / 'a.h5', 'w', libver='latest') as file:
        group = file.create_group('a')
        group.create_virtual_dataset('k', layout)
        if listed:
            file.attrs['layer_names'], group.attrs['weight_names'] = [b'a'], [b'k']
    refused(tmp_path / 'a.h5', match='stored in other files')


@pytest.mark.parametrize('link', [h5py.ExternalLink('/dev/zero', '/'), h5py.SoftLink('/a')])
def test_links_of_layer_lists(tmp_path, link):
    with h5py.File(tmp_path / 'a.h5', 'w') as file:
        file.attrs['layer_names'] = [b'a']
        file['a'] = link
    refused(tmp_path / 'a.h5', match="'a' is a link to somewhere else")


def test_a_list_that_names_a_tensor_twice(tmp_path):
    with h5py.File(tmp_path / 'a.h5', 'w') as file:
        file.attrs['layer_names'] = [b'a']
        file.create_group('a').attrs['weight_names'] = [b'k'] * 2
        file['a/k'] = np.zeros(3, np.float32)
    refused(tmp_path / 'a.h5', match='a/k is listed twice')


def test_datasets_that_are_no_numbers_are_left_out(tmp_path):
    with h5py.File(tmp_path / 'a.h5', 'w') as file:
        file['a/vars/0'], file['a/vars/1'] = 'text', h5py.Empty('f4')
        file['a/vars/2'] = np.ones(3, np.float32)
        file.attrs['backend'] = 'kept'
    found = file_formats.read(tmp_path / 'a.h5')
    assert list(found.tensors) == ['a//2']
    assert found.metadata == {'backend': 'kept'}


@pytest.mark.parametrize('texts', [['kernel', 'bias'], 'backend'])
def test_a_text_that_says_it_is_long(tmp_path, texts):
    """HDF5 would clear 4 GB before it found that the text is not there."""
    name = 'layer_names' if isinstance(texts, list) else 'backend'
    with h5py.File(tmp_path / 'a.h5', 'w') as file:
        file.attrs[name] = texts
    data = (tmp_path / 'a.h5').read_bytes()
    length = len(texts[-1]) if isinstance(texts, list) else len(texts)
    heap = struct.pack('<Q', data.index(b'GCOL'))
    at = data.rindex(struct.pack('<I', length) + heap)
    (tmp_path / 'a.h5').write_bytes(data[:at] + b'\xf0\xff\xff\xff' + data[at + 4 :])
    refused(tmp_path / 'a.h5', match=f'attribute .{name}. announces more than the file has')


def test_names_that_are_numbers(tmp_path):
    with h5py.File(tmp_path / 'a.h5', 'w') as file:
        file.attrs['layer_names'] = [1, 2]
    refused(tmp_path / 'a.h5', match="attribute 'layer_names' holds no texts")


# Archives


def header(shape):
    file = io.BytesIO()
    head = {'descr': '<f4', 'fortran_order': False, 'shape': shape}
    np.lib.format.write_array_header_1_0(file, head)
    return file.getvalue()


@pytest.mark.parametrize('shape', [(10**14,), (2**40, 2**40), (3,), (-1, -2), (1,)])
def test_an_array_that_announces_another_size_than_it_has(tmp_path, shape):
    with zipfile.ZipFile(tmp_path / 'a.npz', 'w') as archive:
        archive.writestr('a.npy', header(shape) + bytes(8))
    refused(tmp_path / 'a.npz', match="'a.npy' announces another size than it has")


def test_a_member_that_is_no_array(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.npz', 'w') as archive:
        archive.writestr('a.npy', 'hello')
    refused(tmp_path / 'a.npz', match='cannot be read as npz')


@pytest.mark.parametrize(
    'member', ['a.npy', 'model.weights.h5', 'x/data.pkl'], ids=['npz', 'keras', 'pth']
)
def test_a_zip_bomb(tmp_path, member):
    path, block = tmp_path / 'bomb', bytes(1 << 24)
    packed = zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED)
    with packed as archive, archive.open(member, 'w') as file:
        for _ in range(20):
            file.write(block)
    assert path.stat().st_size < 1 << 20
    refused(path, match='announces 335,544,320 bytes')


def test_names_of_members_that_are_no_text(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.npz', 'w') as archive:
        archive.writestr('größe.npy', b'')
    data = (tmp_path / 'a.npz').read_bytes()
    (tmp_path / 'a.npz').write_bytes(data.replace('ö'.encode(), b'\xff\xff'))
    refused(tmp_path / 'a.npz', match='is a damaged archive')


def test_packing_that_asks_for_any_amount_of_memory(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.npz', 'w', zipfile.ZIP_LZMA) as archive:
        archive.writestr('a.npy', header((2,)) + bytes(8))
    refused(tmp_path / 'a.npz', match="'a.npy' is packed in a way that is not read here")


# PyTorch


@pytest.mark.parametrize('zipped', [True, False])
def test_one_number_that_stands_for_a_huge_tensor(tmp_path, zipped):
    state = {'a': torch.zeros(1).expand(10**10)}
    torch.save(state, tmp_path / 'a.pth', _use_new_zipfile_serialization=zipped)
    refused(tmp_path / 'a.pth', match='announces 40,000,000,000 bytes')


class Filler:
    def __reduce__(self):
        return bytearray, (3 * 10**9,)


@pytest.mark.parametrize('zipped', [True, False])
def test_a_pickle_that_asks_for_memory(tmp_path, zipped):
    torch.save({'a': Filler()}, tmp_path / 'a.pth', _use_new_zipfile_serialization=zipped)
    refused(tmp_path / 'a.pth', match='holds more than tensors')


@pytest.mark.parametrize(('levels', 'match'), [(15, ''), (200, 'nested more than 16 deep')])
def test_dicts_within_dicts(tmp_path, levels, match):
    state = torch.zeros(1)
    for _ in range(levels):
        state = {'a': state}
    torch.save(state, tmp_path / 'a.pth')
    if match:
        refused(tmp_path / 'a.pth', match='cannot be read as PyTorch')
    else:
        assert list(file_formats.read(tmp_path / 'a.pth').tensors) == ['.'.join('a' * levels)]


def test_a_dict_that_stands_in_very_many(tmp_path):
    state = {}
    for _ in range(16):
        state = dict.fromkeys('abc', state)
    torch.save(state, tmp_path / 'a.pth')
    # Checked annotations and traced memory would take most of the time.
    with pytest.raises(UserError, match='more than 65,536 entries'):
        file_formats.read(tmp_path / 'a.pth')


# ONNX


def save_onnx(path, count=1, dims=(2, 3), **entries):
    tensors = []
    for number in range(count):
        tensor = onnx.TensorProto(name=f'{number}', dims=dims, data_type=onnx.TensorProto.FLOAT)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
    graph = onnx.helper.make_graph([], 'g', [], [], initializer=tensors)
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())


def test_side_files_are_read(tmp_path):
    (tmp_path / 'side').write_bytes(np.arange(8, dtype=np.float32).tobytes())
    save_onnx(tmp_path / 'a.onnx', location='side', offset=4, length=24)
    found = file_formats.read(tmp_path / 'a.onnx').tensors['0']
    np.testing.assert_array_equal(found, np.arange(1, 7).reshape(2, 3))


@pytest.mark.parametrize(
    'entries',
    [
        {'location': 'none'},
        {'location': '../side', 'length': 24},
        {'location': '/etc/passwd', 'length': 24},
        {'location': 'side', 'length': 10**12},
        {'location': 'side', 'length': -24},
        {'location': 'side', 'length': 'many'},
        {'location': 'pipe', 'length': 24},
        {'location': '.', 'length': 24},
    ],
)
def test_side_files_that_are_not_there(tmp_path, entries):
    folder = tmp_path / 'inside'
    folder.mkdir()
    for place in (tmp_path, folder):
        (place / 'side').write_bytes(bytes(24))
    os.mkfifo(folder / 'pipe')
    save_onnx(folder / 'a.onnx', **entries)
    refused(folder / 'a.onnx', match='cannot be read as ONNX')


def test_very_many_tensors_in_one_side_file(tmp_path):
    (tmp_path / 'side').write_bytes(bytes(1 << 22))
    save_onnx(tmp_path / 'a.onnx', 200, dims=(1 << 20,), location='side', length=1 << 22)
    refused(tmp_path / 'a.onnx', match='announces')


def test_shapes_without_numbers(tmp_path):
    tensor = onnx.TensorProto(name='a', dims=(10**6, 10**6), data_type=onnx.TensorProto.FLOAT)
    graph = onnx.helper.make_graph([], 'g', [], [], initializer=[tensor])
    (tmp_path / 'a.onnx').write_bytes(onnx.helper.make_model(graph).SerializeToString())
    refused(tmp_path / 'a.onnx', match='announces')


def test_names_of_tensors_are_printable(tmp_path):
    np.savez(tmp_path / 'a.npz', **{'a\nb\x1b[2J': np.zeros(3)})
    assert list(file_formats.read(tmp_path / 'a.npz').tensors) == ['a�b�[2J']

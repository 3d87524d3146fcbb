"""The conversion script, as a command line."""

import numpy as np
import pytest
import torch
import vgg_reference as reference
from helpers import ROOT, run_script

from tlflax.models import pretrained
from tlflax.models.vgg import rows
from tlflax.utils import trees

SCRIPT = ROOT / 'scripts' / 'convert_weights.py'


def run(*arguments):
    return run_script(SCRIPT, *arguments)


def printed(done):
    assert (done.returncode, done.stderr) == (0, '')
    return dict(line.split(None, 1) for line in done.stdout.splitlines())


@pytest.fixture(scope='module')
def torch_file(tmp_path_factory):
    path = tmp_path_factory.mktemp('weights') / 'mine.pth'
    network = reference.TorchVGG16()
    network.set_convolutions(reference.random_arrays(0))
    torch.save(network.state_dict(), path)
    return path


def test_it_converts_and_says_what_it_found(torch_file, tmp_path):
    told = printed(run(torch_file, tmp_path / 'mine.safetensors'))
    arrays = reference.random_arrays(0)
    assert told['digest'] == trees.digest(arrays)
    assert told['source'] == 'mine.pth (PyTorch)'
    assert told['recognized'].startswith('custom: no known digest; layers named as in torchvision')
    assert told['tensors'] == '26, block1_conv1 to block5_conv3'
    assert told['preprocess'] == 'torch (assumed)'
    found = pretrained.load(tmp_path / 'mine.safetensors', rows.VGG16)
    np.testing.assert_array_equal(
        found.variables.params['block5_conv3']['kernel'], arrays['block5_conv3']['kernel']
    )


def test_a_stated_preprocessing_travels_with_the_file(torch_file, tmp_path):
    told = printed(run(torch_file, tmp_path / 'a.safetensors', '--preprocess=caffe'))
    assert told['preprocess'] == 'caffe'
    found = pretrained.load(tmp_path / 'a.safetensors', rows.VGG16)
    assert (found.preprocess, found.assumed) == ('caffe', False)
    refused = run(tmp_path / 'a.safetensors', tmp_path / 'b.safetensors', '--preprocess=torch')
    assert refused.returncode == 2
    assert "need 'caffe' preprocessing, not 'torch'" in refused.stderr
    assert not (tmp_path / 'b.safetensors').exists()


def test_bad_input_ends_in_one_sentence(tmp_path):
    (tmp_path / 'notes.h5').write_text('not weights')
    done = run(tmp_path / 'notes.h5', tmp_path / 'a.safetensors')
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr.startswith('error: ')
    assert len(done.stderr.splitlines()) == 1
    assert str(tmp_path / 'notes.h5') in done.stderr
    assert not (tmp_path / 'a.safetensors').exists()


@pytest.mark.assets
def test_the_canonical_weights(imagenet_weights_path, tmp_path):
    told = printed(run(imagenet_weights_path, tmp_path / 'vgg16.safetensors'))
    assert told['digest'] == rows.CANONICAL
    assert told['recognized'].startswith('imagenet-caffe')
    assert told['preprocess'] == 'caffe'
    assert pretrained.load(tmp_path / 'vgg16.safetensors', rows.VGG16).name == 'imagenet-caffe'

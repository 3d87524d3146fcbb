"""Valid inputs of every loader, made in code, for `fuzz_targets`."""

import dataclasses
import functools
import io
import json
import math
import random
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from image_samples import SAMPLES

WIDTHS = (1, 2, 1, 2, 1)
COUNT = 300  # of scanned files: an array of few is read to its checksum in any case
_DEPTHS = (2, 2, 3, 3, 3)


def images() -> list[bytes]:
    """One image of every format and coding."""
    return list(SAMPLES.values())


# Weights


def _vgg() -> dict[str, np.ndarray]:
    """The canonical tensors of a VGG16 of narrow layers."""
    rng, channels, found = np.random.default_rng(0), 3, {}
    for block, (depth, width) in enumerate(zip(_DEPTHS, WIDTHS, strict=True), start=1):
        for i in range(1, depth + 1):
            kernel = rng.standard_normal((3, 3, channels, width)).astype(np.float32)
            found[f'block{block}_conv{i}/kernel'] = kernel
            found[f'block{block}_conv{i}/bias'] = kernel[0, 0, 0]
            channels = width
    return found


def _torch_state() -> dict[str, np.ndarray]:
    """The same, named and laid out as in torchvision."""
    found, position = {}, 0
    for name, tensor in _vgg().items():
        layer, leaf = name.split('/')
        if leaf == 'kernel':
            found[f'features.{position}.weight'] = tensor.transpose(3, 2, 0, 1).copy()
            continue
        found[f'features.{position}.bias'] = tensor
        position += 3 if layer in ('block1_conv2', 'block2_conv2') or '_conv3' in layer else 2
    return found


def _h5(legacy: bool = False, **options: Any) -> bytes:
    import h5py

    file, tensors = io.BytesIO(), _vgg()
    with h5py.File(file, 'w') as root:
        layers = list(dict.fromkeys(name.split('/')[0] for name in tensors))
        if legacy:
            root.attrs['layer_names'] = [layer.encode() for layer in layers]
        for layer in layers:
            group = root.create_group(layer if legacy else f'layers/{layer}/vars')
            kernel, bias = tensors[f'{layer}/kernel'], tensors[f'{layer}/bias']
            names = (f'{layer}_W_1:0', f'{layer}_b_1:0') if legacy else ('0', '1')
            if legacy:
                group.attrs['weight_names'] = [name.encode() for name in names]
            else:
                group.attrs['name'] = layer
            for name, tensor in zip(names, (kernel, bias), strict=True):
                group.create_dataset(name, data=tensor, **options)
    return file.getvalue()


def _keras() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        archive.writestr('metadata.json', '{"keras_version": "3.15.1"}')
        archive.writestr('model.weights.h5', _h5())
    return file.getvalue()


def _onnx(**changes: Any) -> bytes:
    import onnx

    tensors = [onnx.numpy_helper.from_array(a, name) for name, a in _torch_state().items()]
    for key, value in changes.items():
        entry = tensors[0].external_data.add()
        entry.key, entry.value = key, value
        tensors[0].data_location = onnx.TensorProto.EXTERNAL
    graph = onnx.helper.make_graph([], 'vgg', [], [], initializer=tensors)
    return onnx.helper.make_model(graph).SerializeToString()


def _npz(tensors: dict[str, np.ndarray], packed: bool = False) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(file, **tensors)
    return file.getvalue()


def _toy() -> dict[str, np.ndarray]:
    from toy_backbone import toy

    from tlflax.utils import trees

    variables = toy.shapes('block3')
    flat = trees.flatten(trees.merge(*variables))
    return {path: np.ones(leaf.shape, leaf.dtype) for path, leaf in flat.items()}


def _torch(**options: Any) -> bytes:
    import torch

    file = io.BytesIO()
    state = {name: torch.from_numpy(tensor) for name, tensor in _torch_state().items()}
    torch.save({'epoch': 3, 'model': state}, file, **options)
    return file.getvalue()


def _declared() -> bytes:
    """A file as `pretrained.save` writes it."""
    import safetensors.numpy

    from tlflax.utils import trees

    metadata = {'format': 'tlflax', 'name': 'custom', 'preprocess': 'caffe', 'license': 'mine'}
    metadata |= {'assumed': 'False', 'digest': trees.digest(_vgg())}
    return safetensors.numpy.save(_vgg(), metadata)


def weights(kind: str) -> list[bytes]:
    """Weights of a narrow VGG16, or of the toy backbone, in a format."""
    import safetensors.numpy

    makers = {
        'h5': lambda: [_h5(), _h5(compression='gzip', chunks=True)],
        'h5 of Keras 1': lambda: [_h5(legacy=True), _h5(legacy=True, maxshape=None)],
        'keras': lambda: [_keras()],
        'onnx': lambda: [_onnx(), _onnx(location='weights', offset='0', length='108')],
        'safetensors': lambda: [
            safetensors.numpy.save(_torch_state()),
            _declared(),
        ],
        'npz': lambda: [_npz(_vgg()), _npz(_vgg(), packed=True)],
        'npz by path': lambda: [_npz(_toy())],
        'pth': lambda: [_torch()],
        'pth of old PyTorch': lambda: [_torch(_use_new_zipfile_serialization=False)],
    }
    return makers[kind]()


# Data


def csvs() -> list[bytes]:
    """Manifests as tables."""
    return [
        b'path,label,split,weight,group\nred/1.jpg,red,train,1.0,street 7\na.jpg,green,val,,x\n',
        '\ufeffpath;label\r\n"größe;1.jpg";"a ""b"""\r\nc.jpg;d\r\n'.encode(),
        b'label\tpath\tnotes\nred\t/abs/1.jpg\tlong text\n',
    ]


def jsonls() -> list[bytes]:
    """Manifests as JSON lines."""
    rows = [
        {'path': 'red/1.jpg', 'label': 'red', 'split': 'train', 'weight': 2.5, 'group': 7},
        {'path': 'b.jpg', 'label': 1, 'split': 'test', 'extra': {'a': [1, None, {'b': []}]}},
    ]
    plain = b'{"path": "\\u00e4.jpg", "label": "\\ud83d\\ude00"}\n\n{"path": "x", "label": "y"}'
    return [''.join(json.dumps(row) + '\n' for row in rows).encode(), plain]


def patterns() -> list[bytes]:
    """Patterns below the folder that `tree` makes."""
    found = '*/{class}/*.jpg **/{class}_*.png [a-c]*/{class}/?.jpg */{class}/{class}_[!x]* {class}*'
    return found.encode().split(b' ')


def tree(folder: Path) -> Path:
    """Makes a folder of files with names that are hard to match, once."""
    root = folder / 'tree'
    for path in (
        'a/cat/1.jpg',
        'b/dog/dog_2.png',
        'c/d/e/f.jpg',
        'a' * 255,
        'b/[x]/*',
        'b/ \n/ä.jpg',
    ):
        if not (root / path).exists():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(b'')
    return root


@functools.cache
def scanned() -> tuple[list[Any], list[Any], list[Any]]:
    """Entries of a folder, what they are, and what they were before they changed."""
    from tlflax.data.images.files import Entry, ScannedFile

    rng = random.Random(0)
    entries, files, older = [], [], []
    for number in range(COUNT):
        entries.append(Entry(f'red/{number}.jpg', 1000 + number, 5 * number, 7 * number))
        for found in (files, older):
            digest, looks = rng.randbytes(32).hex(), rng.randbytes(56)
            good = ScannedFile(
                *('JPEG', '', digest, 'JPEG', 'RGB', number + 1, 2, 1),
                *(number % 2 > 0, number % 3 > 0, looks),
            )
            found.append(good if number % 4 else ScannedFile('PNG', 'is a truncated PNG'))
    return entries, files, older


def scan_caches() -> list[bytes]:
    """What is remembered of a folder, and what was before every file of it changed."""
    from tlflax.data.images.scan_cache import save

    entries, files, older = scanned()
    before = [entry._replace(mtime_ns=entry.mtime_ns + 1) for entry in entries]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for one, two in ((entries, files), (before, older)):
            save(Path(folder) / 'scan.npz', one, two)
            found.append((Path(folder) / 'scan.npz').read_bytes())
    return found


# Configuration


def noise() -> list[bytes]:
    """Bytes, from which `raw_config` and others make a value."""
    return [bytes(range(64)), bytes(64)]


@functools.cache
def _plain_values() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    deep: Any = 0
    for _ in range(900):
        deep = [deep]
    return [
        None, True, 0, 1, -1, 2**31, 2**63, -(10**400), 10**5000, 0.5, math.nan, math.inf, -1e308,
        '', 'auto', 'True', 'adam', 'x' * 10**5, 'a\nb', '\ud800', '\0', b'\xff', 1j, object(), len,
        loop, deep, np.float32(1), np.zeros(3), int, range(3), Path('a'), 7, 0.01, [1, 2], (0, 1.0),
    ]  # fmt: skip


def any_value(rng: random.Random, level: int = 0) -> Any:
    """Returns a value of any type that a Python file or JSON may hold."""
    plain = _plain_values()
    if level > 2 or rng.random() < 0.6:
        return rng.choice(plain)
    inner = [any_value(rng, level + 1) for _ in range(rng.randrange(4))]
    return rng.choice((inner, tuple(inner), {'x': inner}, {rng.choice(plain[:20]): inner}))


def raw_config(data: bytes) -> Any:
    """Returns two sections of the configuration with some values replaced by any others."""
    from tlflax.config.parse import to_dict
    from tlflax.config.schema import Config

    rng, whole = random.Random(data), to_dict(Config())
    if rng.random() < 0.05:
        return any_value(rng)
    raw: dict[Any, Any] = {section: whole[section] for section in rng.sample(list(whole), 2)}
    for _ in range(rng.randint(1, 3)):
        section = rng.choice(list(raw))
        if rng.random() < 0.1 or not isinstance(raw[section], dict):
            raw[rng.choice((section, 'trian', '', 'a\nb', 3, None, 10**5000))] = any_value(rng)
        else:
            key = rng.choice((*raw[section], 'epohcs', '\ud800', 1.5))
            raw[section][key] = any_value(rng)
    return raw


@functools.cache
def _command() -> Any:
    from tlflax.config import cli, flags

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Arguments:
        config: flags.ConfigFile = flags.config_file(needed=False)
        workdir: str = flags.optional('', 'DIR', 'a folder')
        mode: str = flags.choice('a', ('a', 'b'), 'a choice')
        tta: bool = flags.switch('a switch')
        names: tuple[str, ...] = flags.optional(('x',), 'A,B', 'some names')
        images: tuple[str, ...] = flags.positional('image', 'IMAGE...', 'some images')

    return cli.Command('tlflax.fuzz', 'Tests.', Arguments, lambda arguments: None, 'a.jpg')


def command_lines() -> list[bytes]:
    """Arguments, separated by NUL."""
    return [
        b'--config.train.epochs=3\0--config.optim.learning_rate=1e-3\0a.jpg',
        b'--config.data.image_size=(64, 64)\0--tta\0--mode=b\0--workdir=r\0--names=a,b\0x.jpg',
        b"--config.optim.labels=(('head/.*', 'head'), ('.*', 'frozen'))\0--notta\0--\0-x.jpg",
        b'--config.features.cache=False\0--noconfig.augment.horizontal_flip\0a.jpg\0b.jpg',
    ]


def parse_command_line(data: bytes, folder: Path) -> None:
    """Parses arguments as every command does, and resolves the configuration."""
    from tlflax.config.parse import resolve

    arguments = data.decode('utf-8', 'surrogateescape').split('\0')
    arguments = [
        one for one in arguments if not one.lstrip('-').startswith(('flagfile', 'config='))
    ]
    parsed = _command().parse(arguments)
    resolve(parsed.config.values)

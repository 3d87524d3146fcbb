"""One contestant of `bench_backbone.py`: runs a batch for every line on its input.

python scripts/bench_peers.py NAME FOLDER [--guess]

FOLDER holds params.npz and images.npy; the output of every batch goes there as NAME.npy, outside
the measured time. Answers are lines of JSON: {} when ready or {"absent": why}, then {"seconds": s}.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Params = dict[str, dict[str, np.ndarray]]
Run = Callable[[np.ndarray], object]  # images to an array of block5_pool, both [b, h, w, c]

DEPTHS = (2, 2, 3, 3, 3)
SIZE = 224


def blocks() -> list[list[str]]:
    """The names of the convolutions, block by block."""
    return [[f'block{b}_conv{i + 1}' for i in range(d)] for b, d in enumerate(DEPTHS, start=1)]


def tlflax(params: Params) -> Run:
    """Ours on all cores, with a plan for each batch size."""
    from tlflax.models.vgg import autotune, cores
    from tlflax.utils import assets

    runs: dict[int, Run] = {}

    def run(x: np.ndarray) -> object:
        if x.shape[0] not in runs:
            folder = assets.cache_folder() / 'plans'
            measured = '--guess' not in sys.argv
            chosen = autotune.choose(params, x.shape[:3], folder, measured=measured)
            runs[x.shape[0]] = cores.compiled(params, chosen)
        return runs[x.shape[0]](x)

    return run


def tlflax_jit(params: Params) -> Run:
    """Ours inside one compiled program, as in live training."""
    import functools

    import jax

    from tlflax.models.vgg import autotune, fast_cpu
    from tlflax.models.vgg import network as vgg

    chosen = autotune.guess(vgg.WIDTHS, (8, SIZE, SIZE))
    prepared = fast_cpu.prepare(params, chosen)
    program = jax.jit(functools.partial(fast_cpu.features, plan=chosen))
    return lambda x: program(prepared, x)


def xla_direct(params: Params) -> Run:
    """XLA's own convolution."""
    import functools

    import jax

    from tlflax.models.vgg import network as vgg

    program = jax.jit(lambda params, x: vgg.VGG(params)(x))
    return functools.partial(program, jax.device_put(params))


def _keras(params: Params) -> Run:
    import keras

    model = keras.applications.VGG16(weights=None, include_top=False, input_shape=(SIZE, SIZE, 3))
    for name, layer in params.items():
        model.get_layer(name).set_weights([layer['kernel'], layer['bias']])
    return model.predict_on_batch


def tensorflow(params: Params) -> Run:
    """Keras on TensorFlow."""
    return _keras(params)


def keras_jax(params: Params) -> Run:
    """Keras on JAX."""
    return _keras(params)


def torch(params: Params) -> Run:
    """PyTorch in its faster memory format."""
    import torch

    layers: list[torch.nn.Module] = []
    for names in blocks():
        for name in names:
            kernel = torch.tensor(params[name]['kernel']).permute(3, 2, 0, 1)
            conv = torch.nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, padding=1)
            conv.weight = torch.nn.Parameter(kernel.contiguous())
            conv.bias = torch.nn.Parameter(torch.tensor(params[name]['bias']))
            layers += [conv, torch.nn.ReLU(inplace=True)]
        layers.append(torch.nn.MaxPool2d(2))
    network = torch.nn.Sequential(*layers)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(x: np.ndarray) -> object:
        with torch.inference_mode():
            # [b, h, w, c] in memory is [b, c, h, w] in the format channels_last
            return network(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    return run


def onnx_model(params: Params) -> bytes:
    """The network as an ONNX graph; images come and features go as [b, h, w, c]."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, arrays = [helper.make_node('Transpose', ['images'], ['x'], perm=[0, 3, 1, 2])], []
    last = 'x'
    for number, names in enumerate(blocks(), start=1):
        for name in names:
            kernel = np.ascontiguousarray(params[name]['kernel'].transpose(3, 2, 0, 1))
            arrays.append(numpy_helper.from_array(kernel, f'{name}/kernel'))
            arrays.append(numpy_helper.from_array(params[name]['bias'], f'{name}/bias'))
            inputs = [last, f'{name}/kernel', f'{name}/bias']
            pads = [1, 1, 1, 1]
            nodes.append(helper.make_node('Conv', inputs, [name], kernel_shape=[3, 3], pads=pads))
            last = f'{name}/relu'
            nodes.append(helper.make_node('Relu', [name], [last]))
        pool = f'block{number}_pool'
        window = [2, 2]
        nodes.append(
            helper.make_node('MaxPool', [last], [pool], kernel_shape=window, strides=window)
        )
        last = pool
    nodes.append(helper.make_node('Transpose', [last], ['features'], perm=[0, 2, 3, 1]))
    of = helper.make_tensor_value_info
    images = of('images', TensorProto.FLOAT, ['batch', SIZE, SIZE, 3])
    features = of('features', TensorProto.FLOAT, ['batch', 7, 7, 512])
    graph = helper.make_graph(nodes, 'vgg16', [images], [features], arrays)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)])
    model.ir_version = 8
    return model.SerializeToString()


def onnxruntime(params: Params) -> Run:
    """ONNX Runtime as it comes: all optimizations, a thread per core."""
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_model(params), providers=['CPUExecutionProvider'])
    return lambda x: session.run(None, {'images': x})[0]


def openvino(params: Params) -> Run:
    """OpenVINO in float32, all cores on one batch."""
    import openvino

    core = openvino.Core()
    settings = {'INFERENCE_PRECISION_HINT': 'f32', 'PERFORMANCE_HINT': 'LATENCY'}
    model = core.compile_model(core.read_model(onnx_model(params), b''), 'CPU', settings)
    return lambda x: model(x)[0]


def openvino_streams(params: Params) -> Run:
    """OpenVINO in float32, the batch shared by as many requests as it finds best."""
    import openvino

    core = openvino.Core()
    settings = {'INFERENCE_PRECISION_HINT': 'f32', 'PERFORMANCE_HINT': 'THROUGHPUT'}
    model = core.compile_model(core.read_model(onnx_model(params), b''), 'CPU', settings)
    queue = openvino.AsyncInferQueue(model)

    def run(x: np.ndarray) -> np.ndarray:
        shares = np.array_split(x, min(len(queue), x.shape[0]))
        found: list[Any] = [None] * len(shares)

        def keep(request: Any, number: int) -> None:
            found[number] = request.get_output_tensor().data.copy()

        queue.set_callback(keep)
        for number, share in enumerate(shares):
            queue.start_async([share], number)
        queue.wait_all()
        return np.concatenate(found)

    return run


CONTESTANTS: dict[str, Callable[[Params], Run]] = {
    'tlflax': tlflax,
    'tlflax_jit': tlflax_jit,
    'xla_direct': xla_direct,
    'tensorflow': tensorflow,
    'keras_jax': keras_jax,
    'torch': torch,
    'onnxruntime': onnxruntime,
    'openvino': openvino,
    'openvino_streams': openvino_streams,
}


def main() -> None:
    """Serves batches until its input ends."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    # Libraries print where they like; the answers keep the real standard output.
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)

    def answer(**fields: object) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    params: Params = {}
    for path, array in np.load(folder / 'params.npz').items():
        layer, leaf = path.split('/')
        params.setdefault(layer, {})[leaf] = array
    images = np.load(folder / 'images.npy')
    try:
        run = CONTESTANTS[name](params)
    except ImportError as error:
        answer(absent=str(error))
        return
    answer()
    for line in sys.stdin:
        x = images[: int(line)]
        began = time.perf_counter()
        features = np.asarray(run(x))
        seconds = time.perf_counter() - began
        np.save(folder / f'{name}.npy', features)
        answer(seconds=seconds)


if __name__ == '__main__':
    main()

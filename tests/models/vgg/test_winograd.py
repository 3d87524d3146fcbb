"""The fast backbone against direct convolution in float64, and the plans it follows."""

import functools
import gc
import json
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import vgg_reference as reference
from PIL import Image

from tlflax.models import pretrained
from tlflax.models.base.taps import Tap
from tlflax.models.vgg import autotune, cores, fast_cpu, network, race, tiled_layers, winograd
from tlflax.models.vgg.fast_cpu import BlockPlan, direct_plan
from tlflax.models.vgg.rows import VGG16
from tlflax.models.vgg.tiled_layers import Padding
from tlflax.models.vgg.winograd import DIRECT, Tiling
from tlflax.models.weights.preprocess import PREPROCESS

WIDTHS = (4, 9, 8, 10, 12)
WAYS = [DIRECT, *(Tiling(tile, by_row) for tile in winograd.POINTS for by_row in (False, True))]


def exact_conv(x, kernel, bias, *, pool=False):
    """Direct convolution, ReLU and pool by PyTorch in float64."""
    wide = torch.tensor(np.asarray(kernel, np.float64)).permute(3, 2, 0, 1)
    y = torch.tensor(np.asarray(x, np.float64)).permute(0, 3, 1, 2)
    y = torch.nn.functional.conv2d(y, wide, torch.tensor(np.asarray(bias, np.float64)), padding=1)
    y = torch.nn.functional.max_pool2d(y.relu(), 2) if pool else y.relu()
    return y.permute(0, 2, 3, 1).numpy()


def exact_blocks(params, x):
    """The five pools in float64."""
    found = {}
    for block, depth in enumerate(reference.DEPTHS, start=1):
        for i in range(1, depth + 1):
            layer = params[f'block{block}_conv{i}']
            x = exact_conv(x, layer['kernel'], layer['bias'], pool=i == depth)
        found[f'block{block}_pool'] = x
    return found


def relative_error(got, want):
    """The norm of the deviation over the norm of the exact values, and that no value is off."""
    got = np.asarray(got, np.float64)
    assert got.shape == want.shape
    assert np.linalg.norm(want) > 0
    worst = np.abs(got - want).max() / np.abs(want).max()
    return max(worst, np.linalg.norm(got - want) / np.linalg.norm(want))


def images(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-128, 128, shape).astype(np.float32)


def layer(channels, wide, seed=0):
    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal((3, 3, channels, wide), np.float32) / np.sqrt(9 * channels)
    return {'kernel': kernel.astype(np.float32), 'bias': rng.standard_normal(wide, np.float32)}


@pytest.mark.parametrize('tile', winograd.POINTS)
def test_the_transforms_are_exact(tile):
    output, kernel, inputs = winograd.matrices(tile)
    data, taps = np.random.default_rng(0).standard_normal((2, tile + 2))
    got = output @ ((kernel @ taps[:3]) * (inputs @ data))
    np.testing.assert_allclose(got, np.correlate(data, taps[:3], 'valid'), atol=1e-11)


def convolved(x, arrays, way, size, *, border=1, **options):
    """A layer's output from images, or from strips if `border` is 0."""
    kernel = winograd.transform_kernel(arrays['kernel'], way)
    prepared = {'kernel': kernel, 'bias': jnp.asarray(arrays['bias'])}
    x = tiled_layers.pad(jnp.asarray(x), tiled_layers.padding(size, way, border=border))
    run = jax.jit(tiled_layers.conv3x3, static_argnames=('tiling', 'size', 'around'))
    return np.array(run(x, prepared, tiling=way, size=size, **options))


SIZES = [(14, 28), (13, 9), (2, 3)]


@pytest.mark.parametrize('way', WAYS, ids=str)
@pytest.mark.parametrize('size', SIZES)
def test_a_convolution_with_a_pool_equals_direct(way, size):
    arrays, x = layer(5, 7), images(2, *size, 5)
    got = convolved(x, arrays, way, size, around=None)
    assert relative_error(got, exact_conv(x, arrays['kernel'], arrays['bias'], pool=True)) < 1e-5


@pytest.mark.parametrize('way', WAYS, ids=str)
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('around', [Padding(1, 1, 1, 1), Padding(0, 3, 1, 5)])
def test_a_convolution_equals_direct_with_zeros_around(way, size, around):
    arrays, x = layer(5, 7), images(2, *size, 5)
    got = convolved(x, arrays, way, size, around=around)
    assert got.shape[1] >= around.top + size[0] + around.below
    assert got.shape[2] == around.left + size[1] + around.right
    middle = np.s_[:, around.top : around.top + size[0], around.left : around.left + size[1]]
    assert relative_error(got[middle], exact_conv(x, arrays['kernel'], arrays['bias'])) < 1e-5
    got[middle] = 0
    assert not got.any()


@pytest.mark.parametrize('way', WAYS, ids=str)
def test_a_strip_takes_its_neighbors_rows(way):
    arrays, x = layer(3, 4), images(1, 20, 11, 3)
    around = Padding(0, 0, 1, 1)
    inside = jnp.arange(9) >= 2
    got = convolved(x[:, 4:15], arrays, way, (9, 11), border=0, around=around, inside=inside)
    want = exact_conv(x, arrays['kernel'], arrays['bias'])[:, 5:14]
    want[:, :2] = 0
    assert relative_error(got[:, :9, 1:-1], want) < 1e-5


def uniform(way, *, images=0, rows=0):
    """A plan with one tiling for all layers."""
    return tuple(BlockPlan((way,) * depth, images, rows) for depth in reference.DEPTHS)


MIXED = (
    BlockPlan((DIRECT, Tiling(4)), 1, 16),
    BlockPlan((Tiling(6), Tiling(4, True)), 1, 24),
    BlockPlan((Tiling(4, True), Tiling(6), DIRECT), 2),
    BlockPlan((Tiling(4),) * 3, 2),
    BlockPlan((Tiling(6),) * 3),
)


@pytest.mark.parametrize(
    ('way', 'size'),
    [
        (direct_plan(), (97, 61)),
        (uniform(DIRECT, images=1, rows=6), (97, 61)),
        (uniform(Tiling(4), rows=8), (64, 64)),
        (uniform(Tiling(6, True), images=1), (32, 47)),
        (MIXED, (97, 61)),
    ],
    ids=['direct', 'strips of direct', 'strips of 4', '6 by row', 'mixed'],
)
def test_every_plan_gives_every_block(way, size):
    params = reference.random_arrays(1, widths=WIDTHS)
    x = images(3, *size, 3)
    prepared = fast_cpu.prepare(params, way)
    want = exact_blocks(params, x)
    for pool in network.POOLS[1::3]:
        run = jax.jit(functools.partial(fast_cpu.features, plan=way, layer=pool))
        assert relative_error(run(prepared, x), want[pool]) < 1e-5, pool


def test_only_what_a_layer_needs_is_prepared():
    params = reference.random_arrays(1, widths=WIDTHS)
    prepared = fast_cpu.prepare(params, uniform(Tiling(4)), layer='block2_pool')
    assert set(prepared) == {*network.conv_names(1, 2), *network.conv_names(2, 2)}


def test_the_dense_layers_and_uint8_images():
    params = reference.random_arrays(2, widths=WIDTHS, top=True, units=8)
    x = np.random.default_rng(3).integers(0, 256, (1, 224, 224, 3), np.uint8)
    for name in ('fc1', 'fc2', 'predictions'):
        run = cores.compiled(params, direct_plan(), layer=name, before=PREPROCESS['caffe'])
        want = network.VGG(params)(PREPROCESS['caffe'](x), stop=name)
        assert relative_error(run(x), np.asarray(want, np.float64)) < 1e-5


@pytest.mark.parametrize(
    ('batch', 'parts'),
    [(1, [1]), (3, [3]), (5, [3, 2]), (8, [4, 4]), (16, [8, 8]), (19, [8, 8, 3])],
)
def test_threads_share_a_batch(batch, parts, monkeypatch):
    monkeypatch.setattr(cores.cpu, 'cores', lambda: 2)
    found = cores.split(batch)
    assert [part.stop - part.start for part in found] == parts
    assert [part.start for part in found] == [sum(parts[:i]) for i in range(len(parts))]
    params = reference.random_arrays(1, widths=WIDTHS)
    x = images(batch, 32, 32, 3)
    run = cores.compiled(params, uniform(Tiling(4)))
    got = run(x)
    assert relative_error(got, exact_blocks(params, x)['block5_pool']) < 1e-5
    np.testing.assert_array_equal(got, run(x))


@pytest.mark.parametrize(
    ('workers', 'way', 'size', 'blocks'),
    [
        (2, uniform(Tiling(4), rows=8), (64, 64), 3),
        (3, uniform(DIRECT, images=1, rows=6), (97, 61), 4),
        (3, MIXED, (97, 61), 2),
    ],
    ids=['4', 'direct', 'mixed'],
)
def test_threads_share_the_rows_of_few_images(workers, way, size, blocks, monkeypatch):
    monkeypatch.setattr(cores.cpu, 'cores', lambda: workers)
    params = reference.random_arrays(1, widths=WIDTHS)
    x = images(3, *size, 3)
    want = exact_blocks(params, x)
    for batch in (1, 3):
        assert len(cores.split(batch)) == 1
        assert cores._shared_blocks(way, size[0], 'block5_pool', ()) == blocks
        run = cores.compiled(params, way)
        got = run(x[:batch])
        assert relative_error(got, want['block5_pool'][:batch]) < 1e-5
        np.testing.assert_array_equal(got, run(x[:batch]))
    got = cores.compiled(params, way, layer='block2_pool')(x[:1])
    assert relative_error(got, want['block2_pool'][:1]) < 1e-5


def test_shared_rows_end_where_a_tap_reads(monkeypatch):
    monkeypatch.setattr(cores.cpu, 'cores', lambda: 2)
    params = reference.random_arrays(1, widths=WIDTHS)
    way, x = uniform(Tiling(4), rows=8), images(1, 64, 64, 3)
    taps = (Tap('block2_pool', 'flatten'), Tap('block5_pool', 'flatten'))
    assert cores._shared_blocks(way, 64, 'block5_pool', taps) == 1
    got = cores.compiled(params, way, taps=taps)(x)
    want = exact_blocks(params, x)
    flat = [want[tap.layer].reshape(1, -1) for tap in taps]
    assert relative_error(got, np.concatenate(flat, axis=1)) < 1e-5


@pytest.mark.parametrize(
    ('rows', 'height', 'shared', 'shares'),
    [
        (16, 224, 28, 2),  # 4 strips for each thread
        (16, 112, 28, 2),  # 2 for each, not 4 and 3 of 16 rows
        (16, 20, 12, 2),
        (16, 17, 12, 2),
    ],
)
def test_every_thread_has_as_many_strips(rows, height, shared, shares, monkeypatch):
    monkeypatch.setattr(cores.cpu, 'cores', lambda: 2)
    plan = BlockPlan((Tiling(4),) * 2, 1, rows)
    found, count = cores.share_rows(plan, height)
    assert (found.rows, count) == (shared, shares)
    assert found.layers == plan.layers


def left(name):
    """Returns the threads of a name, after waiting for them to end."""
    deadline = time.monotonic() + 10
    while True:
        found = [thread for thread in threading.enumerate() if thread.name.startswith(name)]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.01)


def test_a_dropped_program_leaves_neither_threads_nor_arrays_nor_programs(monkeypatch):
    monkeypatch.setattr(cores.cpu, 'cores', lambda: 2)
    params = reference.random_arrays(1, widths=WIDTHS)
    client = jax.devices()[0].client
    counts = []
    for _ in range(4):
        run = cores.compiled(params, uniform(Tiling(4)))
        np.asarray(run(np.zeros((8, 32, 32, 3), np.float32)))
        assert any(thread.name.startswith('backbone') for thread in threading.enumerate())
        del run
        gc.collect()
        assert not left('backbone')
        counts.append((len(jax.live_arrays()), len(client.live_executables())))
    assert len(set(counts)) == 1


def test_strips_share_an_image_evenly():
    assert autotune.strip_heights(224) == [56, 28, 16, 8]
    assert autotune.strip_heights(150) == [40, 20, 12, 8]
    assert autotune.strip_heights(8) == []


def test_a_guess_fits_any_shape():
    for shape in [(1, 32, 32), (16, 224, 224), (3, 97, 61), (64, 448, 300)]:
        for block, depth in zip(autotune.guess(network.WIDTHS, shape), network.VGG16, strict=True):
            assert len(block.layers) == depth
            assert block.rows % 4 == 0
            assert 0 <= block.images < shape[0] or block.images == 0
    assert autotune.guess(network.WIDTHS, (16, 224, 224))[0].layers[0] == DIRECT


@pytest.fixture
def params():
    return reference.random_arrays(1, widths=WIDTHS)


def test_a_measured_plan_computes_the_same_and_is_kept(params, tmp_path, monkeypatch):
    monkeypatch.setattr(autotune, 'TILINGS', (DIRECT, Tiling(4)))
    shape = (2, 32, 32)
    gc.collect()  # what other tests left in cycles
    gc.disable()  # nothing may wait for the collection of cycles
    arrays = len(jax.live_arrays())
    found = autotune.choose(params, shape, tmp_path)
    assert len(jax.live_arrays()) == arrays
    gc.enable()
    assert not left('autotune')
    x = images(2, 32, 32, 3)
    got = fast_cpu.features(fast_cpu.prepare(params, found), jnp.asarray(x), found)
    assert relative_error(got, exact_blocks(params, x)['block5_pool']) < 1e-5
    kept = json.loads(next(tmp_path.glob('*.json')).read_text())
    assert kept['key']['shape'] == [2, 32, 32]
    assert all(seconds > 0 for seconds in kept['seconds_per_image'])

    def again(*_):
        raise AssertionError('measured twice')

    monkeypatch.setattr(autotune, 'measure', again)
    assert autotune.choose(params, shape, tmp_path) == found
    assert autotune.choose(params, (3, 32, 32), tmp_path, measured=False) == autotune.guess(
        WIDTHS, (3, 32, 32)
    )


@pytest.mark.parametrize('damage', ['', '{}', '[1]', '{"key": 1', None])
def test_a_damaged_plan_is_measured_again(params, tmp_path, monkeypatch, damage):
    calls = []
    good = autotune.guess(WIDTHS, (2, 32, 32))
    monkeypatch.setattr(autotune, 'measure', lambda *_: calls.append(1) or (good, [0.1] * 5))
    autotune.choose(params, (2, 32, 32), tmp_path)
    (path,) = tmp_path.iterdir()
    if damage is None:  # a plan that lacks a layer's entry
        kept = json.loads(path.read_text())
        kept['plan'][0]['layers'][0] = [4]
        damage = json.dumps(kept)
    path.write_text(damage)
    assert autotune.choose(params, (2, 32, 32), tmp_path) == good
    assert autotune.choose(params, (2, 32, 32), tmp_path) == good
    assert len(calls) == 2


def test_many_images_are_compiled_once_and_ahead(params, monkeypatch):
    monkeypatch.setattr(cores.cpu, 'cores', lambda: 2)
    traced, x = [], images(19, 32, 32, 3)

    def before(x):
        traced.append(x.shape)
        return x

    expected = jax.ShapeDtypeStruct((32, 32, 32, 3), np.float32)
    run = cores.compiled(params, uniform(Tiling(4)), before=before, expected=expected)
    deadline = time.monotonic() + 60
    while not traced and time.monotonic() < deadline:
        time.sleep(0.01)
    assert traced == [(8, 32, 32, 3)]  # before any image has come
    assert cores.step(32) == 16
    for count in (32, 16, 30):
        assert run(np.resize(x, (count, 32, 32, 3))).shape[0] == count
    assert traced == [(8, 32, 32, 3)]


@pytest.mark.parametrize('workers', [1, 2, 3, 4, 5, 16])
def test_a_multiple_of_the_step_runs_the_program_of_a_batch(workers, monkeypatch):
    monkeypatch.setattr(cores.cpu, 'cores', lambda: workers)
    step = cores.step(32)
    for batch in range(step, 33, step):
        assert cores.split(batch)[0] == cores.split(32)[0]


def test_accelerators_convolve_directly(params, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    assert autotune.choose(params, (2, 32, 32), tmp_path) == direct_plan()
    assert cores.split(64) == [slice(0, 64)]
    assert not list(tmp_path.iterdir())


def test_the_fastest_wins(monkeypatch):
    plans = [BlockPlan((DIRECT,) * 2, images=i) for i in range(4)]
    times = dict(zip(plans, [3.0, 1.0, 2.0, 1.2], strict=True))
    calls = []

    def prepare(way):
        return lambda: calls.append(way) or times[way]

    with race.Race((2, 32, 32), 3, 4) as running:
        monkeypatch.setattr(running, '_prepare', prepare)
        assert running.best(plans) == plans[1]
    assert calls.count(plans[0]) == 1  # hopeless after the first round
    assert calls.count(plans[3]) == race.ROUNDS


@pytest.mark.assets
def test_real_weights_and_photographs(imagenet_weights_path, traffic_lights_dir):
    params = pretrained.load(imagenet_weights_path, VGG16).variables.params
    paths = sorted(traffic_lights_dir.rglob('*.jpg'))
    pixels = [
        np.asarray(Image.open(path).convert('RGB').resize((224, 224)))
        for path in (paths[0], paths[len(paths) // 2], paths[-1])
    ]
    x = np.asarray(PREPROCESS['caffe'](jnp.asarray(np.stack(pixels))))
    want = exact_blocks(params, x)['block5_pool']
    ways = [autotune.guess(network.WIDTHS, (16, 224, 224)), uniform(Tiling(6), images=1, rows=24)]
    for way in ways:
        run = jax.jit(functools.partial(fast_cpu.features, plan=way))
        error = relative_error(run(fast_cpu.prepare(params, way), x), want)
        print(f'{way[0].layers[1]}: relative error {error:.1e}')
        assert error < 1e-4


def test_vgg19_is_computed_by_a_plan_of_its_own_depths(tmp_path):
    depths, shape = network.VGG19, (2, 64, 64)
    params = network.init(jax.random.key(0), depths, widths=WIDTHS)
    plan = autotune.choose(params, shape, tmp_path, measured=False)
    assert [len(block.layers) for block in plan] == list(depths)
    x = np.random.default_rng(0).uniform(-1, 1, (*shape, 3)).astype(np.float32)
    want = network.VGG(params)(jnp.asarray(x))
    assert relative_error(cores.compiled(params, plan)(x), want) < 1e-5
    assert autotune.plan_key(WIDTHS, shape, depths) != autotune.plan_key(WIDTHS, shape)

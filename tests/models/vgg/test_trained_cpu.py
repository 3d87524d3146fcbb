"""Trained layers on a CPU against PyTorch in float64, and where they are used."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from helpers import TESTS, run_on_devices

from tlflax.models import classifier as classifiers
from tlflax.models import heads
from tlflax.models.base.modules import Variables
from tlflax.models.vgg import network, rows, trained_cpu
from tlflax.train import steps
from tlflax.train.losses import Loss
from tlflax.train.optim.build import build
from tlflax.train.optim.learner import partition_variables
from tlflax.utils.labels import label_tree, partition

WIDTHS = (8, 8, 16, 64, 64)  # the convolutions of block 5 are wide enough
ROW = rows.make('vgg16', network.VGG16, widths=WIDTHS)


def problem(batch, height, width, channels, wide, seed=0):
    """An input after ReLU, a kernel, and the gradient of the output."""
    rng = np.random.default_rng(seed)
    x = np.maximum(rng.standard_normal((batch, height, width, channels), np.float32), 0)
    kernel = rng.standard_normal((3, 3, channels, wide), np.float32) / np.sqrt(9 * channels)
    dy = rng.standard_normal((batch, height, width, wide), np.float32)
    return x, kernel.astype(np.float32), dy


def exact(x, kernel, dy):
    """The output and both gradients in float64."""
    x = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    kernel = torch.tensor(kernel, dtype=torch.float64, requires_grad=True)
    y = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1), padding=1)
    y = y.permute(0, 2, 3, 1)
    y.backward(torch.tensor(dy, dtype=torch.float64))
    return y.detach().numpy(), x.grad.numpy(), kernel.grad.numpy()


@jax.jit
def ours(x, kernel, dy):
    y, back = jax.vjp(trained_cpu.convolve, x, kernel)
    return y, *back(dy)


def relative_error(got, want):
    got = np.asarray(got, np.float64)
    assert got.shape == want.shape
    return np.linalg.norm(got - want) / np.linalg.norm(want)


@pytest.mark.parametrize(
    'shape',
    [(2, 14, 14, 96, 64), (1, 13, 9, 64, 80), (3, 1, 2, 5, 3), (4, 8, 6, 7, 9), (1, 3, 17, 64, 64)],
    ids=str,
)
def test_convolution_and_gradients_are_exact(shape):
    arrays = problem(*shape)
    found = ours(*arrays)
    for name, got, want in zip(('y', 'dx', 'dk'), found, exact(*arrays), strict=True):
        assert relative_error(got, want) < 3e-6, name
        # No pixel of the border, where tiles are cut off or overlap, is wrong.
        np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max(), err_msg=name)
    for one, again in zip(found, ours(*arrays), strict=True):
        np.testing.assert_array_equal(one, again)


def test_many_convolutions_at_once_are_those_one_by_one():
    many = [problem(2, 6, 5, 8, 6, seed) for seed in range(3)]
    found = jax.vmap(ours)(*(np.stack(arrays) for arrays in zip(*many, strict=True)))
    for number, arrays in enumerate(many):
        for got, want in zip(found, ours(*arrays), strict=True):
            np.testing.assert_allclose(got[number], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('size', [(8, 8), (7, 9), (2, 3), (1, 4)])
def test_pool_is_that_of_torch_and_xla_with_ties(size):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, 3, (3, *size, 5)), jnp.float32)  # most cells have ties
    dy = jnp.asarray(rng.standard_normal((3, size[0] // 2, size[1] // 2, 5), np.float32))
    xla = functools.partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2), padding='VALID')
    (y, back), (same, theirs) = (jax.vjp(pool, x) for pool in (trained_cpu.max_pool, xla))
    np.testing.assert_array_equal(y, same)
    np.testing.assert_array_equal(back(dy)[0], theirs(dy)[0])
    if not dy.size:
        return
    leaf = torch.tensor(np.asarray(x), requires_grad=True)
    pooled = torch.nn.functional.max_pool2d(leaf.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    pooled.backward(torch.tensor(np.asarray(dy)))
    np.testing.assert_array_equal(y, pooled.detach())
    np.testing.assert_array_equal(back(dy)[0], leaf.grad)


def test_it_is_chosen_by_shape():
    def pays(x, kernel=(3, 3, 512, 512)):
        return trained_cpu.pays(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in (x, kernel)))

    assert pays((32, 14, 14, 512))
    assert pays((32, 28, 28, 256), (3, 3, 256, 512))
    assert not pays((1, 14, 14, 512))  # the kernel is read for too few tiles
    assert not pays((512, 2, 2, 512))  # a tile of 4 x 4 has as many multiplications
    assert not pays((32, 224, 224, 64), (3, 3, 64, 64))  # takes too much memory
    assert not pays((32, 224, 224, 3), (3, 3, 3, 64))


def operations(variables, x, dtype=jnp.float32, *, trained):
    """The names of the operations of block 5."""
    run = functools.partial(
        ROW.apply, start='block4_pool', stop='block5_pool', dtype=dtype, trained=trained
    )
    program = jax.make_jaxpr(lambda variables, x: run(variables, x)[0])(variables, x)
    return [str(equation.primitive) for equation in program.eqns], str(program)


def test_only_trained_layers_in_float32_on_a_cpu_are_computed_in_this_way(monkeypatch):
    variables = ROW.init(jax.random.key(0), 'block5_pool')
    x = jnp.ones((16, 8, 8, 64))
    direct = 'conv_general_dilated'
    assert operations(variables, x, trained=False)[0].count(direct) == 3
    assert direct not in operations(variables, x, trained=True)[0]
    assert operations(variables, x[:2], trained=True)[0].count(direct) == 3
    texts = [operations(variables, x, jnp.bfloat16, trained=t)[1] for t in (False, True)]
    assert texts[0] == texts[1]
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    frozen, trained = (operations(variables, x, trained=t)[0] for t in (False, True))
    assert frozen.count(direct) == trained.count(direct) == 3
    # XLA's own pool has no gradient there that adds in the same order every time.
    assert ('reduce_window_max' in frozen, 'reduce_window_max' in trained) == (True, False)


def make_learner():
    """A model whose block 5 and head are trained, and its SGD."""
    rules = (('backbone/block5.*', 'tail'), ('backbone/.*', 'frozen'), ('head/.*', 'head'))
    backbone = ROW.init(jax.random.key(0), 'block5_pool').params
    options = {'units': 16, 'dropout': 0.0}
    head = heads.init('gap_linear', (3, 3, 64), 3, jax.random.key(1), **options).params
    params = {'backbone': backbone, 'head': head}
    labels = label_tree(params, rules)
    model = classifiers.create(
        ROW, partition(params, labels)[0], image_size=(96, 96), num_classes=3, head='gap_linear',
        preprocess='torch', layer='block5_pool', **options,
    )  # fmt: skip
    trainable, frozen = partition_variables(Variables(params, {}), labels)
    rates = {'tail': 1e-2, 'head': 1e-2}
    tx = build(partition(labels, labels)[0], name='sgd', learning_rates=rates)
    return model, trainable, frozen, tx


def make_batch(seed, n=16):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, 4, 4, 3), np.uint8)
    return {
        'image': jnp.asarray(coarse.repeat(24, axis=1).repeat(24, axis=2)),
        'label': jnp.asarray(rng.integers(0, 3, n, np.int32)),
        'mask': jnp.ones(n, bool),
    }


def test_twenty_steps_from_features_equal_those_of_direct_convolution_from_images():
    model, trainable, frozen, tx = make_learner()
    plain = dataclasses.replace(ROW, trained=None)
    whole = dataclasses.replace(model, cut='image', backbone=plain)
    copies = jax.tree.map(lambda a: jnp.array(a, copy=True), (trainable, trainable))
    states, errors = [steps.init_state(variables, tx) for variables in copies], []
    for number in range(20):
        batch = make_batch(number)
        features = model.features(frozen.branch('backbone'), batch['image'])
        below = {name: batch[name] for name in ('label', 'mask')} | {'features': features}
        kinds = ((model, below), (whole, batch))
        grads = [
            steps.gradient_step(state, frozen, one, 0, Loss(), classifier=kind)[0]
            for state, (kind, one) in zip(states, kinds, strict=True)
        ]
        errors.append(difference(*grads))
        states = [
            steps.train_step(state, frozen, one, 0, Loss(), classifier=kind, tx=tx)[0]
            for state, (kind, one) in zip(states, kinds, strict=True)
        ]
    # A value near zero may be on the other side of it in one of both, whatever the convolution, and
    # then ReLU passes another gradient.
    assert np.median(errors) < 1e-5
    assert difference(*(state.params for state in states)) < 1e-5
    assert difference(trainable.params, states[0].params) > 1e-3  # they have learned


def difference(got, want):
    """The relative error of all leaves together."""
    return relative_error(
        *(
            np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(tree)])
            for tree in (got, want)
        )
    )


SEVERAL_DEVICES = """if True:
    import jax
    import numpy as np
    from tlflax.models.vgg import trained_cpu
    from tlflax.utils.parallel.mesh import default_mesh, put_batch, replicate
    rng, mesh = np.random.default_rng(0), default_mesh()
    x, dy = (rng.standard_normal((8, 6, 5, channels), np.float32) for channels in (4, 3))
    kernel = replicate({'': rng.standard_normal((3, 3, 4, 3), np.float32)}, mesh)['']
    batch = put_batch({'x': x, 'dy': dy[:, ::2, :4:2]}, mesh)

    @jax.jit
    def run(batch, kernel):
        compute = lambda x, kernel: trained_cpu.max_pool(trained_cpu.convolve(x, kernel))
        y, back = jax.vjp(compute, batch['x'], kernel)
        return y, *back(batch['dy'])

    found = run(batch, kernel)
    assert len(found[1].sharding.device_set) == len(jax.devices())
    print(len(jax.devices()))
    for array in found:
        print(*np.asarray(array).ravel())
"""


def test_several_devices_give_the_same_result():
    folder = TESTS / 'models' / 'vgg'
    np.testing.assert_allclose(*run_on_devices(SEVERAL_DEVICES, folder), rtol=1e-4, atol=1e-5)

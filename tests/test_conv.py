"""The heads' trainable convolution against PyTorch in float64, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tlflax.models import conv

SIZES = [(2, 2), (3, 3), (4, 4), (5, 2), (7, 7), (8, 5), (14, 14), (7, 13)]


def exact(x, kernel, weight):
    """Output without the odd last row and column, and the gradients of its weighted sum."""
    x = torch.tensor(np.asarray(x, np.float64), requires_grad=True)
    kernel = torch.tensor(np.asarray(kernel, np.float64), requires_grad=True)
    y = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1), padding=1)
    y = y.permute(0, 2, 3, 1)[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    (y * torch.tensor(np.asarray(weight, np.float64))).sum().backward()
    return y.detach().numpy(), x.grad.numpy(), kernel.grad.numpy()


def problem(height, width, seed=0, channels=conv.MIN_CHANNELS):
    rng = np.random.default_rng(seed)
    x = np.maximum(rng.standard_normal((3, height, width, channels)), 0).astype(np.float32)
    kernel = rng.standard_normal((3, 3, channels, 5)).astype(np.float32)
    shape = (3, height // 2 * 2, width // 2 * 2, 5)
    return x, kernel, rng.standard_normal(shape).astype(np.float32)


def close(got, want):
    error = np.linalg.norm(np.asarray(got, np.float64) - want) / np.linalg.norm(want)
    assert error < 2e-5


@pytest.mark.parametrize('channels', [7, conv.MIN_CHANNELS])
@pytest.mark.parametrize('size', SIZES)
def test_convolution_and_its_gradients_are_those_of_float64(size, channels):
    x, kernel, weight = problem(*size, channels=channels)
    value, of_x, of_kernel = exact(x, kernel, weight)

    def weighted(x, kernel):
        return jnp.sum(conv.conv3x3_before_pool(x, kernel) * weight)

    close(conv.conv3x3_before_pool(jnp.asarray(x), jnp.asarray(kernel)), value)
    got_x, got_kernel = jax.jit(jax.grad(weighted, argnums=(0, 1)))(x, kernel)
    close(got_x, of_x)
    close(got_kernel, of_kernel)


@pytest.mark.parametrize('shared', [True, False])
def test_many_kernels_side_by_side_are_each_alone_to_the_last_bit(shared):
    """Adam makes much of the last bit, and a head of a sweep has to be its solo run."""
    images = np.stack([problem(7, 7, seed)[0] for seed in range(3)])
    kernels = np.stack([problem(7, 7, seed)[1] for seed in range(3)])
    weight = problem(7, 7)[2]

    def gradient(x, kernel):
        return jax.grad(lambda k: jnp.sum(conv.conv3x3_before_pool(x, k) * weight))(kernel)

    axes, x = ((None, 0), images[0]) if shared else ((0, 0), images)
    found = jax.jit(jax.vmap(gradient, in_axes=axes))(x, kernels)
    for number, got in enumerate(found):
        own = images[0 if shared else number]
        np.testing.assert_array_equal(got, jax.jit(gradient)(own, kernels[number]))
        close(got, exact(own, kernels[number], weight)[2])


def test_tiles_are_those_with_the_fewest_products():
    """7x7 maps have 6x6 outputs, one tile of 64 products; 2x2 outputs are not worth a tile."""
    sizes = (2, 4, 6, 8, 14, 16)
    assert [conv.best_tile(size, size, 512) for size in sizes] == [0, 4, 6, 4, 4, 4]
    assert [conv.best_tile(size, size, 32) for size in sizes] == [0] * 6
    for height, width in ((6, 6), (8, 4), (14, 14), (28, 20)):
        tile = conv.best_tile(height, width, 512)
        count = -(-height // tile) * -(-width // tile) * (tile + 2) ** 2
        assert count <= 9 * height * width / 2

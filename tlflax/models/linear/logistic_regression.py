"""Multinomial logistic regression by L-BFGS, along a path of regularization strengths.

Minimizes, over a kernel W and an intercept b,

    mean over the examples of cross_entropy(x W + b, label)  +  l2 / 2 * sum of W squared.

In scikit-learn's terms, C = 1 / (l2 * examples).
"""

import dataclasses
import functools
import math
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

STRENGTHS = tuple(np.logspace(0, -6, 10))
"""Strengths of regularization, relative to the mean square norm of a row, strong to weak."""

_TOLERANCE = 1e-5  # of the gradient's norm, relative to that at W = 0, b = 0
_MAX_ITERATIONS = 1000
_LARGEST_GRAM = 5000  # rows; with more, their eigenvectors cost more than they save
_Params = tuple[Array, Array]  # kernel and bias
_Carry = tuple[_Params, optax.OptState, Array, Array]  # and gradient norm, iterations


class Solution(NamedTuple):
    """A minimum of the objective.

    Attributes:
        kernel: f32[d, num_classes].
        bias: f32[num_classes].
        gradient_norm: The norm of the objective's gradient, relative to that at W = 0, b = 0.
        iterations: Iterations of L-BFGS.
    """

    kernel: Float[Array, 'd num_classes']
    bias: Float[Array, ' num_classes']
    gradient_norm: Float[Array, '']
    iterations: Int[Array, '']


@jax.jit
def solve(
    features: Float[Array, 'n d'],
    label: Int[Array, ' n'],
    l2: Float[Array, ''] | float,
    kernel: Float[Array, 'd num_classes'],
    bias: Float[Array, ' num_classes'],
) -> Solution:
    """Minimizes the objective by L-BFGS with a zoom line search (Nocedal & Wright 2006, 3.5, 7.4).

    Stops after 1000 iterations, or when the gradient's norm is at most 1e-5 of that at zero.

    Args:
        features: A row for each example, best scaled to a mean square norm of one.
        label: The class of each row.
        l2: Strength of regularization; the bias is not regularized.
        kernel: The first kernel.
        bias: The first bias.
    """
    product = functools.partial(jnp.dot, precision='highest')

    def objective(params: _Params) -> Array:
        kernel, bias = params
        costs = -jax.nn.log_softmax(product(features, kernel) + bias)
        losses = jnp.take_along_axis(costs, label[:, None], axis=-1)[:, 0]
        return losses.mean() + l2 / 2 * jnp.sum(kernel**2)

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(objective)
    start = (kernel, bias)
    norm_at_zero = optax.global_norm(jax.grad(objective)(jax.tree.map(jnp.zeros_like, start)))

    def going(carry: _Carry) -> Array:
        *_, norm, iterations = carry
        return (norm > _TOLERANCE * norm_at_zero) & (iterations < _MAX_ITERATIONS)

    def iterate(carry: _Carry) -> _Carry:
        params, state, _, iterations = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = solver.update(
            grad, state, params, value=value, grad=grad, value_fn=objective
        )
        params = optax.apply_updates(params, updates)
        norm = optax.global_norm(optax.tree.get(state, 'grad'))  # at the new point
        return params, state, norm, iterations + 1

    first = (start, solver.init(start), jnp.float32(jnp.inf), jnp.int32(0))
    params, _, norm, iterations = jax.lax.while_loop(going, iterate, first)
    return Solution(*params, norm / norm_at_zero, iterations)


@dataclasses.dataclass(frozen=True)
class Compressed:
    """Training features as L-BFGS takes them: scaled, and rotated into few coordinates.

    Attributes:
        coordinates: f32[n, r]; the mean square norm of a row is one.
        combine: f64[n, r]; `features.T @ combine @ weights` is the kernel for unscaled features
            that corresponds to weights of the coordinates. None if the coordinates are the scaled
            features.
        scale: The root of the mean square norm of a row of features.
    """

    coordinates: Float[np.ndarray, 'n r']
    combine: Float[np.ndarray, 'n r'] | None
    scale: float

    def kernel(
        self, features: Float[np.ndarray, 'n d'], weights: Float[np.ndarray, 'r num_classes']
    ) -> Float[np.ndarray, 'd num_classes']:
        """Returns the kernel for unscaled features."""
        if self.combine is None:
            return np.asarray(weights) / np.float32(self.scale)
        return features.T @ (self.combine @ np.asarray(weights, np.float64)).astype(np.float32)


def compress(features: Float[np.ndarray, 'n d']) -> Compressed:
    """Scales rows; if they are far fewer than columns, rotates them into the space they span.

    The best kernel is a linear combination of rows, and a rotation preserves norms: the problem
    stays the same, and an iteration costs a fraction.
    """
    n, d = features.shape
    scale = math.sqrt(np.mean([np.dot(row, row) for row in features], dtype=np.float64)) or 1.0
    if 2 * n > d or n > _LARGEST_GRAM:
        return Compressed(features / np.float32(scale), None, scale)
    # In float64, by blocks: in float32 the small eigenvalues would be noise.
    blocks = (features[:, i : i + 4096].astype(np.float64) for i in range(0, d, 4096))
    values, vectors = np.linalg.eigh(sum(block @ block.T for block in blocks) / scale**2)
    kept = values > 1e-12 * values[-1]
    roots, vectors = np.sqrt(values[kept]), vectors[:, kept]
    return Compressed((vectors * roots).astype(np.float32), vectors / (roots * scale**2), scale)


class Solved(NamedTuple):
    """The solution for one strength of the path.

    Attributes:
        l2: The regularization strength, for unscaled features.
        kernel: f32[d, num_classes], for unscaled features.
        bias: f32[num_classes].
        gradient_norm: The norm of the gradient, relative to that at W = 0, b = 0.
        iterations: Iterations of L-BFGS.
        seconds: Their wall-clock time.
    """

    l2: float
    kernel: Float[np.ndarray, 'd num_classes']
    bias: Float[np.ndarray, ' num_classes']
    gradient_norm: float
    iterations: int
    seconds: float


def solve_path(
    features: Float[np.ndarray, 'n d'],
    label: Int[np.ndarray, ' n'],
    num_classes: int,
    strengths: Sequence[float] = STRENGTHS,
) -> Iterator[Solved]:
    """Solves for every strength of regularization, each from the solution before.

    Args:
        features: f32[n, d].
        label: i32[n].
        num_classes: Number of classes.
        strengths: From strong to weak, relative to the mean square norm of a row.
    """
    rows = compress(features)
    coordinates = jnp.asarray(rows.coordinates)
    weights = jnp.zeros((coordinates.shape[1], num_classes))
    bias = jnp.zeros(num_classes)
    for strength in strengths:
        began = time.perf_counter()
        solved = jax.block_until_ready(solve(coordinates, label, strength, weights, bias))
        weights, bias = solved.kernel, solved.bias
        yield Solved(
            l2=strength * rows.scale**2,
            kernel=rows.kernel(features, np.asarray(weights)),
            bias=np.asarray(bias),
            gradient_norm=float(solved.gradient_norm),
            iterations=int(solved.iterations),
            seconds=time.perf_counter() - began,
        )

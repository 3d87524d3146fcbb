"""Multinomial logistic regression by L-BFGS, along a path of regularization strengths.

Minimizes, over a kernel W and an intercept b,

    mean over the examples of cross_entropy(x W + b, label)  +  l2 / 2 * sum of W squared.

In scikit-learn's terms, C = 1 / (l2 * examples).
"""

import functools
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from tlflax.models.linear.compression import Compressed, compress
from tlflax.models.linear.strengths import CrossValidated

STRENGTHS = tuple(np.logspace(0, -6, 10))
"""Strengths of regularization, relative to the mean square norm of a row, strong to weak."""

_TOLERANCE = 1e-5  # of the gradient's norm, relative to that at W = 0, b = 0
_COARSE = 1e-4  # the same in cross-validation, where probabilities to 1e-3 suffice
_MAX_ITERATIONS = 1000
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


@functools.partial(jax.jit, static_argnames=('tolerance',))
def solve(
    features: Float[Array, 'n d'],
    label: Int[Array, ' n'],
    l2: Float[Array, ''] | float,
    kernel: Float[Array, 'd num_classes'],
    bias: Float[Array, ' num_classes'],
    weight: Float[Array, ' n'] | None = None,
    *,
    tolerance: float = _TOLERANCE,
) -> Solution:
    """Minimizes the objective by L-BFGS with a zoom line search (Nocedal & Wright 2006, 3.5, 7.4).

    Stops after 1000 iterations, or when the gradient's norm is at most `tolerance` times that at
    zero.

    Args:
        features: A row for each example, best scaled to a mean square norm of one.
        label: The class of each row.
        l2: Strength of regularization; the bias is not regularized.
        kernel: The first kernel.
        bias: The first bias.
        weight: Of each row in the mean, with a sum of one; None: all count the same.
        tolerance: See above.
    """
    product = functools.partial(jnp.dot, precision='highest')
    share = jnp.full(len(label), 1 / len(label)) if weight is None else weight

    def objective(params: _Params) -> Array:
        kernel, bias = params
        costs = -jax.nn.log_softmax(product(features, kernel) + bias)
        losses = jnp.take_along_axis(costs, label[:, None], axis=-1)[:, 0]
        mean = losses.mean() if weight is None else jnp.sum(share * losses)
        return mean + l2 / 2 * jnp.sum(kernel**2)

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(objective)
    start = (kernel, bias)
    # Written out, because XLA's gradient at constant zeros was NaN in large batched CPU programs.
    excess = share[:, None] * (1 / len(bias) - jax.nn.one_hot(label, len(bias)))
    norm_at_zero = optax.global_norm((product(features.T, excess), excess.sum(0)))

    def going(carry: _Carry) -> Array:
        *_, norm, iterations = carry
        return (norm > tolerance * norm_at_zero) & (iterations < _MAX_ITERATIONS)

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
    strengths: Iterable[float] = STRENGTHS,
) -> Iterator[Solved]:
    """Solves for every strength of regularization, each from the solution before.

    Args:
        features: f32[n, d].
        label: i32[n].
        num_classes: Number of classes.
        strengths: Best from strong to weak, relative to the mean square norm of a row. Each is
            taken when the one before was solved; see `tlflax.models.linear.strengths.extended`.
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


_solve_all = jax.jit(
    jax.vmap(functools.partial(solve, tolerance=_COARSE), in_axes=(None, None, None, 0, 0, 0))
)


def cross_validate(
    rows: Compressed,
    label: Int[np.ndarray, ' n'],
    num_classes: int,
    fold: Int[np.ndarray, ' n'],
    strengths: Iterable[float] = STRENGTHS,
) -> Iterator[CrossValidated]:
    """Solves for every strength, on all rows and without each fold, as one batch of problems.

    Args:
        rows: The training features.
        label: i32[n].
        num_classes: Number of classes.
        fold: The fold of each row; -1: in the training side of every fold.
        strengths: As in `solve_path`.
    """
    # Columns of zeros change nothing, and representations of similar rank share one program.
    coordinates = np.pad(rows.coordinates, ((0, 0), (0, -rows.coordinates.shape[1] % 64)))
    folds = int(fold.max()) + 1
    used = np.stack([*(fold != held for held in range(folds)), np.ones_like(fold, bool)])
    weight = (used / used.sum(1, keepdims=True)).astype(np.float32)
    weights = jnp.zeros((folds + 1, coordinates.shape[1], num_classes))
    bias = jnp.zeros((folds + 1, num_classes))
    on_device = jnp.asarray(coordinates)
    for strength in strengths:
        solved = _solve_all(on_device, label, strength, weights, bias, weight)
        weights, bias = solved.kernel, solved.bias
        if not np.isfinite(solved.gradient_norm).all():
            raise FloatingPointError(f'logistic regression diverged at strength {strength:.3g}')
        scores = np.asarray(jnp.einsum('nr,frc->nfc', on_device, weights) + bias)
        held_out = scores[np.arange(len(label)), fold]
        held_out[fold < 0] = np.nan
        own = np.asarray(weights[-1])[: rows.coordinates.shape[1]]
        yield CrossValidated(strength, held_out, own, np.asarray(bias[-1]))

"""The simple gradient noise scale (McCandlish et al. 2018, arXiv:1812.06162).

B = tr(S) / |G|^2, with the gradient G of the loss of all training images and the covariance S of
the gradients of single images. Batches much smaller than B average noise, so that twice the batch
saves nearly half of the steps; much larger ones hardly save any.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tlflax.features.batches import Source
from tlflax.models.classifier import Params
from tlflax.train import steps
from tlflax.train.finders import batches
from tlflax.train.setup import Run

SMALL = 8  # images of a small batch
PER_LARGE = 32  # small batches of a large one, at most
LARGE = 4  # large batches that are averaged


class Squares(NamedTuple):
    """Squared gradient norms of one large batch.

    Attributes:
        small: The mean over the small batches that it consists of.
        large: Of the mean of their gradients.
    """

    small: float
    large: float


def measure(run: Run, source: Source, state: steps.TrainState) -> float:
    """Returns the noise scale in images; infinite if no gradient shows in the noise.

    Args:
        run: The run, whose optimizer does not matter.
        source: The training split.
        state: Where the gradients are taken; it is not changed.
    """
    images = source.num_examples
    count = min(PER_LARGE, max(images // SMALL, 1))
    if count < 2:
        return math.inf
    small = batches.with_size(run, source, SMALL)
    groups = itertools.islice(_groups(run, small, count), LARGE)
    squares = [large_batch(run, state, group) for group in groups]
    return noise_scale(squares, SMALL, count * SMALL, images)


def noise_scale(squares: Sequence[Squares], small: int, large: int, images: int) -> float:
    """Returns tr(S) / |G|^2 from the squared norms of gradients of two batch sizes.

    Both are unbiased (their appendix A.1), for batches that are drawn from `images` without
    replacement: the squared norm of the gradient of b images is |G|^2 + (1/b - 1/images) tr(S) on
    average. Numerator and denominator are averaged before they are divided.

    Args:
        squares: Of several large batches.
        small: Images of a small batch.
        large: Images of a large one.
        images: All images.
    """
    few, many = (np.mean([square[i] for square in squares]) for i in (0, 1))
    trace = (few - many) / (1 / small - 1 / large)
    norm = many - (1 / large - 1 / images) * trace
    return float(trace / norm) if norm > 0 else math.inf


def large_batch(run: Run, state: steps.TrainState, group: Iterable[batches.Batch]) -> Squares:
    """Returns the squared gradient norms of small batches and of all together."""
    total, squares = None, []
    for number, batch in enumerate(group):
        # Dropout draws by the number of the step; all of these would otherwise draw the same.
        at = state._replace(step=state.step + number)
        gradient = batches.gradient(run, at, batch)
        squares.append(_square(gradient))
        total = gradient if total is None else _add(total, gradient)
    assert total is not None
    small = np.mean([float(square) for square in squares])
    return Squares(float(small), float(_square(total)) / len(squares) ** 2)


def _groups(run: Run, source: Source, count: int) -> Iterator[list[batches.Batch]]:
    """Yields `count` full batches at a time, all of one epoch, as images do not repeat in it."""
    for number in itertools.count():
        part = list[batches.Batch]()
        for batch in batches.epoch(run, source, number % run.config.train.epochs):
            if int(batch['mask'].sum()) < SMALL:
                continue
            part.append(batch)
            if len(part) == count:
                yield part
                part = []


@jax.jit
def _square(tree: Params) -> Float[Array, '']:
    leaves = jax.tree.leaves(tree)
    return jnp.sum(jnp.stack([jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in leaves]))


@jax.jit
def _add(tree: Params, other: Params) -> Params:
    return jax.tree.map(jnp.add, tree, other)

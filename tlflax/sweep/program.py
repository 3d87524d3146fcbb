"""The compiled functions of a group of heads: one program trains them all.

The members of a group have the same structure (head, optimizer, schedule, batch size) and differ in
numbers (seed, learning rates, weight decay, those of the loss), which are traced.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int

from tlflax.features.batches import OnDevice
from tlflax.models.base.modules import Variables
from tlflax.models.classifier import Classifier
from tlflax.sweep import per_member
from tlflax.train import losses, steps
from tlflax.train.optim.learner import Rates
from tlflax.train.setup import Run


class Numbers(NamedTuple):
    """What differs between members; traced, with a leading axis of members outside `vmap`."""

    seed: Int[Array, '']
    loss: losses.Loss
    rates: Rates


@dataclasses.dataclass(frozen=True)
class Program:
    """The compiled functions of a group.

    Attributes:
        train: (state, frozen, numbers, on_device, rows) to the new state and sums
            [replicas, steps]; the old state may be donated.
        evaluate: (state, frozen, on_device, rows) to sums [replicas, steps] and counts
            [replicas, classes].
        shared_order: All members have one seed, so the rows have no axis of members.
    """

    train: Callable[..., tuple[steps.TrainState, steps.Sums]]
    evaluate: Callable[..., steps.EvalSums]
    shared_order: bool


def compile_program(run: Run, *, shared_order: bool) -> Program:
    """Returns the functions for members with the structure of `run`."""
    learner = run.learner
    init = functools.partial(steps.init_state, tx=learner.tx, average=learner.average)
    first = jax.eval_shape(init, learner.trainable)
    axes = jax.tree.map(lambda leaf: None if is_counter(leaf) else 0, first)
    rows_axis = None if shared_order else 0
    mesh = run.runner.mesh
    train = functools.partial(_train, run)
    evaluate = functools.partial(_evaluate, _classifier(run))
    both = per_member.members(train, (axes, 0, 0, None, rows_axis), mesh, donate=True)

    def train_all(*operands: Any) -> tuple[steps.TrainState, steps.Sums]:
        state, sums = both(*operands)
        return jax.tree.map(lambda leaf: leaf[0] if is_counter(leaf) else leaf, state), sums

    return Program(
        train_all, per_member.members(evaluate, (axes, 0, None, None), mesh), shared_order
    )


def _train(
    run: Run,
    state: steps.TrainState,
    frozen: Variables,
    numbers: Numbers,
    on_device: OnDevice,
    rows: Int[Array, 'steps b'],
) -> tuple[steps.TrainState, steps.Sums]:
    """Trains one member for some steps, with its own numbers."""
    return steps.update_many(
        state,
        frozen,
        on_device,
        rows,
        numbers.seed,
        numbers.loss,
        classifier=_classifier(run),
        tx=run.learner.make(numbers.rates),
        average=run.learner.average,
    )


def _classifier(run: Run) -> Classifier:
    """Returns the model; the devices share the members, so that no head is split over them."""
    return dataclasses.replace(run.runner.classifier, shards=None, adders=None)


def _evaluate(
    classifier: Classifier,
    state: steps.TrainState,
    frozen: Variables,
    on_device: OnDevice,
    rows: Int[Array, 'steps b'],
) -> steps.EvalSums:
    """Evaluates one member on a split."""
    variables = state.evaluated.merge(frozen)
    return steps.eval_scan(variables, on_device, rows, classifier=classifier)[0]


def is_counter(leaf: Any) -> bool:
    """Whether a leaf of a state counts steps; all members share their counters."""
    return np.issubdtype(leaf.dtype, np.integer)

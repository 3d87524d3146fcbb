"""Many heads side by side: what one compiled program does for all members of a group.

Members of a group share everything static (head, optimizer, schedule, batch size); what differs is
a number (seed, learning rates, weight decay, those of the loss), so that one program serves all:
`jax.vmap` of one head's epoch on accelerators, that epoch itself on a CPU
(`tlflax.sweep.per_member`). Each member sees its own order of examples, drops its own units, stops
by itself and ends as it would alone. On several devices, members are spread over them.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from tlflax.features.batches import OnDevice, OnDeviceSource
from tlflax.sweep import per_member
from tlflax.train import experiment, loop, losses, steps
from tlflax.train import run as training
from tlflax.train.early_stopping import EarlyStopping
from tlflax.train.epoch import SCAN
from tlflax.train.setup import Run
from tlflax.utils import trees

Traced = Any  # np.float32 on the host, a tracer where a configuration wants a float
Saved = tuple[steps.TrainState, loop.Position]


@dataclasses.dataclass(eq=False)
class Member:
    """One head under way; changes from epoch to epoch.

    Attributes:
        run: Its configuration, first parameters and model.
        source: Its training examples, on_device.
        position: After the last epoch.
        best_position: After the best one.
        records: One for each epoch, as in metrics.jsonl.
        diverged: The epoch, counted from 1, whose loss was not finite; None: all were.
        saved: Once finished: the best and the last epoch's state, on the host, with the position
            after it; one entry where they are the same, none if training diverged.
    """

    run: Run
    source: OnDeviceSource
    position: loop.Position = loop.Position()
    best_position: loop.Position = loop.Position()
    records: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    diverged: int | None = None
    saved: list[Saved] = dataclasses.field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether no further epoch follows."""
        ended = self.position.epoch == self.run.config.train.epochs
        return ended or self.position.stopping.stopped or self.diverged is not None


class Numbers(NamedTuple):
    """What differs between members; traced, with a leading axis of members outside `vmap`."""

    seed: Int[Traced, '']
    loss: losses.Loss
    learning_rate: Float[Traced, '']
    learning_rates: tuple[Float[Traced, ''], ...]
    weight_decay: Float[Traced, '']


class Lanes(NamedTuple):
    """Arrays with a leading axis of members.

    The counters in `state` have none: members march in step, and with scalar counters Adam's bias
    corrections are computed as in a solo run, to the last bit.

    Attributes:
        state: After the last step.
        best: After the best epoch.
        frozen: The frozen part of the heads; mostly empty.
        numbers: See `Numbers`.
    """

    state: steps.TrainState
    best: steps.TrainState
    frozen: dict[str, Any]
    numbers: Numbers


@dataclasses.dataclass(frozen=True)
class Program:
    """The compiled functions of a group.

    Attributes:
        train: (state, frozen, numbers, on_device, rows) to the new state and sums [lanes, steps];
            the old state may be donated.
        evaluate: (state, frozen, on_device, rows) to sums [lanes, steps] and counts
            [lanes, classes].
        shared_order: All members have one seed, so the rows have no axis of members.
    """

    train: Callable[..., tuple[steps.TrainState, steps.Sums]]
    evaluate: Callable[..., steps.EvalSums]
    shared_order: bool


def compile_program(run: Run, *, shared_order: bool) -> Program:
    """Returns the functions for members with the structure of `run`."""
    config, classifier = run.config, run.runner.classifier

    def train(
        state: steps.TrainState,
        frozen: dict[str, Any],
        numbers: Numbers,
        on_device: OnDevice,
        rows: Int[Array, 'steps b'],
    ) -> tuple[steps.TrainState, steps.Sums]:
        names = [label for label, _ in config.optim.learning_rates]
        optim = dataclasses.replace(
            config.optim,
            learning_rate=numbers.learning_rate,
            learning_rates=tuple(zip(names, numbers.learning_rates, strict=True)),
            # 'adam' has none, and says so where it is not zero.
            weight_decay=0.0 if config.optim.name == 'adam' else numbers.weight_decay,
        )
        traced = dataclasses.replace(config, optim=optim)
        tx, _ = experiment.build_optimizer(traced, run.learner.labels, run.steps_per_epoch)
        return steps.update_many(
            state,
            frozen,
            on_device,
            rows,
            numbers.seed,
            numbers.loss,
            classifier=classifier,
            tx=tx,
        )

    def evaluate(
        state: steps.TrainState,
        frozen: dict[str, Any],
        on_device: OnDevice,
        rows: Int[Array, 'steps b'],
    ) -> steps.EvalSums:
        params = trees.merge(state.params, frozen)
        return steps.eval_scan(params, on_device, rows, classifier=classifier)[0]

    init = functools.partial(steps.init_state, tx=run.learner.tx)
    first = jax.eval_shape(init, run.learner.trainable)
    axes = jax.tree.map(lambda leaf: None if _is_counter(leaf) else 0, first)
    rows_axis = None if shared_order else 0
    mesh = run.runner.mesh
    both = per_member.members(train, (axes, 0, 0, None, rows_axis), mesh, donate=True)

    def train_all(*operands: Any) -> tuple[steps.TrainState, steps.Sums]:
        state, sums = both(*operands)
        return jax.tree.map(lambda leaf: leaf[0] if _is_counter(leaf) else leaf, state), sums

    return Program(
        train_all, per_member.members(evaluate, (axes, 0, None, None), mesh), shared_order
    )


def train_group(
    members: Sequence[Member], val: OnDeviceSource, program: Program
) -> Iterator[Member]:
    """Trains members side by side until the last has stopped; yields each as it finishes.

    Where fewer lanes are another program, one that has stopped is carried along until half of them
    are idle, so that the number of compilations grows with the logarithm of the group's size.
    """
    mesh, rule = members[0].run.runner.mesh, training.stopping_rule(members[0].run.config)
    group, lanes = list(members), _stack(members)
    while group:
        began = time.perf_counter()
        lanes, sums = _train_epoch(lanes, group, program)
        trained = time.perf_counter()
        val_sums = _evaluate(lanes, val, program)
        seconds = (trained - began, time.perf_counter() - trained)
        running = [lane for lane, member in enumerate(group) if not member.finished]
        improved = np.zeros(_width(lanes), bool)
        for lane in running:
            own, own_val = _at(sums, lane), _at(val_sums, lane)
            means = steps.means([own_val.sums], own_val.counts)
            improved[lane] = _end_epoch(group[lane], own, means, seconds, rule)
        if improved.any():
            lanes = lanes._replace(best=_choose(improved, lanes.state, lanes.best))
        for lane in running:
            if group[lane].finished:
                group[lane].saved = _saved(group[lane], lanes, lane)
                yield group[lane]
        going = [lane for lane, member in enumerate(group) if not member.finished]
        _log(group[running[0]], running, going, seconds)
        enough = len(group) - 1 if per_member.one_by_one(mesh) else len(group) // 2
        if len(going) <= enough:
            group, lanes = [group[lane] for lane in going], _take(lanes, going, mesh)


def _train_epoch(
    lanes: Lanes, group: Sequence[Member], program: Program
) -> tuple[Lanes, list[steps.Sums]]:
    """Trains every lane for an epoch; the sums are on the host, [lanes, steps]."""
    state, parts = lanes.state, []
    on_device = group[0].source.on_device
    if program.shared_order:
        rows = _next_rows(group[0])[None]
    else:
        rows = np.stack([_next_rows(member) for member in _padded(group, _width(lanes))])
    for start in range(0, rows.shape[1], SCAN):
        part = rows[:, start : start + SCAN]
        state, sums = program.train(
            state,
            lanes.frozen,
            lanes.numbers,
            on_device,
            part[0] if program.shared_order else part,
        )
        parts.append(jax.device_get(sums))
    return lanes._replace(state=state), parts


def _next_rows(member: Member) -> Int[np.ndarray, 'steps b']:
    """The rows of the member's next epoch; any rows once it has finished."""
    return member.source.train_rows(member.position.epoch)


def _evaluate(lanes: Lanes, val: OnDeviceSource, program: Program) -> steps.EvalSums:
    rows = val.eval_rows()
    sums = program.evaluate(lanes.state, lanes.frozen, val.on_device, rows)
    return jax.device_get(sums)


def _end_epoch(
    member: Member,
    sums: list[steps.Sums],
    val: dict[str, float],
    seconds: tuple[float, float],
    rule: EarlyStopping | None,
) -> bool:
    """Records a member's epoch as `tlflax.train.loop` does; says whether it is its best so far."""
    loss, correct, count = steps.totals(sums)
    ended = dataclasses.replace(
        member.position, loss=loss, correct=correct, count=count, seconds=seconds[0]
    )
    if not np.isfinite(loss):
        member.diverged = ended.epoch + 1
        return False
    step = (ended.epoch + 1) * member.run.steps_per_epoch
    rate = member.run.learner.learning_rate(step)
    record = loop.make_record(ended, step, val, rate, seconds[1])
    member.records.append(record)
    member.position = loop.next_epoch(ended, record, rule)
    if member.position.stopping.improved:
        member.best_position = member.position
    return member.position.stopping.improved


def _saved(member: Member, lanes: Lanes, lane: int) -> list[Saved]:
    if member.diverged is not None:
        return []
    last = (jax.device_get(_at(lanes.state, lane)), member.position)
    if member.best_position.epoch in (0, member.position.epoch):
        return [last]
    return [(jax.device_get(_at(lanes.best, lane)), member.best_position), last]


def _stack(members: Sequence[Member]) -> Lanes:
    """Puts the members' first states side by side on the mesh."""
    mesh, width = members[0].run.runner.mesh, _round_up(members)
    all_lanes = [_first(member) for member in _padded(members, width)]
    stacked: Lanes = jax.tree.map(lambda *leaves: np.stack(leaves), *all_lanes)
    state = jax.tree.map(lambda leaf: leaf[0] if _is_counter(leaf) else leaf, stacked.state)
    return _put(stacked._replace(state=state), mesh)


def _first(member: Member) -> Lanes:
    """One member's lane before its first step, on the host."""
    config, learner = member.run.config, member.run.learner
    state = jax.device_get(steps.init_state(learner.trainable, learner.tx))
    numbers = Numbers(
        seed=np.int32(config.train.seed),
        loss=member.run.runner.loss,
        learning_rate=np.float32(config.optim.learning_rate),
        learning_rates=tuple(np.float32(rate) for _, rate in config.optim.learning_rates),
        weight_decay=np.float32(config.optim.weight_decay),
    )
    frozen = {k: v for k, v in learner.frozen.items() if k != 'backbone'}
    return Lanes(state, state, jax.device_get(frozen), numbers)


def _round_up(members: Sequence[Member]) -> int:
    """The number of lanes: as many for each device."""
    return len(members) + -len(members) % members[0].run.runner.mesh.size


def _padded(members: Sequence[Member], width: int) -> list[Member]:
    return [*members, *[members[-1]] * (width - len(members))]


def _width(lanes: Lanes) -> int:
    return len(lanes.numbers.seed)


def _take(lanes: Lanes, chosen: Sequence[int], mesh: Mesh) -> Lanes:
    """Returns some of the lanes, and copies of the last where devices would have fewer."""
    if not chosen:
        return lanes
    index = np.array([*chosen, *[chosen[-1]] * (-len(chosen) % mesh.size)])
    return _put(jax.tree.map(lambda leaf: leaf[index] if leaf.ndim else leaf, lanes), mesh)


def _put(lanes: Lanes, mesh: Mesh) -> Lanes:
    def sharding(leaf: Array) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec('data') if leaf.ndim else PartitionSpec())

    return jax.device_put(lanes, jax.tree.map(sharding, lanes))


def _at(tree: Any, lane: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[lane] if leaf.ndim else leaf, tree)


def _is_counter(leaf: Any) -> bool:
    return np.issubdtype(leaf.dtype, np.integer)


@functools.partial(jax.jit, donate_argnums=2)
def _choose(
    improved: Bool[Array, ' lanes'], state: steps.TrainState, best: steps.TrainState
) -> steps.TrainState:
    """Returns the state where it improved, and the best so far elsewhere."""

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(improved.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    return jax.tree.map(choose, state, best)


def _log(
    member: Member, running: Sequence[int], going: Sequence[int], seconds: tuple[float, float]
) -> None:
    """Reports an epoch; `member` is one of those `running`."""
    epoch = member.diverged or member.position.epoch
    images = len(running) * member.source.num_examples / seconds[0]
    logging.info(
        'epoch %d/%d  %d heads, %d go on  %.0f images/s  %.1f s',
        *(epoch, member.run.config.train.epochs, len(running), len(going), images, sum(seconds)),
    )

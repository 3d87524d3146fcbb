"""Trains a group of heads side by side with one compiled program.

On accelerators the program is `jax.vmap` of one head's epoch; on a CPU it is that epoch, called for
each member (`tlflax.sweep.per_member`). Each member has its own order of examples and its own
dropout, stops by its own rule and ends as it would alone. On several devices, members are spread
over them.
"""

import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int

from tlflax.features.batches import OnDeviceSource
from tlflax.models.base.modules import Variables
from tlflax.sweep import per_member
from tlflax.sweep.program import Numbers, Program, is_counter
from tlflax.train import steps
from tlflax.train.early_stopping import EarlyStopping, stopping_rule
from tlflax.train.epoch import SCAN
from tlflax.train.optim.learner import configured_rates
from tlflax.train.position import Position, Record, make_record, next_epoch
from tlflax.train.setup import Run
from tlflax.utils.parallel import processes
from tlflax.utils.parallel.mesh import put_array, to_host

Saved = tuple[steps.TrainState, Position]


@dataclasses.dataclass(eq=False)
class Member:
    """One head of a group during training; changes from epoch to epoch.

    Attributes:
        run: Its configuration, first parameters and model.
        source: Its training examples, on the device.
        val: Its validation examples, which all members of a group share.
        position: The position after the last epoch.
        best_position: The position after the best epoch.
        records: The record of each epoch, as in metrics.jsonl.
        diverged: The epoch, counted from 1, whose loss was not finite; None if all were finite.
        saved: After training, the states of the best and the last epoch, on the host, with the
            positions after them; one entry if they are the same, none if training diverged.
    """

    run: Run
    source: OnDeviceSource
    val: OnDeviceSource
    position: Position = Position()
    best_position: Position = Position()
    records: list[Record] = dataclasses.field(default_factory=list)
    diverged: int | None = None
    saved: list[Saved] = dataclasses.field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether no further epoch follows."""
        ended = self.position.epoch == self.run.config.train.epochs
        return ended or self.position.stopping.stopped or self.diverged is not None


class Replicas(NamedTuple):
    """Arrays with a leading axis of members.

    The counters in `state` have no such axis: all members take the same steps, and with scalar
    counters Adam's bias corrections equal those of a solo run to the last bit.

    Attributes:
        state: The state after the last step.
        best: The state after the best epoch.
        frozen: What is frozen above the cut; mostly empty.
        numbers: See `Numbers`.
    """

    state: steps.TrainState
    best: steps.TrainState
    frozen: Variables
    numbers: Numbers


def train_group(members: Sequence[Member], program: Program) -> Iterator[Member]:
    """Trains members side by side until the last has stopped; yields each as it finishes.

    Where a smaller group would need another program, a member that has stopped keeps its replica
    until half of the replicas are idle, so that the number of compilations grows with the logarithm
    of the group's size.
    """
    mesh = members[0].run.runner.mesh
    rule = stopping_rule(members[0].run.config.early_stopping)
    group, replicas = list(members), _stack(members)
    while group:
        began = time.perf_counter()
        replicas, sums = _train_epoch(replicas, group, program)
        trained = time.perf_counter()
        val_sums = _evaluate_epoch(replicas, members[0].val, program)
        seconds = (trained - began, time.perf_counter() - trained)
        running = [replica for replica, member in enumerate(group) if not member.finished]
        improved = np.zeros(_width(replicas), bool)
        for replica in running:
            own, own_val = _at(sums, replica), _at(val_sums, replica)
            means = steps.means([own_val.sums], own_val.counts)
            improved[replica] = _end_epoch(group[replica], own, means, seconds, rule)
        if improved.any():
            replicas = replicas._replace(best=_choose(improved, replicas.state, replicas.best))
        for replica in running:
            if group[replica].finished:
                group[replica].saved = _saved(group[replica], replicas, replica)
                yield group[replica]
        going = [replica for replica, member in enumerate(group) if not member.finished]
        _log(group[running[0]], running, going, seconds)
        enough = len(group) - 1 if per_member.one_by_one(mesh) else len(group) // 2
        if len(going) <= enough:
            group, replicas = [group[replica] for replica in going], _take(replicas, going, mesh)


def _train_epoch(
    replicas: Replicas, group: Sequence[Member], program: Program
) -> tuple[Replicas, list[steps.Sums]]:
    """Trains every replica for an epoch; the sums are on the host, [replicas, steps]."""
    state, parts = replicas.state, []
    on_device = group[0].source.on_device
    if program.shared_order:
        rows = _next_rows(group[0])[None]
    else:
        rows = np.stack([_next_rows(member) for member in _padded(group, _width(replicas))])
    for start in range(0, rows.shape[1], SCAN):
        part = rows[:, start : start + SCAN]
        state, sums = program.train(
            state,
            replicas.frozen,
            replicas.numbers,
            on_device,
            part[0] if program.shared_order else part,
        )
        parts.append(to_host(sums))
    return replicas._replace(state=state), parts


def _next_rows(member: Member) -> Int[np.ndarray, 'steps b']:
    """The rows of the member's next epoch; any rows once it has finished."""
    return member.source.train_rows(member.position.epoch)


def _evaluate_epoch(replicas: Replicas, val: OnDeviceSource, program: Program) -> steps.EvalSums:
    rows = val.eval_rows()
    sums = program.evaluate(replicas.state, replicas.frozen, val.on_device, rows)
    return to_host(sums)


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
    record = make_record(ended, step, val, rate, seconds[1])
    member.records.append(record)
    member.position = next_epoch(ended, record, rule)
    if member.position.stopping.improved:
        member.best_position = member.position
    return member.position.stopping.improved


def _saved(member: Member, replicas: Replicas, replica: int) -> list[Saved]:
    if member.diverged is not None:
        return []
    last = (to_host(_at(replicas.state, replica)), member.position)
    if member.best_position.epoch in (0, member.position.epoch):
        return [last]
    return [(to_host(_at(replicas.best, replica)), member.best_position), last]


def _stack(members: Sequence[Member]) -> Replicas:
    """Puts the members' first states side by side on the mesh."""
    mesh, width = members[0].run.runner.mesh, _round_up(members)
    all_replicas = [_first(member) for member in _padded(members, width)]
    stacked: Replicas = jax.tree.map(lambda *leaves: np.stack(leaves), *all_replicas)
    state = jax.tree.map(lambda leaf: leaf[0] if is_counter(leaf) else leaf, stacked.state)
    return _put(stacked._replace(state=state), mesh)


def _first(member: Member) -> Replicas:
    """One member's replica before its first step, on the host."""
    config, learner = member.run.config, member.run.learner
    state = member.run.first_state()
    numbers = Numbers(
        seed=jnp.int32(config.train.seed),
        loss=member.run.runner.loss,
        rates=jax.tree.map(np.float32, configured_rates(config.optim, learner.labels)),
    )
    frozen = Variables(*map(member.run.runner.classifier.above, learner.frozen))
    return Replicas(state, state, jax.device_get(frozen), numbers)


def _round_up(members: Sequence[Member]) -> int:
    """The number of replicas: as many for each device."""
    return len(members) + -len(members) % members[0].run.runner.mesh.size


def _padded(members: Sequence[Member], width: int) -> list[Member]:
    return [*members, *[members[-1]] * (width - len(members))]


def _width(replicas: Replicas) -> int:
    return len(replicas.numbers.seed)


def _take(replicas: Replicas, chosen: Sequence[int], mesh: Mesh) -> Replicas:
    """Returns some of the replicas, and copies of the last where devices would have fewer."""
    if not chosen:
        return replicas
    index = np.array([*chosen, *[chosen[-1]] * (-len(chosen) % mesh.size)])
    if processes.count() > 1:
        replicas = to_host(replicas)
    return _put(jax.tree.map(lambda leaf: leaf[index] if leaf.ndim else leaf, replicas), mesh)


def _put(replicas: Replicas, mesh: Mesh) -> Replicas:
    def put(leaf: Array | np.ndarray | np.generic) -> Array:
        axes = ('data',) if leaf.ndim else ()
        return put_array(leaf, NamedSharding(mesh, PartitionSpec(*axes)))

    return jax.tree.map(put, replicas)


def _at(tree: Any, replica: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[replica] if leaf.ndim else leaf, tree)


@functools.partial(jax.jit, donate_argnums=2)
def _choose(
    improved: Bool[Array, ' replicas'], state: steps.TrainState, best: steps.TrainState
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
        'epoch %d/%d  %d heads, %d continue  %.0f images/s  %.1f s',
        *(epoch, member.run.config.train.epochs, len(running), len(going), images, sum(seconds)),
    )

"""Trains dozens of heads from one feature cache and ranks them."""

import dataclasses
import time
from collections.abc import Iterator, Sequence

from absl import logging

from tlflax.config.schema import Config
from tlflax.features.batches import OnDeviceSource
from tlflax.features.sources import require_on_device
from tlflax.sweep.group import Member, train_group
from tlflax.sweep.program import compile_program
from tlflax.sweep.ranking import Row, format_csv, order, row, status
from tlflax.sweep.settings import Setting, resolve_settings
from tlflax.train import losses, setup
from tlflax.train.early_stopping import stopping_rule
from tlflax.train.run import publish
from tlflax.utils.errors import UserError
from tlflax.utils.files import atomic_write, write_json
from tlflax.utils.sharding import replicate
from tlflax.workdir.files import Workdir

_REPLICAS = 32  # most heads side by side: bounds memory


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The heads of a sweep, built but not trained.

    Attributes:
        settings: What each member changes.
        members: The heads, in the order of the settings.
        val: The validation split, on the device.
    """

    settings: Sequence[Setting]
    members: list[Member]
    val: OnDeviceSource

    def train(self) -> Iterator[int]:
        """Trains all members; yields the number, from 0, of each one that has finished."""
        numbers = {id(member): number for number, member in enumerate(self.members)}
        groups: dict[Config, list[Member]] = {}
        for member in self.members:
            groups.setdefault(_structure(member.run.config), []).append(member)
        for group in groups.values():
            logging.info('%d heads of one structure: %s', len(group), group[0].run.config.model)
            shared_order = len({member.run.config.train.seed for member in group}) == 1
            program = compile_program(group[0].run, shared_order=shared_order)
            for start in range(0, len(group), _REPLICAS):
                part = group[start : start + _REPLICAS]
                for member in train_group(part, self.val, program):
                    yield numbers[id(member)]


def prepare_sweep(config: Config, settings: Sequence[Setting], where: str = 'settings') -> Sweep:
    """Computes the features and builds every setting's head.

    Args:
        config: The configuration that the settings change.
        settings: What each changes, keyed as in `SWEPT`.
        where: The file they came from, for messages.

    Raises:
        UserError: A setting is not allowed, or the features are not kept on the device.
    """
    configs = resolve_settings(config, settings, where)
    stopping_rule(config.early_stopping)
    inputs = setup.load(config)
    base = setup.build(config, inputs)
    # One copy of the backbone on the devices serves all.
    shared = replicate(inputs.pretrained.variables, base.runner.mesh)
    pretrained = dataclasses.replace(inputs.pretrained, variables=shared)
    inputs = dataclasses.replace(inputs, pretrained=pretrained)
    runs = [setup.build(one, inputs) for one in configs]
    _warn(configs, where)
    for number, one in enumerate(runs, start=1):
        if one.runner.classifier.cut_is_image:
            raise UserError(
                'the backbone is trained, so its features are not kept',
                where=f'{where}, setting {number}',
                fix="label all of the backbone 'frozen' in optim.labels",
            )
    seeds = sorted({one.train.seed for one in configs})
    train = base.sources.train_on_device(base.splits.train, seeds)
    val = require_on_device(base.sources.eval(base.splits.val, 'validation'))
    members = [Member(one, train[one.config.train.seed]) for one in runs]
    return Sweep(settings, members, val)


def _warn(configs: Sequence[Config], where: str) -> None:
    """Warns once of each way in which settings correct an imbalance twice."""
    overlaps = {
        losses.describe_overlap(one.loss, balanced_sampling=one.train.balanced_sampling)
        for one in configs
    }
    for overlap in sorted(filter(None, overlaps)):
        logging.warning('WARNING: %s: %s', where, overlap)


def run(
    config: Config, settings: Sequence[Setting], work: Workdir, where: str = 'settings'
) -> list[Row]:
    """Trains a head for every setting and writes the ranking and the best head.

    Writes `sweep.csv`, `sweep.json` (the ranking with every epoch's record) and `best/`, the
    workdir of the best setting. An interrupted sweep writes them for the settings that had
    finished.

    Args:
        config: The configuration that the settings change.
        settings: What each changes, keyed as in `SWEPT`.
        work: Where to write.
        where: The file the settings came from, for messages.

    Returns:
        The ranking, best first: for each setting `rank`, `number` (from 1), `setting`, `status`,
        `best_epoch`, `epochs_run`, the metrics of the epoch that counts, and `records`.

    Raises:
        UserError: A setting is not allowed, features are not kept on the device, the workdir is
            in use, or every setting diverged.
        KeyboardInterrupt: After writing.
    """
    began = time.perf_counter()
    work.require_unused('sweep.json', 'config.json', 'best')
    sweep = prepare_sweep(config, settings, where)
    finished, interrupted = _train_all(sweep)
    ranking = [
        row(rank, n + 1, sweep.settings[n], sweep.members[n])
        for rank, n in enumerate(finished, start=1)
    ]
    if finished:
        _publish_best(sweep.members[finished[0]], sweep.val, work, time.perf_counter() - began)
    atomic_write(work.path / 'sweep.csv', format_csv(ranking))
    write_json(work.path / 'sweep.json', ranking)
    if interrupted:
        raise KeyboardInterrupt(f'{len(finished)} settings had finished; see {work.path}')
    if sweep.members[finished[0]].diverged is not None:
        raise UserError(
            f'all {len(settings)} settings diverged',
            where=where,
            fix='lower optim.learning_rate',
        )
    return ranking


def _train_all(sweep: Sweep) -> tuple[list[int], bool]:
    """Trains all members.

    Returns:
        The numbers of those that have finished, best first, and whether the sweep was interrupted.
    """
    finished: list[int] = []

    def by_rank(number: int) -> tuple[float, ...]:
        return order(sweep.members[number])

    interrupted = False
    try:
        for number in sweep.train():
            finished.append(number)
            logging.info('setting %d %s', number + 1, status(sweep.members[number]))
            best = min(finished, key=by_rank)
            for other in finished:
                if other != best:
                    sweep.members[other].saved.clear()  # only the best is written
    except KeyboardInterrupt:
        interrupted = True
    return sorted(finished, key=by_rank), interrupted


def _publish_best(best: Member, val: OnDeviceSource, work: Workdir, seconds: float) -> None:
    """Writes the best member as a workdir of its own, unless training diverged."""
    if best.saved:
        publish(best.run, Workdir(work.path / 'best'), val, best.records, best.saved, seconds)


def _structure(config: Config) -> Config:
    """Returns the configuration without the numbers that may differ within a group."""
    optim = dataclasses.replace(
        config.optim,
        learning_rate=0.0,
        learning_rates=tuple((label, 0.0) for label, _ in config.optim.learning_rates),
        weight_decay=0.0,
    )
    train = dataclasses.replace(config.train, seed=0, label_smoothing=0.0)
    loss = losses.structure(config.loss)
    return dataclasses.replace(config, optim=optim, loss=loss, train=train)

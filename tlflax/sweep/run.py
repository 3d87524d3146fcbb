"""Trains dozens of heads from one feature cache and ranks them."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence

import jax
from absl import logging

from tlflax.config.parse import to_dict
from tlflax.config.schema import Config
from tlflax.features.sources import OnDeviceFeatures, on_device_limit, require_on_device
from tlflax.sweep.group import Member, train_group
from tlflax.sweep.journal import Journal
from tlflax.sweep.program import compile_program
from tlflax.sweep.ranking import Row, format_csv, order, row, status
from tlflax.sweep.settings import Setting, resolve_settings
from tlflax.train import divergence, losses, setup, steps
from tlflax.train.early_stopping import stopping_rule
from tlflax.train.optim.schedules import PLATEAU
from tlflax.train.run import publish
from tlflax.train.setup import Run
from tlflax.utils.errors import UserError
from tlflax.utils.files import JsonObject, atomic_write, write_json
from tlflax.utils.parallel import processes
from tlflax.utils.parallel.mesh import replicate
from tlflax.utils.parallel.processes import on_primary
from tlflax.workdir.files import Workdir, writing

_REPLICAS = 32  # most heads side by side


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The heads of a sweep, built but not trained.

    Attributes:
        settings: What each member changes.
        members: The heads, in the order of the settings.
    """

    settings: Sequence[Setting]
    members: list[Member]

    def train(self) -> Iterator[int]:
        """Trains the members that have not finished; yields the number, from 0, as each does."""
        numbers = {id(member): number for number, member in enumerate(self.members)}
        groups: dict[Config, list[Member]] = {}
        for member in self.members:
            if member.finished:
                continue
            groups.setdefault(_structure(member.run.config), []).append(member)
        for group in groups.values():
            logging.info('%d heads of one structure: %s', len(group), group[0].run.config.model)
            shared_order = len({member.run.config.train.seed for member in group}) == 1
            program = compile_program(group[0].run, shared_order=shared_order)
            width = _replicas(group[0])
            for start in range(0, len(group), width):
                for member in train_group(group[start : start + width], program):
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
    base.log_length()
    # One copy of the backbone on the devices serves all.
    shared = replicate(inputs.pretrained.variables, base.runner.mesh)
    pretrained = dataclasses.replace(inputs.pretrained, variables=shared)
    inputs = dataclasses.replace(inputs, pretrained=pretrained)
    runs = [setup.build(one, inputs) for one in configs]
    _warn(configs, where)
    for number, one in enumerate(runs, start=1):
        if one.runner.classifier.cut_is_image:
            raise UserError(
                'the first layer of the backbone is trained, so that no features can be kept',
                where=f'{where}, setting {number}',
                fix="label the first layers 'frozen' in optim.labels",
            )
        if one.config.optim.schedule == PLATEAU:
            raise UserError(
                'each head would lower its learning rate in another epoch, and heads that are '
                'trained together share their counters',
                where=f'{where}, setting {number}, optim.schedule={PLATEAU!r}',
                fix="use schedule='cosine' or 'linear' in a sweep",
            )
    sources = {cut: _sources(cut, runs) for cut in {_cut(one): None for one in runs}}
    members = [Member(one, *sources[_cut(one)][one.config.train.seed]) for one in runs]
    return Sweep(settings, members)


def _cut(run: Run) -> str:
    return run.runner.classifier.cut


def _sources(cut: str, runs: Sequence[Run]) -> dict[int, tuple[OnDeviceFeatures, OnDeviceFeatures]]:
    """Returns training and validation examples by seed, for the runs that share a cut."""
    same = [run for run in runs if _cut(run) == cut]
    seeds = sorted({run.config.train.seed for run in same})
    splits, sources = same[0].splits, same[0].sources
    train = sources.train_on_device(splits.train, seeds)
    val = require_on_device(sources.eval(splits.val, 'validation'))
    return {seed: (train[seed], val) for seed in seeds}


def _replicas(member: Member) -> int:
    """Returns how many heads like a member are trained side by side."""
    learner = member.run.learner
    state = jax.eval_shape(lambda: steps.init_state(learner.trainable, learner.tx))
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    # The best state is kept beside the last, and a step makes a new one.
    return max(1, min(_REPLICAS, on_device_limit() // (3 * size)))


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
    """Trains a head for every setting, or those that are left, and writes ranking and best head.

    Writes `sweep.csv`, `sweep.json` (the ranking with every epoch's record) and `best/`, the
    workdir of the best setting. An interrupted sweep writes them for the settings that had
    finished, and goes on with the others when it is started again.

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
    with work.locked():
        sweep = prepare_sweep(config, settings, where)
        journal = Journal(work, _header(config, sweep))
        finished, interrupted = _train_all(sweep, journal, began)
        ranking = [
            row(rank, n + 1, sweep.settings[n], sweep.members[n])
            for rank, n in enumerate(finished, start=1)
        ]
        _write(ranking, work)
    if interrupted:
        done = f'{len(finished)} of {len(settings)} settings had finished, see {work.path}'
        raise KeyboardInterrupt(f'{done}; run the same command to continue')
    if sweep.members[finished[0]].diverged is not None:
        raise UserError(
            f'all {len(settings)} settings diverged',
            where=where,
            fix='lower optim.learning_rate and give another --workdir',
        )
    return ranking


@on_primary
def _write(ranking: Sequence[Row], work: Workdir) -> None:
    with writing(work.path):
        atomic_write(work.path / 'sweep.csv', format_csv(ranking))
        write_json(work.path / 'sweep.json', ranking)


def _header(config: Config, sweep: Sweep) -> JsonObject:
    """Returns what a sweep is of, which it must still be of when it goes on."""
    meta = sweep.members[0].run.meta
    return {
        'configuration': to_dict(config),
        'settings': list(sweep.settings),
        'images': meta['data_digest'],
        'weights': meta['weights_digest'],
        'Python files of the model': [member.run.meta['code'] for member in sweep.members],
    }


def _train_all(sweep: Sweep, journal: Journal, began: float) -> tuple[list[int], bool]:
    """Trains all members that have not finished, and keeps the best as a run.

    Returns:
        The numbers of those that have finished, best first, and whether the sweep was interrupted.
    """

    def by_rank(number: int) -> tuple[float, ...]:
        return (*order(sweep.members[number]), number)

    finished = _restore(sweep, journal, by_rank)
    spent = journal.seconds
    interrupted = False
    try:
        for number in sweep.train():
            member = sweep.members[number]
            logging.info('setting %d %s', number + 1, status(member))
            _warn_of_excess(number, member)
            seconds = spent + time.perf_counter() - began
            if member.saved and number == min([*finished, number], key=by_rank):
                _publish(member, journal, seconds)
            member.saved.clear()
            journal.add(number, member, seconds)
            finished.append(number)
    except KeyboardInterrupt:
        if processes.count() > 1:  # the others wait within a program, and have not been asked
            raise
        interrupted = True
    return sorted(finished, key=by_rank), interrupted


def _warn_of_excess(number: int, member: Member) -> None:
    for record in member.records[-1:]:
        classes = len(member.run.splits.train.class_names)
        if excess := divergence.describe_excess(record, classes):
            logging.warning('WARNING: setting %d: %s', number + 1, excess)


def _restore(
    sweep: Sweep, journal: Journal, by_rank: Callable[[int], tuple[float, ...]]
) -> list[int]:
    """Restores the members that have finished; the best of them only if its run is there too."""
    untrained = [dataclasses.replace(member) for member in sweep.members]
    finished = journal.restore(sweep.members)
    if finished:
        logging.info('%d of %d settings have finished', len(finished), len(sweep.members))
        best = min(finished, key=by_rank)
        if sweep.members[best].diverged is None and not journal.holds_best(sweep.members[best]):
            journal.forget(best)
            finished.remove(best)
            sweep.members[best] = untrained[best]
    return finished


def _publish(member: Member, journal: Journal, seconds: float) -> None:
    """Makes `best/` the run of a member."""
    # It is replaced by every better one, so it is shown in its own folder only.
    shown = {'tensorboard'} & {*member.run.config.train.loggers}
    journal.replace_best(
        lambda work: publish(
            member.run,
            work,
            member.val,
            member.records,
            member.saved,
            seconds,
            loggers=sorted(shown),
        )
    )


def _structure(config: Config) -> Config:
    """Returns the configuration without the numbers that may differ within a group."""
    optim = dataclasses.replace(
        config.optim,
        learning_rate=0.0,
        learning_rates=tuple((label, 0.0) for label, _ in config.optim.learning_rates),
        weight_decay=0.0,
        l2_sp=float(config.optim.l2_sp > 0),
    )
    train = dataclasses.replace(config.train, seed=0, label_smoothing=0.0)
    loss = losses.structure(config.loss)
    return dataclasses.replace(config, optim=optim, loss=loss, train=train)

"""Dozens of heads from one feature cache, ranked; the best as a normal workdir."""

import csv
import dataclasses
import io
import itertools
import math
import runpy
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from tlflax.config.parse import resolve, to_dict
from tlflax.config.schema import Config, LossConfig, OptimConfig
from tlflax.features.batches import OnDeviceSource
from tlflax.features.sources import require_on_device
from tlflax.sweep import group as lanes
from tlflax.sweep.group import Member
from tlflax.train import losses, setup
from tlflax.train import run as training
from tlflax.utils.errors import UserError
from tlflax.utils.sharding import replicate
from tlflax.workdir.files import Workdir, write_json

Setting = dict[str, Any]

SWEPT = (
    'train.seed',
    'train.label_smoothing',
    'model.head',
    'model.units',
    'model.dropout',
    *(f'loss.{field.name}' for field in dataclasses.fields(LossConfig)),
    *(f'optim.{field.name}' for field in dataclasses.fields(OptimConfig)),
)
"""The configuration keys that settings may change: all share features, batches and stopping."""

_LANES = 32  # most heads side by side: bounds memory
_METRICS = ('val_accuracy', 'val_balanced_accuracy', 'val_macro_f1', 'val_loss', 'train_accuracy',
            'train_loss')  # fmt: skip
_COLUMNS = ('status', 'best_epoch', 'epochs_run', *_METRICS)


def grid(**values: Sequence[Any]) -> list[Setting]:
    """Returns every combination of values of some configuration keys.

    Example: `grid(**{'optim.learning_rate': [1e-3, 1e-4], 'train.seed': [0, 1, 2]})`.
    """
    return [
        dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())
    ]


def read_settings(path: Path) -> list[Setting]:
    """Returns what `get_sweep()` of a Python file returns.

    Raises:
        UserError: The file is missing, does not run, or returns no list of dicts.
    """
    if not path.is_file():
        raise UserError('there is no such sweep file', where=str(path), fix='give a .py file')
    try:
        settings = list(runpy.run_path(str(path))['get_sweep']())
    except Exception as error:
        raise UserError(
            f'the sweep file fails with {type(error).__name__}: {error}',
            where=str(path),
            fix='define get_sweep(), which returns a list of {config key: value}',
        ) from error
    if not settings or not all(isinstance(setting, dict) for setting in settings):
        raise UserError(
            'get_sweep() returns no list of settings',
            where=str(path),
            fix='return a list of {config key: value}, such as '
            "[{'optim.learning_rate': 1e-3}, {'optim.learning_rate': 1e-4}]",
        )
    return settings


def resolve_settings(config: Config, settings: Sequence[Setting], where: str) -> list[Config]:
    """Returns each setting's whole configuration.

    Args:
        config: What they start from.
        settings: What each changes, keyed as in `SWEPT`.
        where: The file they came from, for messages.

    Raises:
        UserError: A key cannot be swept, or a value is not allowed.
    """
    configs = []
    for number, setting in enumerate(settings, start=1):
        raw = to_dict(config)
        for key, value in setting.items():
            if key not in SWEPT:
                raise UserError(
                    f'{key!r} cannot be swept: all heads share data, features and batches',
                    where=f'{where}, setting {number}',
                    fix=f'sweep {", ".join(SWEPT)}, and run a sweep for each value of other keys',
                )
            section, name = key.split('.')
            raw[section][name] = value
        resolved = resolve(raw)
        if config.weights.source == 'random' and resolved.train.seed != config.train.seed:
            raise UserError(
                'the seed decides a random backbone, and all heads share one',
                where=f'{where}, setting {number}, train.seed',
                fix='name a file in config.weights.source',
            )
        configs.append(resolved)
    return configs


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Everything a sweep is made of, before its first step.

    Attributes:
        settings: What each member changes.
        members: The heads, in the order of the settings.
        val: The validation split, on_device.
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
            program = lanes.compile_program(group[0].run, shared_order=shared_order)
            for start in range(0, len(group), _LANES):
                part = group[start : start + _LANES]
                for member in lanes.train_group(part, self.val, program):
                    yield numbers[id(member)]


def prepare_sweep(config: Config, settings: Sequence[Setting], where: str = 'settings') -> Sweep:
    """Computes the features and builds every setting's head.

    Args:
        config: What the settings start from.
        settings: What each changes, keyed as in `SWEPT`.
        where: The file they came from, for messages.

    Raises:
        UserError: A setting is not allowed, or the features are not kept on the device.
    """
    configs = resolve_settings(config, settings, where)
    training.stopping_rule(config)
    material = setup.load(config)
    base = setup.build(config, material)
    # One copy of the backbone on the devices serves all.
    shared = replicate(material.pretrained.params, base.runner.mesh)
    pretrained = dataclasses.replace(material.pretrained, params=shared)
    material = dataclasses.replace(material, pretrained=pretrained)
    runs = [setup.build(one, material) for one in configs]
    _warn(configs, where)
    for number, one in enumerate(runs, start=1):
        if 'backbone' in one.learner.trainable:
            raise UserError(
                'the backbone learns, so no features are kept',
                where=f'{where}, setting {number}',
                fix="label all of the backbone 'frozen' in optim.labels",
            )
    seeds = sorted({one.train.seed for one in configs})
    train = base.sources.train_on_device(base.splits.train, seeds)
    val = require_on_device(base.sources.eval(base.splits.val, 'validation'))
    members = [Member(one, train[one.config.train.seed]) for one in runs]
    return Sweep(settings, members, val)


def _warn(configs: Sequence[Config], where: str) -> None:
    """Warns, once for each way, where settings make up for an imbalance twice."""
    overlaps = {
        losses.describe_overlap(one.loss, balanced_sampling=one.train.balanced_sampling)
        for one in configs
    }
    for overlap in sorted(filter(None, overlaps)):
        logging.warning('WARNING: %s: %s', where, overlap)


def run(
    config: Config, settings: Sequence[Setting], work: Workdir, where: str = 'settings'
) -> list[dict[str, Any]]:
    """Trains a head for every setting and writes the ranking and the best head.

    Writes `sweep.csv`, `sweep.json` (the ranking with every epoch's record) and `best/`, the
    workdir of the best setting. If interrupted, it does so for the settings that had finished.

    Args:
        config: What the settings start from.
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
    if any((work.path / name).exists() for name in ('sweep.json', 'config.json', 'best')):
        raise UserError(
            'this workdir is in use', where=str(work.path), fix='give another --workdir'
        )
    sweep = prepare_sweep(config, settings, where)
    finished: list[int] = []
    interrupted = False
    try:
        for number in sweep.train():
            finished.append(number)
            logging.info('setting %d %s', number + 1, _status(sweep.members[number]))
            best = min(finished, key=lambda number: _order(sweep.members[number]))
            for other in finished:
                if other != best:
                    sweep.members[other].saved.clear()  # only the best is written
    except KeyboardInterrupt:
        interrupted = True
    finished.sort(key=lambda number: _order(sweep.members[number]))
    ranking = [_row(rank, n, sweep) for rank, n in enumerate(finished, start=1)]
    if finished and sweep.members[finished[0]].saved:
        best_member = sweep.members[finished[0]]
        training.publish(
            best_member.run,
            Workdir(work.path / 'best'),
            sweep.val,
            best_member.records,
            best_member.saved,
            time.perf_counter() - began,
        )
    (work.path / 'sweep.csv').write_text(_csv(ranking))
    write_json(work.path / 'sweep.json', ranking)
    if interrupted:
        raise KeyboardInterrupt(f'{len(finished)} settings had finished; see {work.path}')
    if ranking[0]['status'].startswith('diverged'):
        raise UserError(
            f'all {len(settings)} settings diverged',
            where=where,
            fix='lower optim.learning_rate',
        )
    return ranking


def format_table(ranking: Sequence[dict[str, Any]]) -> str:
    """Shows a ranking as a table for people."""
    rows = [['rank', *_keys(ranking), *_COLUMNS]]
    for row in ranking:
        values = [row['setting'].get(key, '') for key in _keys(ranking)]
        values = [*values, *(row[name] for name in _COLUMNS)]
        shown = [
            f'{v:.4g}' if isinstance(v, float) else '' if v is None else str(v) for v in values
        ]
        rows.append([str(row['rank']), *shown])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ['  '.join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return '\n'.join(lines)


def _csv(ranking: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['rank', 'number', *_keys(ranking), *_COLUMNS])
    for row in ranking:
        swept = [row['setting'].get(key, '') for key in _keys(ranking)]
        writer.writerow([row['rank'], row['number'], *swept, *(row[name] for name in _COLUMNS)])
    return text.getvalue()


def _keys(ranking: Sequence[dict[str, Any]]) -> list[str]:
    """The swept keys, in the order in which the settings name them."""
    by_number = sorted(ranking, key=lambda row: row['number'])
    return list(dict.fromkeys(key for row in by_number for key in row['setting']))


def _row(rank: int, number: int, sweep: Sweep) -> dict[str, Any]:
    member, record = sweep.members[number], _counted(sweep.members[number])
    return {
        'rank': rank,
        'number': number + 1,
        'setting': sweep.settings[number],
        'status': _status(member),
        'best_epoch': record.get('epoch'),
        'epochs_run': len(member.records),
        **{name: record.get(name) for name in _METRICS},
        'records': member.records,
    }


def _status(member: Member) -> str:
    if member.diverged is not None:
        return f'diverged in epoch {member.diverged}'
    if member.position.stopping.stopped:
        return f'stopped early after epoch {member.position.epoch}'
    return f'finished after epoch {member.position.epoch}'


def _counted(member: Member) -> dict[str, Any]:
    """The record of the epoch that counts, the best unless the last is asked for; {} if none."""
    best = member.position.stopping.best_epoch
    if not member.records:
        return {}
    if best is None or not member.run.config.early_stopping.restore_best:
        return member.records[-1]
    return member.records[best]


def _order(member: Member) -> tuple[Any, ...]:
    """Sorts the best first: by the monitored metric, then by validation loss."""
    if member.diverged is not None:
        return (True,)
    record, rule = _counted(member), training.stopping_rule(member.run.config)
    monitor, mode = ('val_loss', 'min') if rule is None else (rule.monitor, rule.mode)
    values = [-record[monitor] if mode == 'max' else record[monitor], record['val_loss']]
    return (False, *(math.inf if math.isnan(value) else value for value in values))


def _structure(config: Config) -> Config:
    """The configuration without the numbers that may differ side by side."""
    optim = dataclasses.replace(
        config.optim,
        learning_rate=0.0,
        learning_rates=tuple((label, 0.0) for label, _ in config.optim.learning_rates),
        weight_decay=0.0,
    )
    train = dataclasses.replace(config.train, seed=0, label_smoothing=0.0)
    loss = losses.structure(config.loss)
    return dataclasses.replace(config, optim=optim, loss=loss, train=train)

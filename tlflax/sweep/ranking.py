"""The outcome of a sweep: its members ranked, as rows, a table and CSV."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from tlflax.sweep.group import Member
from tlflax.sweep.settings import Setting
from tlflax.train.early_stopping import stopping_rule
from tlflax.train.loop import Record

Row = dict[str, Any]
"""A line of the ranking; see `tlflax.sweep.run.run`."""

_METRICS = ('val_accuracy', 'val_balanced_accuracy', 'val_macro_f1', 'val_loss', 'train_accuracy',
            'train_loss')  # fmt: skip
_COLUMNS = ('status', 'best_epoch', 'epochs_run', *_METRICS)


def format_table(ranking: Sequence[Row]) -> str:
    """Returns the ranking as a table for people."""
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


def format_csv(ranking: Sequence[Row]) -> str:
    """Returns the ranking as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['rank', 'number', *_keys(ranking), *_COLUMNS])
    for row in ranking:
        swept = [row['setting'].get(key, '') for key in _keys(ranking)]
        writer.writerow([row['rank'], row['number'], *swept, *(row[name] for name in _COLUMNS)])
    return text.getvalue()


def _keys(ranking: Sequence[Row]) -> list[str]:
    """Returns the swept keys in the order in which the settings name them."""
    by_number = sorted(ranking, key=lambda row: row['number'])
    return list(dict.fromkeys(key for row in by_number for key in row['setting']))


def row(rank: int, number: int, setting: Setting, member: Member) -> Row:
    """Returns the line of a member.

    Args:
        rank: Its place, from 1.
        number: The number of its setting, from 1.
        setting: What it changes.
        member: The head.
    """
    record = _counted(member)
    return {
        'rank': rank,
        'number': number,
        'setting': setting,
        'status': status(member),
        'best_epoch': record.get('epoch'),
        'epochs_run': len(member.records),
        **{name: record.get(name) for name in _METRICS},
        'records': member.records,
    }


def status(member: Member) -> str:
    """Returns how a member's training ended."""
    if member.diverged is not None:
        return f'diverged in epoch {member.diverged}'
    if member.position.stopping.stopped:
        return f'stopped early after epoch {member.position.epoch}'
    return f'finished after epoch {member.position.epoch}'


def _counted(member: Member) -> Record:
    """Returns the record of the best or, if so configured, the last epoch; {} if none ended."""
    best = member.position.stopping.best_epoch
    if not member.records:
        return {}
    if best is None or not member.run.config.early_stopping.restore_best:
        return member.records[-1]
    return member.records[best]


def order(member: Member) -> tuple[float, ...]:
    """Returns a sort key that puts the best first: monitored metric, then validation loss."""
    if member.diverged is not None:
        return (True,)
    record, rule = _counted(member), stopping_rule(member.run.config.early_stopping)
    monitor, mode = ('val_loss', 'min') if rule is None else (rule.monitor, rule.mode)
    values = [-record[monitor] if mode == 'max' else record[monitor], record['val_loss']]
    return (False, *(math.inf if math.isnan(value) else value for value in values))

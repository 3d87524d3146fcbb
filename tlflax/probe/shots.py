"""The few-shot protocol: accuracies by number of training images of each class, and its files."""

import csv
import io
import time
from collections.abc import Sequence

from absl import logging

from tlflax.config.schema import Config
from tlflax.data.inputs.class_checks import some
from tlflax.data.table import ImageTable
from tlflax.probe.few_shot import Summary, accuracies, summarize
from tlflax.probe.rows import read_rows
from tlflax.probe.run import prepare
from tlflax.utils.errors import UserError
from tlflax.utils.files import JsonObject, atomic_write, write_json
from tlflax.workdir.files import Workdir, writing

DRAWS = 20
FILES = ('shots.csv', 'shots.json')


def parse(shots: Sequence[str], draws: str | None, representation: str) -> tuple[list[int], int]:
    """Returns the numbers that `--shots` and `--draws` give.

    Raises:
        UserError: One is not a whole number, or too small; or the features are not taken raw.
    """
    if representation != 'raw':
        raise UserError(
            'few shots take features as they are, because moments of so few images are noise',
            where='--representation',
            fix='leave it out, or --shots',
        )
    counts = [_whole(value, 1, '--shots', '--shots=1,5,20') for value in shots]
    number = DRAWS if draws is None else _whole(draws, 2, '--draws', f'--draws={DRAWS}')
    return sorted(set(counts)), number


def run(config: Config, work: Workdir, shots: Sequence[int], draws: int = DRAWS) -> JsonObject:
    """Measures how many training images of each class a linear classifier needs.

    Writes `shots.csv`, a row for each number of shots, and `shots.json`, all draws.

    Args:
        config: As for a probe; `config.train.seed` is that of the draws.
        work: New.
        shots: Numbers of training images of each class.
        draws: Random draws for each number, at least two.

    Returns:
        The contents of `shots.json`.

    Raises:
        UserError: The features are not kept on the device, or the workdir is in use.
    """
    with work.locked():
        work.require_unused('config.json', 'result.json', *FILES)
        run, *sources = prepare(config)
        head, table = run.config.model.head, run.splits.train
        train, val = (read_rows(source, head, len(table.class_names)) for source in sources)
        _report_small(table, max(shots))
        began = time.perf_counter()
        found = accuracies(train, val, shots, draws, config.train.seed)
        seconds = time.perf_counter() - began
        summaries = [summarize(k, own) for k, own in zip(shots, found, strict=True)]
        result = {
            'shots': [
                {**summary._asdict(), 'accuracies': own.tolist()}
                for summary, own in zip(summaries, found, strict=True)
            ],
            'seed': config.train.seed,
            'head': head,
            'layer': config.features.layer,
            'train_images': len(train.label),
            'val_images': len(val.label),
            'seconds': seconds,
            'weights_digest': run.pretrained.digest,
            'data_digest': run.splits.digest,
        }
        with writing(work.path):
            write_json(work.path / 'shots.json', result)
            atomic_write(work.path / 'shots.csv', format_csv(summaries))
    return result


def format_table(rows: Sequence[JsonObject]) -> str:
    """Shows the accuracies for people."""
    lines = ['shots  draws  accuracy  95 % interval']
    lines += [
        f'{row["shots"]:5d}  {row["draws"]:5d}  {row["mean_accuracy"]:8.4f}'
        f'  {row["low"]:.4f} to {row["high"]:.4f}'
        for row in rows
    ]
    return '\n'.join(lines)


def format_csv(summaries: Sequence[Summary]) -> str:
    """Returns a row for each number of shots as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(Summary._fields)
    writer.writerows(summaries)
    return text.getvalue()


def _report_small(table: ImageTable, most: int) -> None:
    names = [
        name for name, count in zip(table.class_names, table.counts, strict=True) if count < most
    ]
    if names:
        logging.warning(
            'WARNING: %d of %d classes have fewer than %d training images, and give all of theirs '
            'where there are too few: %s',
            len(names),
            len(table.class_names),
            most,
            some(names),
        )


def _whole(value: str, least: int, flag: str, example: str) -> int:
    """Returns the whole number that a flag gives."""
    if value.isascii() and value.isdigit() and int(value) >= least:
        return int(value)
    raise UserError(
        f'{value!r} is not a whole number of at least {least}', where=flag, fix=f'write {example}'
    )

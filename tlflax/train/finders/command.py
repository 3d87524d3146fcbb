"""`python -m tlflax.train --find_lr` and `--find_batch_size`: what they print and write."""

import dataclasses
import math
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from tlflax.config.flags import UsageError
from tlflax.config.phases import expand
from tlflax.config.schema import Config
from tlflax.features.batches import Source
from tlflax.features.live_sources import ComputedSource, ImageSource
from tlflax.train import setup
from tlflax.train.finders import batch_size, batches, chart, learning_rate, noise_scale
from tlflax.train.finders.batch_size import Choice, Measured
from tlflax.train.finders.learning_rate import RangeTest, Suggestion
from tlflax.train.setup import Run
from tlflax.utils.errors import UserError
from tlflax.utils.files import atomic_write, csv_text, dump_json
from tlflax.utils.parallel.mesh import require_one_process
from tlflax.utils.progress import progress
from tlflax.workdir.files import Workdir, writing

WARM_UP = 30  # steps before the noise scale is measured: at first, gradients are unlike all later
_ROWS = 25  # of the table of rates
_LIMITS = {
    'noise': 'larger ones would average little more noise',
    'speed': 'larger ones hardly take more images a second',
    'images': f'an epoch of larger ones has fewer than {batch_size.SHARE} steps',
}


def find(values: ConfigDict, workdir: str, *, rate: bool, size: bool) -> str:
    """Returns the report on a learning rate or a batch size.

    Args:
        values: As a config file's `get_config()` returns it.
        workdir: See `find_learning_rate`.
        rate: Whether a learning rate is asked for.
        size: Whether a batch size is.

    Raises:
        UserError: Both are asked for; or see the functions below.
    """
    if rate and size:
        raise UsageError(
            '--find_lr and --find_batch_size are two questions', where='command line', fix='ask one'
        )
    return find_learning_rate(values, workdir) if rate else find_batch_size(values)


def find_learning_rate(values: ConfigDict, workdir: str) -> str:
    """Runs the range test; writes `lr.csv` and `lr.svg` to the workdir and returns a report.

    The workdir stays free for a training.

    Args:
        values: As a config file's `get_config()` returns it.
        workdir: Created if it does not exist.

    Raises:
        UserError: The configuration, the data or the machine is at fault.
    """
    require_one_process('the choice of a learning rate')
    config = _configure(values, 'learning rate')
    folder = Workdir(Path(workdir)).path
    constant = dataclasses.replace(config.optim, schedule='constant', warmup_epochs=0.0)
    run = setup.build(dataclasses.replace(config, optim=constant), setup.load(config))
    reference = learning_rate.reference_rate(run)
    rising = learning_rate.rising(run, reference)
    test = learning_rate.range_test(rising, _source(run))
    found = learning_rate.suggest(test)
    rate = None if found is None else found.steepest
    with writing(folder):
        rows = [dict(zip(RangeTest._fields, row, strict=True)) for row in zip(*test, strict=True)]
        atomic_write(folder / 'lr.csv', csv_text(rows, RangeTest._fields))
        atomic_write(folder / 'lr.svg', _chart(test, rate, folder.name))
    own = {label: rate * r / reference for label, r in config.optim.learning_rates if rate}
    result = {
        'learning_rate': rate,
        'method': 'steepest',
        'learning_rates': own,
        'valley': found and found.valley,
        'lowest': found and found.lowest,
        'steps': len(test.rate),
        'last_rate': float(test.rate[-1]),
    }
    drawn = f'drawn in {folder}/lr.svg'
    lines = [_table_of_rates(test), _explain_rate(found, own), drawn, dump_json(result)]
    return '\n'.join(lines)


def find_batch_size(values: ConfigDict) -> str:
    """Measures steps of many batch sizes and the gradient noise scale, and returns a report.

    Args:
        values: As a config file's `get_config()` returns it.

    Raises:
        UserError: The configuration, the data or the machine is at fault.
    """
    require_one_process('the choice of a batch size')
    config = _configure(values, 'batch size')
    run = setup.build(config, setup.load(config))
    source = _source(run)
    state = batches.first_state(run)
    size = run.config.train.batch_size
    with progress('warm-up', WARM_UP * size) as tick:
        for _, batch in zip(range(WARM_UP), batches.endless(run, source), strict=False):
            state, _ = batches.step(run, state, batch)
            tick(size)
    noise = noise_scale.measure(run, source, state)
    found = batch_size.measure(run, source)
    choice = batch_size.choose(found, noise, source.num_examples)
    result = {
        'batch_size': choice.batch_size,
        'limit': choice.limit,
        'noise_scale': noise,
        'sizes': [dataclasses.asdict(one) for one in found],
    }
    lines = [_table_of_sizes(found), _explain_size(choice, noise, found, source.num_examples)]
    return '\n'.join([*lines, dump_json(result)])


def _configure(values: ConfigDict, what: str) -> Config:
    """Returns the configuration of one training, or of its first phase.

    Raises:
        UserError: It describes several.
    """
    config = setup.configure(values)
    for key, value, example in (
        ('model.head', config.model.head == 'auto', 'model.head=mlp'),
        ('data.fold', config.data.fold == 'all', 'data.fold=0'),
    ):
        if value:
            raise UserError(
                f'the {what} is that of one training, and this configuration has many',
                where=f'config.{key}',
                fix=f'choose one, such as --config.{example}',
            )
    if config.train.phases:
        logging.info('the %s is found for the first of train.phases', what)
    return expand(config)[0]


def _source(run: Run) -> Source:
    source = run.sources.train(run.splits.train)
    if isinstance(source, ImageSource | ComputedSource):
        logging.info('nothing is cached: images are read in every step, which takes its time')
    return source


def _chart(test: RangeTest, rate: float | None, name: str) -> str:
    return chart.log_chart(
        test.rate,
        [('loss of each batch', test.loss), ('smoothed', test.smoothed)],
        title=f'Learning-rate range test of {name}',
        axes=('learning rate', 'training loss'),
        mark=rate,
    )


def _table_of_rates(test: RangeTest) -> str:
    rows = range(0, len(test.rate), max(math.ceil(len(test.rate) / _ROWS), 1))
    lines = [f'{test.rate[i]:13.2e}  {test.loss[i]:9.4g}  {test.smoothed[i]:9.4g}' for i in rows]
    return '\n'.join([f'{"learning rate":>13}  {"loss":>9}  {"smoothed":>9}', *lines])


def _explain_rate(found: Suggestion | None, own: dict[str, float]) -> str:
    if found is None:
        return 'no suggestion: the smoothed loss hardly falls at any rate'
    rates = ', '.join(f'{rate:.2g} for {label!r}' for label, rate in own.items())
    return (
        f'suggestion: optim.learning_rate={found.steepest:g}{" and " if own else ""}{rates}, where '
        f'the smoothed loss falls fastest (Smith 2015); it is lowest at {found.lowest:g}, and '
        f"fastai's valley algorithm gives {found.valley:g}"
    )


def _table_of_sizes(found: list[Measured]) -> str:
    lines = [f'{"batch size":>10}  {"ms a step":>9}  {"images/s":>9}  {"MB":>7}']
    for one in found:
        row = f'{one.batch_size:10}  {one.milliseconds:9.3g}  {one.images_per_second:9.0f}'
        lines.append(f'{row}  {one.megabytes:7.0f}{"" if one.fits else "  does not fit"}')
    return '\n'.join(lines)


def _explain_size(choice: Choice, noise: float, found: list[Measured], images: int) -> str:
    most = max((one.images_per_second for one in found if one.fits), default=0.0)
    scale = f'{noise:.0f}' if math.isfinite(noise) else 'larger than can be measured'
    return (
        f'suggestion: train.batch_size={choice.batch_size}: {_LIMITS[choice.limit]} (noise scale '
        f'{scale} (McCandlish et al. 2018), at most {most:.0f} images a second, {images} images)'
    )

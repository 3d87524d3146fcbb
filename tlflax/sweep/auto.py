"""Chooses a head by cross-validation on the training images alone (`model.head='auto'`).

Linear models on several representations of the features are fitted along paths of regularization
strengths. A greedy ensemble of them (Caruana et al. 2004) becomes the head. Validation and test
images have no part in the choice, so their figures are honest.
"""

import csv
import dataclasses
import io
import time
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from tlflax.config.parse import to_dict
from tlflax.config.schema import AugmentConfig, Config
from tlflax.data.splits.stratify import fold_numbers
from tlflax.features import on_host
from tlflax.models import ensemble_head
from tlflax.models.backbones import find
from tlflax.models.base import taps
from tlflax.models.base.modules import Variables
from tlflax.models.linear import compression, ensemble, representations, search
from tlflax.models.linear.representations import Representation
from tlflax.sweep.candidates import SOLVERS, STRENGTHS, Candidate, affordable, candidates
from tlflax.train import setup, steps
from tlflax.train.early_stopping import State
from tlflax.train.metrics.proportions import wilson_interval
from tlflax.train.position import Position
from tlflax.train.run import assess, publish
from tlflax.train.setup import Run
from tlflax.utils.errors import UserError
from tlflax.utils.files import JsonObject, atomic_write, write_json
from tlflax.workdir.files import Workdir, read_json, writing

FOLDS = 5
BUDGET = 1.2e12  # operations of a choice for each 1,000 images: 2 minutes on two cores
_FEW = 1000  # images up to which everything is tried, with few classes
_ROUNDS = 20  # most members of an ensemble, counted with repetition
_COLUMNS = ('candidate', 'weight', 'cv_accuracy', 'low', 'high', 'cv_loss', 'strength', 'seconds')


@dataclasses.dataclass(frozen=True, eq=False)
class Tried:
    """A candidate with the best model of its path.

    Attributes:
        candidate: The candidate.
        found: Its best model.
        kernel: f32[d, num_classes], of the representation's rows, calibrated.
        bias: f32[num_classes].
        seconds: That the search took.
    """

    candidate: Candidate
    found: search.Found
    kernel: Float[np.ndarray, 'd num_classes']
    bias: Float[np.ndarray, ' num_classes']
    seconds: float


def choose_and_evaluate(config: ConfigDict, workdir: str | Path) -> tuple[JsonObject, JsonObject]:
    """Chooses and fits a head, and writes it as a workdir like any other, with `auto.json`.

    Args:
        config: As a config file's `get_config()` returns it, with `model.head='auto'`; its
            optimizer, loss, augmentation and early stopping are not used.
        workdir: Where to write; one that is finished is not written again.

    Returns:
        The contents of `result.json` and of `auto.json`.

    Raises:
        UserError: The configuration or the data is at fault, the features are not kept on the
            device, or the workdir holds another run.
    """
    resolved = setup.configure(config)
    work = Workdir(Path(workdir))
    with work.locked():
        work.check(to_dict(resolved))
        result = work.result()
        if result is None:
            result = _choose(resolved, work)
        else:
            logging.info('%s is finished; the result is in result.json', work.path)
        return result, read_json(work.path / 'auto.json')


def _choose(config: Config, work: Workdir) -> JsonObject:
    began = time.perf_counter()
    plain = _without_training(config)
    inputs = setup.load(plain)
    offered = candidates(*_tapped(plain))
    first = setup.build(_with_head(plain, [offered[0].representation]), inputs)
    table = first.splits.train
    features, label = on_host.read(first.sources.eval(table, 'training'))
    if table.weights is not None:
        logging.warning("WARNING: model.head='auto' does not use the weights of images")
    fold = fold_numbers(table, FOLDS)
    _check_folds(fold)
    n, classes = len(label), len(table.class_names)
    kept = affordable(offered, n, classes, FOLDS, budget(n))
    tried = [_try(candidate, features, label, classes, fold) for candidate in kept]
    counts = _select(tried, label, fold)
    members = [(one, int(c)) for one, c in zip(tried, counts, strict=True) if c]
    chosen = setup.build(
        _with_head(plain, [one.candidate.representation for one, _ in members]), inputs
    )
    report = _report(tried, counts, label, fold, [c.name for c in offered if c not in kept])
    logging.info('%s', report['why'])
    with writing(work.path):
        work.path.mkdir(parents=True, exist_ok=True)
        write_json(work.path / 'auto.json', report)
        atomic_write(work.path / 'auto.csv', format_csv(report['candidates']))
    return _publish(config, chosen, members, work, time.perf_counter() - began)


def _without_training(config: Config) -> Config:
    """Returns a configuration without what only heads trained by steps use."""
    stopping = dataclasses.replace(config.early_stopping, restore_best=True)
    return dataclasses.replace(
        config, augment=AugmentConfig(horizontal_flip=False), early_stopping=stopping
    )


def _with_head(config: Config, branches: Sequence[Representation]) -> Config:
    model = dataclasses.replace(config.model, head=ensemble_head.name_of(branches), dropout=0.0)
    return dataclasses.replace(config, model=model)


def _tapped(config: Config) -> tuple[tuple[taps.Tap, ...], list[int]]:
    """Returns the taps and the number of columns of each."""
    backbone, size = find(config.model.backbone), config.data.image_size
    found = setup.tapped(config)
    return found, [tap.columns(backbone.feature_shape(size, tap.layer)) for tap in found]


def budget(images: int) -> float:
    """Returns how many floating-point operations the choice may take."""
    return BUDGET * max(images, _FEW) / 1000


def _check_folds(fold: Int[np.ndarray, ' n']) -> None:
    if len(np.unique(fold[fold >= 0])) < 2:
        raise UserError(
            'the training images are too few for cross-validation',
            where='config.data.train',
            fix='add images or groups, or name a head in config.model.head',
        )


def _try(
    candidate: Candidate,
    features: Float[np.ndarray, 'n columns'],
    label: Int[np.ndarray, ' n'],
    classes: int,
    fold: Int[np.ndarray, ' n'],
) -> Tried:
    """Searches the strength of a candidate."""
    began = time.perf_counter()
    rows = np.asarray(representations.apply(candidate.representation, jnp.asarray(features)))
    compressed = compression.compress(rows)
    found = search.search(
        SOLVERS[candidate.solver], compressed, label, classes, fold, STRENGTHS[candidate.solver]
    )
    kernel = compressed.kernel(rows, found.best.weights) * np.float32(found.factor)
    seconds = time.perf_counter() - began
    logging.info(
        '%s: cross-validated accuracy %.4f, loss %.4f (%.1f s)',
        *(candidate.name, found.accuracy, found.loss, seconds),
    )
    return Tried(candidate, found, kernel, found.best.bias * np.float32(found.factor), seconds)


def _select(
    tried: Sequence[Tried], label: Int[np.ndarray, ' n'], fold: Int[np.ndarray, ' n']
) -> Int[np.ndarray, ' m']:
    """Returns how often each candidate counts in the ensemble."""
    held_out = fold >= 0
    probabilities = np.stack([one.found.probabilities()[held_out] for one in tried])
    costs = np.array([float(one.candidate.columns) for one in tried])
    return ensemble.select(probabilities, label[held_out], costs, _ROUNDS)


def _report(
    tried: Sequence[Tried],
    counts: Int[np.ndarray, ' m'],
    label: Int[np.ndarray, ' n'],
    fold: Int[np.ndarray, ' n'],
    dropped: Sequence[str],
) -> JsonObject:
    """Returns the contents of `auto.json`."""
    held_out, total = fold >= 0, counts.sum()
    own = label[held_out]
    mean = sum(
        one.found.probabilities()[held_out] * (c / total)
        for one, c in zip(tried, counts, strict=True)
    )
    right = int((np.asarray(mean).argmax(1) == own).sum())
    loss = -np.log(np.maximum(np.asarray(mean)[np.arange(len(own)), own], 1e-12)).mean()
    best = max(tried, key=lambda one: (one.found.accuracy, -one.found.loss))
    used = [one.candidate.name for one, c in zip(tried, counts, strict=True) if c]
    why = (
        f'the mean of {len(used)} of {len(tried)} candidates has the lowest cross-validated loss, '
        f'{loss:.4f}, with accuracy {right / len(own):.4f}; the most accurate candidate alone '
        f'({best.candidate.name}) has {best.found.loss:.4f} and {best.found.accuracy:.4f}'
    )
    return {
        'why': why,
        'folds': FOLDS,
        'images': int(held_out.sum()),
        'cv_accuracy': right / len(own),
        'cv_accuracy_interval': list(wilson_interval(right, len(own))),
        'cv_loss': float(loss),
        'candidates': [
            _row(one, int(c) / int(total), int(held_out.sum()))
            for one, c in zip(tried, counts, strict=True)
        ],
        'not_tried': list(dropped),
    }


def _row(one: Tried, weight: float, n: int) -> JsonObject:
    low, high = wilson_interval(round(one.found.accuracy * n), n)
    numbers = (weight, one.found.accuracy, low, high, one.found.loss, one.found.best.strength)
    return dict(zip(_COLUMNS, (one.candidate.name, *map(float, numbers), one.seconds), strict=True))


def format_csv(rows: Sequence[JsonObject]) -> str:
    """Returns the table of candidates as CSV."""
    text = io.StringIO(newline='')
    lines = csv.DictWriter(text, _COLUMNS)
    lines.writeheader()
    lines.writerows(rows)
    return text.getvalue()


def format_table(report: JsonObject) -> str:
    """Shows the candidates for people."""
    lines = ['weight  accuracy  (95 % interval)     loss  candidate']
    for row in report['candidates']:
        interval = f'({row["low"]:.4f} to {row["high"]:.4f})'
        lines.append(
            f'{row["weight"]:6.2f}  {row["cv_accuracy"]:8.4f}  {interval}  {row["cv_loss"]:7.4f}'
            f'  {row["candidate"]}'
        )
    return '\n'.join([*lines, report['why']])


def _publish(
    asked: Config, run: Run, members: Sequence[tuple[Tried, int]], work: Workdir, seconds: float
) -> JsonObject:
    """Writes the workdir of the head that the members make."""
    head: dict[str, object] = {
        ensemble_head.branch_name(number): {
            'kernel': jnp.asarray(one.kernel),
            'bias': jnp.asarray(one.bias),
        }
        for number, (one, _) in enumerate(members)
    }
    counts = np.array([count for _, count in members], np.float64)
    head['log_weight'] = jnp.asarray(np.log(counts / counts.sum()), jnp.float32)
    variables = Variables({'head': head}, {})
    train = run.sources.eval(run.splits.train, 'training')
    val = run.sources.eval(run.splits.val, 'validation')
    record = {
        'epoch': 1,
        'step': 1,
        **assess(run, variables, train, val),
        'epoch_seconds': seconds,
        'images_per_second': len(run.splits.train) / seconds,
    }
    state = steps.init_state(variables, run.learner.tx)._replace(step=jnp.int32(1))
    stopping = State(best=record['val_accuracy'], best_epoch=0, improved=True)
    saved = [(state, Position(epoch=1, stopping=stopping))]
    return publish(run, work, val, [record], saved, seconds, asked)

"""Chooses a head by cross-validation on the training images alone (`model.head='auto'`).

First `tlflax.sweep.trials` decides how images are shown. Then candidates are fitted to their
features, each with the setting that cross-validation finds, and a greedy ensemble of them (Caruana
et al. 2004) becomes the head. Validation and test images have no part in the choice, so their
figures are honest.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Int
from ml_collections import ConfigDict

from tlflax.config.schema import AugmentConfig, Config
from tlflax.data.splits.stratify import fold_numbers
from tlflax.models import ensemble_head
from tlflax.models.base.modules import Variables
from tlflax.models.linear import ensemble
from tlflax.sweep import auto_report, trials
from tlflax.sweep.auto_report import Tried
from tlflax.sweep.candidates.catalogue import affordable, candidates
from tlflax.sweep.candidates.fitted import Candidate, Fitted, Training
from tlflax.sweep.trials import FOLDS
from tlflax.train import setup, steps
from tlflax.train.early_stopping import State
from tlflax.train.position import Position
from tlflax.train.result import assess
from tlflax.train.run import publish
from tlflax.train.setup import Run
from tlflax.utils.errors import UserError
from tlflax.utils.files import JsonObject, atomic_write, write_json
from tlflax.utils.parallel.mesh import require_one_process
from tlflax.workdir.files import Workdir, read_json, writing

BUDGET = 2.4e12  # operations of a choice for each 1,000 images: 2 minutes on two cores
_FEW = 1000  # images up to which everything is tried, with few classes
_ROUNDS = 20  # most members of an ensemble, counted with repetition


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
    require_one_process('the automatic choice of a head')
    resolved = setup.configure(config)
    work = Workdir(Path(workdir))
    with work.locked():
        resolved = work.check(resolved)
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
    table = inputs.splits.train
    if table.weights is not None:
        logging.warning("WARNING: model.head='auto' does not use the weights of images")
    fold = fold_numbers(table, FOLDS)
    _check_folds(fold)
    judged = trials.judge(plain, inputs, mirrored=config.augment.horizontal_flip)
    run = trials.build(judged.config, inputs)
    features, flipped, label = trials.read(run, table, mirrored=judged.mirrored)
    training = Training(features, label, len(table.class_names), fold, flipped)
    offered = candidates(trials.layout(judged.config), mirrored=judged.mirrored)
    n, classes = len(label), training.num_classes
    kept = affordable(offered, n, classes, FOLDS, budget(n))
    tried: list[Tried] = []
    for candidate in kept:
        tried.append(_try(candidate, training, [one.fitted for one in tried]))
    counts, factor = _select(tried, training)
    members = [
        (one.fitted.scaled(factor), int(c)) for one, c in zip(tried, counts, strict=True) if c
    ]
    branches = [fitted.branch for fitted, _ in members]
    chosen = setup.build(trials.with_head(judged.config, branches), inputs)
    dropped = [one.name for one in offered if one not in kept]
    report = auto_report.make(tried, counts, factor, training, dropped)
    report['trials'] = [trial._asdict() for trial in judged.trials]
    logging.info('%s', report['why'])
    with writing(work.path):
        work.path.mkdir(parents=True, exist_ok=True)
        write_json(work.path / 'auto.json', report)
        atomic_write(work.path / 'auto.csv', auto_report.format_csv(report['candidates']))
    return _publish(config, chosen, members, work, time.perf_counter() - began)


def _without_training(config: Config) -> Config:
    """Returns a configuration without what only heads trained by steps use."""
    stopping = dataclasses.replace(config.early_stopping, restore_best=True)
    return dataclasses.replace(
        config, augment=AugmentConfig(horizontal_flip=False), early_stopping=stopping
    )


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


def _try(candidate: Candidate, training: Training, rivals: Sequence[Fitted]) -> Tried:
    began = time.perf_counter()
    fitted = candidate.fit(training, [rival for rival in rivals if rival.complete])
    seconds = time.perf_counter() - began
    logging.info(
        '%s: cross-validated accuracy %.4f, loss %.4f, %s (%.1f s)',
        *(candidate.name, fitted.accuracy, fitted.loss, fitted.setting, seconds),
    )
    return Tried(candidate, fitted, seconds)


def _select(tried: Sequence[Tried], training: Training) -> tuple[Int[np.ndarray, ' m'], float]:
    """Chooses the ensemble; candidates that gave up are not in it.

    Returns:
        How often each candidate counts, and the factor of their scores.
    """
    held_out = training.fold >= 0
    label = training.label[held_out]
    complete = [number for number, one in enumerate(tried) if one.fitted.complete]
    scores = np.stack([tried[k].fitted.log_probabilities[held_out] for k in complete])
    costs = np.array([float(tried[k].candidate.columns) for k in complete])
    chosen = ensemble.select(np.exp(scores), label, costs, _ROUNDS)
    counts = np.zeros(len(tried), np.int64)
    counts[complete] = chosen
    return counts, ensemble.sharpening(scores, chosen, label)


def _publish(
    asked: Config, run: Run, members: Sequence[tuple[Fitted, int]], work: Workdir, seconds: float
) -> JsonObject:
    """Writes the workdir of the head that the members make."""
    head: dict[str, object] = {
        ensemble_head.branch_name(number): fitted.params
        for number, (fitted, _) in enumerate(members)
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

"""One run from its configuration to its result: prepare, resume, fit, evaluate the best."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from absl import logging
from ml_collections import ConfigDict

from tlflax.config.parse import resolve, to_dict
from tlflax.config.schema import Config
from tlflax.features.batches import Source
from tlflax.train import early_stopping, loop, losses, setup, steps
from tlflax.train.epoch import evaluate_split
from tlflax.train.setup import Run
from tlflax.utils.errors import UserError
from tlflax.utils.sharding import replicate
from tlflax.workdir import files
from tlflax.workdir.checkpoints import Checkpoints
from tlflax.workdir.files import Workdir

_SHOWN = 10  # class weights in the log


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Trains, or goes on training, until early stopping or the last epoch.

    Args:
        config: As a config file's `get_config()` returns it.
        workdir: Where config, metrics, checkpoints and result are written.

    Returns:
        The contents of `workdir/result.json`. A finished run is not run again.

    Raises:
        UserError: Something the user can fix.
        tlflax.train.loop.Interrupted: SIGINT or SIGTERM came, and the state is saved.
    """
    resolved = resolve(config)
    work = Workdir(Path(workdir))
    work.check(to_dict(resolved))
    result = work.result()
    if result is not None:
        logging.info('%s is finished; the result is in result.json', work.path)
        return result
    return run(resolved, work)


def run(config: Config, work: Workdir) -> dict[str, Any]:
    """Trains in `work` from wherever its checkpoints stand and returns the result.

    Raises:
        UserError: Something the user can fix.
        tlflax.train.loop.Interrupted: SIGINT or SIGTERM came, and the state is saved.
    """
    began = time.perf_counter()
    rule = stopping_rule(config)
    prepared = setup.build(config, setup.load(config))
    logging.info('%s', prepared.learner.table)
    report_loss(prepared)
    train = prepared.sources.train(prepared.splits.train)
    val = prepared.sources.eval(prepared.splits.val, 'validation')
    work.claim(to_dict(config))
    try:
        with Checkpoints(work.checkpoints) as saved:
            state, position, spent = _resume(saved, prepared, work)
            fit = loop.Fit(
                runner=prepared.runner,
                train=train,
                val=val,
                epochs=config.train.epochs,
                stopping=rule,
                learning_rate=prepared.learner.learning_rate,
                checkpoints=saved,
                workdir=work,
                meta=prepared.meta,
                clock=lambda: spent + time.perf_counter() - began,
                copy_frozen=config.checkpoint.include_backbone,
            )
            _, position = loop.fit(fit, state, position)
            result = _result(fit, prepared, position)
        work.write_result(result)
    finally:
        work.close()
    best, epochs = result['best_epoch'], result['epochs_run']
    logging.info('best epoch %d of %d; everything is in %s', best, epochs, work.path)
    return result


def publish(
    prepared: Run,
    work: Workdir,
    val: Source,
    records: Sequence[dict[str, Any]],
    saved_states: Sequence[tuple[steps.TrainState, loop.Position]],
    seconds: float,
) -> dict[str, Any]:
    """Makes a workdir as `run` leaves it of a training that was done elsewhere.

    Args:
        prepared: The run.
        work: Empty.
        val: Its validation split.
        records: One for each epoch.
        saved_states: States at the end of some epochs in their order, the best and the last among
            them, and the positions after these.
        seconds: What the training took.

    Returns:
        The contents of `result.json`.
    """
    work.claim(to_dict(prepared.config))
    try:
        with Checkpoints(work.checkpoints) as checkpoints:
            fit = loop.Fit(
                runner=prepared.runner,
                train=val,  # nothing is trained any more
                val=val,
                epochs=prepared.config.train.epochs,
                stopping=None,
                learning_rate=prepared.learner.learning_rate,
                checkpoints=checkpoints,
                workdir=work,
                meta=prepared.meta,
                clock=lambda: seconds,
                copy_frozen=prepared.config.checkpoint.include_backbone,
            )
            for record in records:
                work.append(record)
            for state, position in saved_states:
                loop.save(fit, state, position, records[position.epoch - 1])
            checkpoints.wait()
            result = _result(fit, prepared, saved_states[-1][1])
        work.write_result(result)
    finally:
        work.close()
    return result


def _resume(
    saved: Checkpoints, prepared: Run, work: Workdir
) -> tuple[steps.TrainState, loop.Position, float]:
    """Returns the last saved state, its position and the seconds spent before; or the first."""
    learner = prepared.learner
    state = steps.init_state(learner.trainable, learner.tx)
    position, spent = loop.Position(), 0.0
    last = saved.latest()
    if last is not None:
        meta = saved.meta(last)
        for name, thing in (('data_digest', 'images'), ('weights_digest', 'weights')):
            if meta[name] != prepared.meta[name]:
                raise UserError(
                    f'the {thing} are no longer those this run started with',
                    where=str(work.path),
                    fix=f'put the {thing} back, or start afresh with another --workdir',
                )
        params, opt_state = saved.state(last, state.params, state.opt_state)
        state = steps.TrainState(jnp.int32(last), params, opt_state)
        position = loop.Position.from_json(meta['position'])
        spent = meta['wall_seconds']
        logging.info('resuming after epoch %d, step %d', position.epoch, last)
    work.rewind(position.epoch)
    return replicate(state, prepared.runner.mesh), position, spent


def _result(fit: loop.Fit, prepared: Run, position: loop.Position) -> dict[str, Any]:
    """Evaluates the checkpoint that counts and puts the result together."""
    config = prepared.config
    step = fit.checkpoints.find('best' if config.early_stopping.restore_best else 'last')
    params = fit.checkpoints.params(step, prepared.learner.trainable)
    params = replicate(params, prepared.runner.mesh)
    records = fit.workdir.records()
    best = records[position.stopping.best_epoch or 0]
    val = evaluate_split(prepared.runner, params, fit.val, prepared.splits.val)
    test = None
    if prepared.splits.test is not None:
        source = prepared.sources.eval(prepared.splits.test, 'test')
        test = evaluate_split(prepared.runner, params, source, prepared.splits.test)
    return {
        'best_epoch': best['epoch'],
        'best_val_accuracy': best['val_accuracy'],
        'best_val_loss': best['val_loss'],
        'stopped_early': position.stopping.stopped,
        'epochs_run': position.epoch,
        'step': step,
        'wall_seconds': fit.clock(),
        'weights_digest': prepared.pretrained.digest,
        'data_digest': prepared.splits.digest,
        'val': val,
        'test': test,
        'versions': files.versions(),
    }


def report_loss(prepared: Run) -> None:
    """Logs the class weights, and warns where an imbalance is made up for twice."""
    config, classes = prepared.config, prepared.splits.train.classes
    weights = prepared.runner.loss.class_weight
    if weights is not None:
        pairs = sorted(zip(weights.tolist(), classes, strict=True), reverse=True)
        shown = ', '.join(f'{name!r} {weight:.4g}' for weight, name in pairs[:_SHOWN])
        rest = f' and {len(pairs) - _SHOWN} smaller' if len(pairs) > _SHOWN else ''
        logging.info('class weights: %s%s', shown, rest)
    balanced = config.train.balanced_sampling
    if overlap := losses.describe_overlap(config.loss, balanced_sampling=balanced):
        logging.warning('WARNING: %s', overlap)


def stopping_rule(config: Config) -> early_stopping.EarlyStopping | None:
    """Returns the early-stopping rule, checked before anything takes time."""
    rule = config.early_stopping
    if not rule.monitor:
        return None
    monitor = early_stopping.resolve_monitor(rule.monitor, loop.METRICS)
    return early_stopping.EarlyStopping(
        monitor=monitor,
        min_delta=rule.min_delta,
        patience=rule.patience,
        mode=early_stopping.resolve_mode(monitor, rule.mode),
        baseline=None if math.isnan(rule.baseline) else rule.baseline,
        start_from_epoch=rule.start_from_epoch,
    )

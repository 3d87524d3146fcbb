"""A run from its configuration to its result: set up, resume, train, evaluate the best epoch."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from tlflax.config.parse import to_dict
from tlflax.config.schema import Config
from tlflax.features.batches import Source
from tlflax.models.base.backbone import IMAGE
from tlflax.train import losses, resume, setup, steps
from tlflax.train import result as results
from tlflax.train.early_stopping import stopping_rule
from tlflax.train.loop import Fit, Interrupted, train_epochs
from tlflax.train.position import Position, Record
from tlflax.train.setup import Inputs, Run
from tlflax.utils.files import JsonObject
from tlflax.utils.storage.connect import is_url
from tlflax.workdir import provenance
from tlflax.workdir.checkpoints import Checkpoints
from tlflax.workdir.files import Workdir
from tlflax.workdir.loggers.base import Status
from tlflax.workdir.mirror.write import mirrored
from tlflax.workdir.profiling import Profile

Sources = tuple[Source, Source]
"""The training and the validation examples."""


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> JsonObject:
    """Trains, or continues training, until early stopping or the last epoch.

    Args:
        config: As a config file's `get_config()` returns it.
        workdir: Where config, metrics, checkpoints and result are written; a folder, or its URL in
            an object store.

    Returns:
        The contents of `workdir/result.json`. A finished run is not run again.

    Raises:
        UserError: The configuration, the data or the machine is at fault.
        tlflax.train.loop.Interrupted: SIGINT or SIGTERM was received, and the state is saved.
    """
    if is_url(str(workdir)):
        with mirrored(str(workdir)) as folder:
            return train_and_evaluate(config, folder)
    resolved = setup.configure(config)
    work = Workdir(Path(workdir))
    with work.locked():
        resolved = work.check(resolved)
        result = work.result()
        if result is not None:
            logging.info('%s is finished; the result is in result.json', work.path)
            return result
        return train(resolved, work)


def train(config: Config, work: Workdir) -> JsonObject:
    """Trains in `work` from its last checkpoint, if it has one, and returns the result.

    Raises:
        UserError: The configuration, the data or the machine is at fault.
        tlflax.train.loop.Interrupted: SIGINT or SIGTERM was received, and the state is saved.
    """
    began = time.perf_counter()
    stopping_rule(config.early_stopping)  # checks it
    Profile.parse(config.train.profile, work.path)  # checks it
    inputs = setup.load(config)
    first = setup.build(config, inputs)
    first.log_length()
    _compute_lowest(first, inputs)
    # A new workdir is not bound to the run before its features are there.
    ready = None if work.has_checkpoints() else _begin(first)
    _claim(first, work)
    try:
        with Checkpoints(work.checkpoints) as checkpoints:
            stage = resume.start(checkpoints, first, inputs, work)
            if stage.state.step:
                epoch, step = stage.position.epoch, int(stage.state.step)
                logging.info('resuming after epoch %d, step %d', epoch, step)
            shown = work.rewind(stage.position.epoch)
            work.log_to(config.train.loggers, to_dict(first.whole), int(stage.state.step), shown)
            began -= stage.spent
            result = _train_phases(stage, ready, checkpoints, inputs, work, began)
            checkpoints.drop_former()
        result = work.write_result(result)
    except BaseException as error:
        work.close(_status(error))
        raise
    work.close('finished')
    best, epochs = result['best_epoch'], result['epochs_run']
    logging.info('best epoch %d of %d; everything is in %s', best, epochs, work.path)
    return result


def _status(error: BaseException) -> Status:
    return 'interrupted' if isinstance(error, Interrupted | KeyboardInterrupt) else 'failed'


def _compute_lowest(first: Run, inputs: Inputs) -> None:
    """Computes features at the lowest cut of all phases, from which those of the others follow."""
    others = [resume.of_phase(number, first, inputs) for number in range(first.num_phases)]
    order = (IMAGE, *first.runner.classifier.backbone.layers)
    lowest = min(others, key=lambda run: order.index(run.runner.classifier.cut))
    if lowest.runner.classifier.cut not in (IMAGE, first.runner.classifier.cut):
        epochs = sum(run.config.train.epochs for run in others)
        train = dataclasses.replace(lowest.config.train, epochs=epochs)
        sources = dataclasses.replace(lowest.sources, train_config=train)
        sources.train(first.splits.train)
        sources.eval(first.splits.val, 'validation')


def _train_phases(
    stage: resume.Stage,
    ready: Sources | None,
    checkpoints: Checkpoints,
    inputs: Inputs,
    work: Workdir,
    began: float,
) -> JsonObject:
    """Trains the phases from a stage on, and returns the result.

    Args:
        stage: Where training goes on.
        ready: The examples of its phase, if they are there already.
        checkpoints: The states of the run.
        inputs: Images and weights.
        work: The workdir.
        began: When training began, by `time.perf_counter`.
    """
    following: resume.Stage | None = stage
    while following is not None:
        stage = following
        fit, position = _train_phase(stage, ready, checkpoints, inputs, work, began)
        ended = dataclasses.replace(stage, position=position)
        following, ready = resume.next_phase(checkpoints, ended, inputs), None
    step = checkpoints.find(stage.run.config.early_stopping.counts)
    return results.evaluate(fit, position, *resume.at(checkpoints, step, stage.run, inputs))


def _train_phase(
    stage: resume.Stage,
    ready: Sources | None,
    checkpoints: Checkpoints,
    inputs: Inputs,
    work: Workdir,
    began: float,
) -> tuple[Fit, Position]:
    """Trains a phase to its end; see `_train_phases`."""
    run = stage.run
    train, val = ready or _begin(run)
    fit = Fit(
        run=run,
        val=val,
        checkpoints=checkpoints,
        workdir=work,
        clock=lambda: time.perf_counter() - began,
        again=lambda: resume.start(checkpoints, run, inputs, work).state,
        profile=Profile.parse(run.config.train.profile, work.path),
    )
    rule = stopping_rule(run.config.early_stopping)
    _, position = train_epochs(fit, train, rule, stage.state, stage.position)
    return fit, position


def _begin(run: Run) -> Sources:
    """Says what a phase trains, and returns its training and validation examples."""
    logging.info('%s', run.learner.table)
    _log_class_weights(run)
    train = run.sources.train(run.splits.train)
    return train, run.sources.eval(run.splits.val, 'validation')


def publish(
    run: Run,
    work: Workdir,
    val: Source,
    records: Sequence[Record],
    saved_states: Sequence[tuple[steps.TrainState, Position]],
    seconds: float,
    asked: Config | None = None,
    loggers: Sequence[str] | None = None,
) -> JsonObject:
    """Writes a workdir, as `train` leaves it, for a run that was trained elsewhere.

    Args:
        run: The run.
        work: One that `check_free` accepts.
        val: Its validation split.
        records: The record of each epoch.
        saved_states: States at the end of some epochs in order, the best and the last among them,
            and the positions after them.
        seconds: Seconds that the training took.
        asked: The configuration that the workdir is bound to; None: the one asked for.
        loggers: What shows the run; None: those of the configuration.

    Returns:
        The contents of `result.json`.
    """
    work.begin_writing()
    _claim(run, work, asked)
    try:
        with Checkpoints(work.checkpoints) as checkpoints:
            fit = Fit(
                run=run, val=val, checkpoints=checkpoints, workdir=work, clock=lambda: seconds
            )
            chosen = run.whole.train.loggers if loggers is None else loggers
            work.log_to(chosen, to_dict(run.whole))
            for record in records:
                work.append(record)
            for state, position in saved_states:
                fit.save(state, position, records[position.epoch - 1])
            checkpoints.wait()
            step = checkpoints.find(run.config.early_stopping.counts)
            trained = checkpoints.evaluated(step, run.learner.trainable)
            result = results.evaluate(fit, saved_states[-1][1], run, trained)
        result = work.write_result(result)
    except BaseException as error:
        work.close(_status(error))
        raise
    work.close('finished')
    return result


def _claim(run: Run, work: Workdir, asked: Config | None = None) -> None:
    """Binds a workdir to a run, and records what it takes to repeat it."""
    work.claim(to_dict(asked or run.asked))
    digests = {
        'data': run.splits.digest,
        'weights': run.pretrained.digest,
        'code': run.meta['code'],
    }
    work.add_session(provenance.session(digests, run.config.train.seed))


def _log_class_weights(run: Run) -> None:
    """Logs the class weights, and warns where an imbalance is corrected twice."""
    config = run.config
    if weights := losses.describe_weights(run.runner.loss, run.splits.train.class_names):
        logging.info('%s', weights)
    balanced = config.train.balanced_sampling
    if overlap := losses.describe_overlap(config.loss, balanced_sampling=balanced):
        logging.warning('WARNING: %s', overlap)

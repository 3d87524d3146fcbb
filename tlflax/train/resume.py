"""Where a training goes on: before its first step, at a saved state, or at the next phase."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from absl import logging

from tlflax.config.parse import to_dict
from tlflax.models.base.modules import Variables
from tlflax.train import setup, steps
from tlflax.train.early_stopping import stopping_rule
from tlflax.train.optim import moments, phases
from tlflax.train.position import Position
from tlflax.train.setup import Inputs, Run
from tlflax.utils.errors import UserError
from tlflax.utils.files import JsonObject
from tlflax.utils.parallel import processes
from tlflax.utils.trees import Tree
from tlflax.workdir import recovery
from tlflax.workdir.checkpoints import Checkpoints
from tlflax.workdir.files import Workdir


@dataclasses.dataclass(frozen=True)
class Stage:
    """A training within a phase.

    Attributes:
        run: The phase.
        state: On the mesh; see `Runner.place`.
        position: The position of `state`.
        spent: Seconds that earlier processes spent on the training.
    """

    run: Run
    state: steps.TrainState
    position: Position
    spent: float = 0.0


def start(checkpoints: Checkpoints, first: Run, inputs: Inputs, work: Workdir) -> Stage:
    """Returns where a training goes on: at the last saved state, or before its first step.

    Args:
        checkpoints: Those of the run.
        first: The first phase.
        inputs: Images and weights.
        work: The workdir.

    Raises:
        UserError: No saved state is sound, or the run is not the one that was started here.
    """

    @functools.cache
    def empty_state(phase: int) -> steps.TrainState:
        return of_phase(phase, first, inputs).first_state()

    def like(meta: JsonObject) -> tuple[Variables, optax.OptState, Tree]:
        empty = empty_state(_position(meta).phase)
        return empty.variables, empty.opt_state, empty.ema

    saved = recovery.newest(checkpoints, like, continues=first.num_phases > 1)
    if saved is None:
        return Stage(first, _placed(first.first_state(), first), Position())
    _check_unchanged(saved.meta, first, work)
    position = _position(saved.meta)
    run, _ = at(checkpoints, saved.step, first, inputs)
    (params, model_state), step = saved.trained, jnp.int32(saved.step)
    state = steps.TrainState(step, params, saved.opt_state, model_state, saved.ema)
    stage = Stage(run, _placed(state, run), position, saved.meta['wall_seconds'])
    return next_phase(checkpoints, stage, inputs) or stage


def next_phase(checkpoints: Checkpoints, stage: Stage, inputs: Inputs) -> Stage | None:
    """Returns the start of the next phase; None where this one goes on, or is the last.

    It begins with the checkpoint that counts so far, and with its moments of the parameters that
    stay trainable.
    """
    run, position = stage.run, stage.position
    if run.phase + 1 == run.num_phases or not position.ended(run.config.train.epochs):
        return None
    position = position.next_phase(stopping_rule(run.config.early_stopping))
    step = checkpoints.find(run.config.early_stopping.counts)
    before, trained = at(checkpoints, step, run, inputs)
    after = setup.build(
        run.asked,
        inputs,
        phase=run.phase + 1,
        began=position.began,
        start=jax.device_get(before.runner.fetch(before.runner.frozen)).merge(trained),
    )
    state = after.first_state()._replace(step=jnp.int32(position.epoch * run.steps_per_epoch))
    if before.config.optim.name == after.config.optim.name:
        empty = before.first_state()
        _, old, _ = checkpoints.state(step, trained, empty.opt_state, empty.ema)
        carried = moments.carry(old, state.opt_state, after.learner.labels)
        state = state._replace(opt_state=carried)
    logging.info('phase %d of %d begins with step %d', after.phase + 1, run.num_phases, step)
    return Stage(after, _placed(state, after), position, stage.spent)


def at(checkpoints: Checkpoints, step: int, run: Run, inputs: Inputs) -> tuple[Run, Variables]:
    """Returns the phase of a saved step, and what is used of what it trains, as host arrays.

    Args:
        checkpoints: Those of the run.
        step: A saved step.
        run: A phase of the training.
        inputs: Images and weights.
    """
    position = _position(checkpoints.meta(step))
    if position.phase == run.phase:
        return run, checkpoints.evaluated(step, run.learner.trainable)
    like = of_phase(position.phase, run, inputs)
    trained = checkpoints.evaluated(step, like.learner.trainable)
    kept = phases.updated(checkpoints.frozen(step, like.saved_frozen), trained)
    whole = phases.updated(setup.first_variables(run.asked, inputs), kept)
    found = setup.build(run.asked, inputs, phase=position.phase, began=position.began, start=whole)
    return found, trained


def of_phase(phase: int, run: Run, inputs: Inputs) -> Run:
    """Returns a phase whose shapes are right, and whose values are those before training."""
    return run if phase == run.phase else setup.build(run.asked, inputs, phase=phase)


def _position(meta: JsonObject) -> Position:
    return Position.from_json(meta['position'])


def _placed(state: steps.TrainState, run: Run) -> steps.TrainState:
    return run.runner.place(processes.of_primary(state))  # others may round differently


def _check_unchanged(meta: JsonObject, run: Run, work: Workdir) -> None:
    """Checks that configuration, images, weights and code are those a run started with."""
    started = (
        (meta['data_digest'], run.meta['data_digest'], 'images'),
        (meta['weights_digest'], run.meta['weights_digest'], 'weights'),
        (meta.get('code', {}), run.meta['code'], 'Python files of the model'),
    )
    for then, now, thing in started:
        if then != now:
            raise UserError(
                f'the {thing} are no longer those this run started with',
                where=str(work.path),
                fix=f'put the {thing} back, or start a new run with another --workdir',
            )
    # Last: the number of images may have decided about the batch size.
    work.check_same(to_dict(run.whole), meta['config'])

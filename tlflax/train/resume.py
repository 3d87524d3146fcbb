"""Where a training starts: at its first parameters, or at the last state that was saved."""

import jax
import jax.numpy as jnp
import numpy as np

from tlflax.config.parse import to_dict
from tlflax.train import steps
from tlflax.train.position import Position
from tlflax.train.setup import Run
from tlflax.utils.errors import UserError
from tlflax.utils.files import JsonObject
from tlflax.utils.sharding import replicate
from tlflax.workdir import recovery
from tlflax.workdir.checkpoints import Checkpoints
from tlflax.workdir.files import Workdir


def start(
    checkpoints: Checkpoints, run: Run, work: Workdir
) -> tuple[steps.TrainState, Position, float]:
    """Returns the last saved state or the first one, its position and the seconds spent before.

    Raises:
        UserError: No saved state is sound, or the run is not the one that was started here.
    """
    learner = run.learner
    first = steps.init_state(learner.trainable, learner.tx, learner.average)
    # A copy, for training donates it, and the run may start once more; NumPy's needs no program.
    state = jax.tree.map(np.array, first)
    saved = recovery.newest(checkpoints, state.variables, state.opt_state, state.ema)
    position, spent = Position(), 0.0
    if saved is not None:
        _check_unchanged(saved.meta, run, work)
        (params, model_state), step = saved.trained, jnp.int32(saved.step)
        state = steps.TrainState(step, params, saved.opt_state, model_state, saved.ema)
        position = Position.from_json(saved.meta['position'])
        spent = saved.meta['wall_seconds']
    return replicate(state, run.runner.mesh), position, spent


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
    work.check_same(to_dict(run.config), meta['config'])

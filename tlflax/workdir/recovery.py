"""Where a training goes on: at the newest state that leads to the end of an undamaged run."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import optax
from absl import logging

from tlflax.models.base.modules import Variables
from tlflax.utils.errors import UserError
from tlflax.utils.files import JsonObject
from tlflax.utils.trees import Tree
from tlflax.workdir.checkpoints import Checkpoints

Like = Callable[[JsonObject], tuple[Variables, optax.OptState, Tree]]
"""The metadata of a step to the shapes of what `Checkpoints.state` returns."""

_ASIDE = 'damaged'  # beside the checkpoints: those that could not be read


class Saved(NamedTuple):
    """A state from which a training continues.

    Attributes:
        step: Completed optimizer steps.
        meta: The metadata saved with it.
        trained: What training has changed, as host arrays.
        opt_state: The optimizer's state, as host arrays.
        ema: The moving average of the trained parameters, as host arrays; {}: there is none.
    """

    step: int
    meta: JsonObject
    trained: Variables
    opt_state: optax.OptState
    ema: Tree


def newest(checkpoints: Checkpoints, like: Like, *, continues: bool = False) -> Saved | None:
    """Returns the newest state that is not damaged, nor is the best state before it.

    Newer ones, and others that are damaged, are named in the log and moved to a folder `damaged`
    beside the checkpoints.

    Args:
        checkpoints: Those of the run.
        like: See `Like`.
        continues: Whether the best state may be trained further, and has to be whole for that.

    Returns:
        None if nothing is saved yet.

    Raises:
        UserError: There is no such state.
    """
    steps = checkpoints.steps()
    for at in reversed(range(len(steps))):
        try:
            found = _sound(checkpoints, steps[: at + 1], like, continues)
        except UserError as error:
            _warn(error)
        else:
            damaged = [step for step in steps[:at] if _is_damaged(checkpoints, step)]
            if aside := [*damaged, *steps[at + 1 :]]:
                folder = checkpoints.folder.parent / _ASIDE
                checkpoints.set_aside(aside, folder)
                names = ', '.join(map(str, aside))
                logging.warning('WARNING: %s: now holds what was step %s', folder, names)
            return found
    if steps:
        raise UserError(
            'no state is left from which this run can continue',
            where=str(checkpoints.folder),
            fix='put back a copy of it, or start a new run with another --workdir',
        )
    return None


def _sound(checkpoints: Checkpoints, steps: Sequence[int], like: Like, continues: bool) -> Saved:
    """Returns the last of some steps; checks it, and the best of them."""
    step = steps[-1]
    meta = checkpoints.meta(step)
    state = checkpoints.state(step, *like(meta))
    best = checkpoints.best_of(steps)
    if best is not None and best != step:
        trained, opt_state, ema = like(checkpoints.meta(best))
        if continues:
            checkpoints.state(best, trained, opt_state, ema)
        else:
            checkpoints.evaluated(best, trained)
    return Saved(step, meta, *state)


def _is_damaged(checkpoints: Checkpoints, step: int) -> bool:
    try:
        checkpoints.meta(step)
    except UserError as error:
        _warn(error)
        return True
    return False


def _warn(error: UserError) -> None:
    logging.warning('WARNING: %s: %s', error.where, error.what)

"""Learning-rate schedules over optimizer updates."""

from collections.abc import Mapping

import optax
from jax import Array

from tlflax.config.schema import OptimConfig
from tlflax.utils.errors import UserError

Number = float | Array
"""A number of the configuration; may be traced."""

PLATEAU = 'plateau'
"""The schedule that depends on the training loss, so that a part of it is optimizer state."""


def build_schedules(
    config: OptimConfig, peaks: Mapping[str, Number], *, steps_per_epoch: int, epochs: int
) -> dict[str, optax.Schedule]:
    """Returns the learning-rate schedule of each label from its peak, which may be traced.

    Args:
        config: The section `optim`.
        peaks: The peak learning rate of each label.
        steps_per_epoch: Batches in an epoch; several of them may make one update.
        epochs: Most epochs.

    Raises:
        UserError: The schedule has a warm-up of its own, and another is asked for.
    """
    if config.schedule == 'onecycle' and config.warmup_epochs:
        raise UserError(
            "schedule='onecycle' has a warm-up of its own",
            where='config.optim.warmup_epochs',
            fix="set it to 0, or use schedule='cosine'",
        )
    each = config.accumulate_steps
    return {
        label: schedule(
            peak,
            kind=config.schedule,
            warmup_steps=round(config.warmup_epochs * steps_per_epoch / each),
            total_steps=epochs * steps_per_epoch // each,
        )
        for label, peak in peaks.items()
    }


def schedule(peak: Number, *, kind: str, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Returns a learning-rate schedule over optimizer updates.

    Args:
        peak: The largest learning rate; may be traced.
        kind: 'constant'; 'cosine' for a decay to zero at `total_steps` (Loshchilov & Hutter 2017,
            arXiv:1608.03983); 'linear' for a linear one; 'onecycle' for a rise from a 25th of the
            peak in the first 30 % and a fall to nothing (Smith & Topin 2018, arXiv:1708.07120);
            'plateau' as 'constant', for `optax.contrib.reduce_on_plateau` does the rest.
        warmup_steps: Updates of linear rise from zero; 0 for 'onecycle'.
        total_steps: Length of the whole training.
    """
    steps = max(total_steps, warmup_steps + 1)
    if kind == 'cosine':
        first = 0.0 if warmup_steps else 1.0
        unit = optax.warmup_cosine_decay_schedule(first, 1.0, warmup_steps, steps)
    elif kind == 'linear':
        fall = optax.linear_schedule(1.0, 0.0, steps - warmup_steps)
        rise = optax.linear_schedule(0.0, 1.0, warmup_steps) if warmup_steps else fall
        unit = optax.join_schedules([rise, fall], [warmup_steps]) if warmup_steps else fall
    elif kind == 'onecycle':
        unit = optax.cosine_onecycle_schedule(steps, 1.0)
    elif warmup_steps:
        return optax.linear_schedule(0.0, peak, warmup_steps)
    else:
        return optax.constant_schedule(peak)
    return lambda step: peak * unit(step)

"""Learning-rate schedules over optimizer steps."""

from collections.abc import Mapping

import optax
from jax import Array

from tlflax.config.schema import OptimConfig

Number = float | Array
"""A number of the configuration; may be traced."""


def build_schedules(
    config: OptimConfig, peaks: Mapping[str, Number], *, steps_per_epoch: int, epochs: int
) -> dict[str, optax.Schedule]:
    """Returns the learning-rate schedule of each label from its peak, which may be traced."""
    return {
        label: schedule(
            peak,
            kind=config.schedule,
            warmup_steps=round(config.warmup_epochs * steps_per_epoch),
            total_steps=epochs * steps_per_epoch,
        )
        for label, peak in peaks.items()
    }


def schedule(peak: Number, *, kind: str, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Returns a learning-rate schedule over optimizer steps.

    Args:
        peak: The learning rate after warm-up; may be traced.
        kind: 'constant', or 'cosine' for a decay to zero at `total_steps` (Loshchilov & Hutter
            2017, arXiv:1608.03983).
        warmup_steps: Steps of linear rise from zero.
        total_steps: Length of the whole training.
    """
    if kind == 'cosine':
        steps = max(total_steps, warmup_steps + 1)
        first = 0.0 if warmup_steps else 1.0
        unit = optax.warmup_cosine_decay_schedule(first, 1.0, warmup_steps, steps)
        return lambda step: peak * unit(step)
    if warmup_steps:
        return optax.linear_schedule(0.0, peak, warmup_steps)
    return optax.constant_schedule(peak)

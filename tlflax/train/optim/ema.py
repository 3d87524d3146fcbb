"""The exponential moving average of the trained parameters."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from tlflax.models.classifier import Params


class Average(NamedTuple):
    """An exponential moving average, as `torch.optim.swa_utils.get_ema_multi_avg_fn` has it.

    Attributes:
        decay: The weight of the average so far (Polyak & Juditsky 1992; Tarvainen & Valpola 2017,
            arXiv:1703.01780).
        every: Steps from one update of the optimizer to the next.
        since: Completed steps before it begins: those of earlier phases.
    """

    decay: float
    every: int = 1
    since: int = 0

    def updated(self, ema: Params, params: Params, step: Int[Array, '']) -> Params:
        """Returns the average after a step.

        It starts as the parameters after the first update, and stays as it is where a step only
        adds to the gradient of the next update.

        Args:
            ema: The average before.
            params: The parameters after the step.
            step: The number of completed steps, with this one.
        """
        own = step - self.since
        first, ended = own == self.every, own % self.every == 0

        def one(old: Array, new: Array) -> Array:
            mean = self.decay * old + (1 - self.decay) * new
            return jnp.where(first, new, jnp.where(ended, mean, old))

        return jax.tree.map(one, ema, params)

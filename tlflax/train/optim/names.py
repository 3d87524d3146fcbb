"""The optimizers by name: those of optax that need nothing but gradients and a learning rate.

Left out are those for other problems (`lbfgs` and `rprop` want the gradient of all examples, the
optimistic ones are for games, `noisy_sgd` for theory) and `adafactor`, whose weight decay is not
scaled by the learning rate.
"""

from collections.abc import Callable
from typing import NamedTuple

import optax

from tlflax.train.optim import decay
from tlflax.train.optim.schedules import Number


class Kind(NamedTuple):
    """An optimizer of optax.

    Attributes:
        make: Its function.
        mask: The argument that says which parameters are decayed; '': it has no weight decay, or
            none that could spare some.
        momentum: Whether it takes a momentum.
    """

    make: Callable[..., optax.GradientTransformation]
    mask: str = ''
    momentum: bool = False


def _adamw(
    learning_rate: optax.ScalarOrSchedule, *, weight_decay: Number, mask: decay.Mask
) -> optax.GradientTransformation:
    """Returns `optax.adamw`, in whose state no mask leaves a trace."""
    return optax.chain(
        optax.scale_by_adam(),
        decay.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def _sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: Number,
    mask: decay.Mask,
    momentum: float,
) -> tuple[optax.GradientTransformation, ...]:
    return (
        decay.add_decayed_weights(weight_decay, mask),
        optax.sgd(learning_rate, momentum=momentum),
    )


KINDS = {
    'adabelief': Kind(optax.adabelief),
    'adadelta': Kind(optax.adadelta, 'weight_decay_mask'),
    'adagrad': Kind(optax.adagrad),
    'adam': Kind(optax.adam),
    'adamax': Kind(optax.adamax),
    'adamaxw': Kind(optax.adamaxw, 'mask'),
    'adamw': Kind(_adamw, 'mask'),
    'adan': Kind(optax.adan, 'mask'),
    'amsgrad': Kind(optax.amsgrad),
    'lamb': Kind(optax.lamb, 'mask'),
    'lars': Kind(optax.lars, 'weight_decay_mask', momentum=True),
    'lion': Kind(optax.lion, 'mask'),
    'nadam': Kind(optax.nadam),
    'nadamw': Kind(optax.nadamw, 'mask'),
    'novograd': Kind(optax.novograd),
    'radam': Kind(optax.radam),
    'rmsprop': Kind(optax.rmsprop, momentum=True),
    'sgd': Kind(_sgd, 'mask', momentum=True),
    'yogi': Kind(optax.yogi),
}
"""The optimizers; `tlflax.config.schema.OPTIMIZERS` are their names."""


def decaying(name: str) -> str:
    """Returns an optimizer with weight decay, that of the same name if there is one."""
    near = [other for other in (f'{name}w', f'{name[:-1]}w') if other in KINDS]
    return near[0] if near else 'adamw'


def make(
    name: str,
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: Number,
    mask: decay.Mask,
    momentum: float,
) -> tuple[optax.GradientTransformation, ...]:
    """Returns the steps of an optimizer.

    Args:
        name: A key of `KINDS`.
        learning_rate: May be traced.
        weight_decay: May be traced; unused by an optimizer without.
        mask: Which parameters are decayed.
        momentum: Unused by an optimizer without.
    """
    kind = KINDS[name]
    options: dict[str, object] = {'momentum': momentum} if kind.momentum else {}
    if kind.mask:
        options |= {'weight_decay': weight_decay, kind.mask: mask}
    made = kind.make(learning_rate, **options)
    return made if name == 'sgd' else (made,)

"""A head of several linear branches, each on a representation of the features.

Its name says all of its structure: `ensemble:` and the branches, separated by `|`; of each branch
the parts, separated by `,`; of each part the columns, the normalization and perhaps a weight.
`ensemble:0:512 row|0:512 power*0.5,512:900 raw` has two branches.
"""

import re
from collections.abc import Callable, Sequence
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from tlflax.models.linear import representations
from tlflax.models.linear.representations import Normalization, Part, Representation
from tlflax.utils.errors import UserError

PREFIX = 'ensemble:'
_PART = re.compile(r'(\d+):(\d+) (raw|row|power)(?:\*([\d.e-]+))?')


def name_of(branches: Sequence[Representation]) -> str:
    """Returns the name of the head with these branches."""

    def text(part: Part) -> str:
        factor = '' if part.weight == 1 else f'*{part.weight!r}'
        return f'{part.start}:{part.stop} {part.normalization}{factor}'

    return PREFIX + '|'.join(','.join(map(text, branch)) for branch in branches)


def parse(name: str) -> tuple[Representation, ...]:
    """Returns the branches of a head by its name.

    Raises:
        UserError: It is not such a name.
    """
    branches = []
    for text in name.removeprefix(PREFIX).split('|'):
        found = [_PART.fullmatch(part) for part in text.split(',')]
        if not all(found):
            raise UserError(
                f'{text!r} is not a branch of an ensemble',
                where='config.model.head',
                fix="write it as in 'ensemble:0:512 row|0:512 power*0.5,512:900 raw'",
            )
        branches.append(tuple(_part(match) for match in found if match))
    return tuple(branches)


def _part(match: 're.Match[str]') -> Part:
    start, stop, normalization, weight = match.groups()
    return Part(int(start), int(stop), cast(Normalization, normalization), float(weight or 1))


def head(name: str) -> Callable[..., nnx.Module]:
    """Returns what builds the head of a name; see `tlflax.models.heads.builder`."""
    branches = parse(name)

    def build(
        shape: tuple[int, ...], num_classes: int, *, units: int, dropout: float, rngs: nnx.Rngs
    ) -> nnx.Module:
        del units, dropout
        widest = max(part.stop for branch in branches for part in branch)
        if len(shape) != 1 or widest > shape[0]:
            raise UserError(
                f'the branches read {widest} columns, and the features have the shape {shape}',
                where='config.model.head',
                fix='use the features.layers that it was made for',
            )
        return EnsembleHead(branches, num_classes, rngs=rngs)

    return build


class EnsembleHead(nnx.Module):
    """The logarithm of the weighted mean of the branches' probabilities, which serves as logits.

    Args:
        branches: The representation that each branch takes.
        num_classes: Number of logits.
        rngs: Not used: all parameters are zero at first.
    """

    def __init__(
        self, branches: Sequence[Representation], num_classes: int, *, rngs: nnx.Rngs
    ) -> None:
        self.branches = tuple(branches)
        zeros = nnx.initializers.zeros_init()
        for number, branch in enumerate(self.branches):
            width = sum(part.stop - part.start for part in branch)
            layer = nnx.Linear(width, num_classes, kernel_init=zeros, rngs=rngs)
            setattr(self, branch_name(number), layer)
        self.log_weight = nnx.Param(jnp.zeros(len(self.branches)))

    def __call__(self, x: Float[Array, 'b d']) -> Float[Array, 'b num_classes']:
        logits = [
            jax.nn.log_softmax(getattr(self, branch_name(number))(representations.apply(branch, x)))
            for number, branch in enumerate(self.branches)
        ]
        weight = self.log_weight[...][:, None, None]
        return jax.nn.logsumexp(jnp.stack(logits) + weight, axis=0)


def branch_name(number: int) -> str:
    """Returns the name of a branch's parameters."""
    return f'branch{number}'

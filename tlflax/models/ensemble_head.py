"""A head of several branches, each a model of its own on a representation of the features.

Its name says all of its structure: `ensemble:` and the branches, separated by `|`. A branch is the
parts of its representation, separated by `,`; of each part the columns, the normalization and
perhaps a weight. A branch that is not linear begins with the model: `knn:VOTES:IMAGES` for nearest
neighbors, or `HEAD:UNITS:SHAPE` for one of `tlflax.models.standard_heads`.
`ensemble:0:512 row|knn:10:300 0:512 row|conv:64:7x7x512 512:25600 raw*0.1` has three branches.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from tlflax.models.linear import neighbors, representations
from tlflax.models.linear.representations import Normalization, Part, Representation
from tlflax.models.standard_heads import HEADS
from tlflax.utils.errors import UserError

PREFIX = 'ensemble:'
_PART = re.compile(r'(\d+):(\d+) (raw|row|power)(?:\*([\d.e-]+))?')
_MODEL = re.compile(rf'(knn):(\d+):(\d+) |({"|".join(HEADS)}):(\d+):(\d+(?:x\d+)*) ')


@dataclasses.dataclass(frozen=True)
class Branch:
    """The structure of a branch.

    Attributes:
        representation: What it takes.
        model: 'knn', a key of `HEADS`, or '' for a linear layer.
        units: Of a head: its width; of 'knn': how many neighbors vote.
        shape: Of a head: the features for one image; of 'knn': (the number of stored images,).
    """

    representation: Representation
    model: str = ''
    units: int = 0
    shape: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """What the head's name has for it."""
        shape = 'x'.join(map(str, self.shape))
        model = f'{self.model}:{self.units}:{shape} ' if self.model else ''
        return model + ','.join(map(_part_name, self.representation))

    @property
    def columns(self) -> int:
        """The length of a row."""
        return sum(part.stop - part.start for part in self.representation)

    def build(self, num_classes: int, rngs: nnx.Rngs) -> nnx.Module:
        """Returns the module that maps rows to scores; its parameters are zero or random."""
        if not self.model:
            zeros = nnx.initializers.zeros_init()
            return nnx.Linear(self.columns, num_classes, kernel_init=zeros, rngs=rngs)
        if self.model == 'knn':
            return NeighborsHead(self.shape[0], self.columns, num_classes, self.units)
        return CalibratedHead(self, num_classes, rngs=rngs)


def _part_name(part: Part) -> str:
    factor = '' if part.weight == 1 else f'*{part.weight!r}'
    return f'{part.start}:{part.stop} {part.normalization}{factor}'


def name_of(branches: Sequence[Branch]) -> str:
    """Returns the name of the head with these branches."""
    return PREFIX + '|'.join(branch.name for branch in branches)


def parse(name: str) -> tuple[Branch, ...]:
    """Returns the branches of a head by its name.

    Raises:
        UserError: It is not such a name.
    """
    branches = []
    for text in name.removeprefix(PREFIX).split('|'):
        model = _MODEL.match(text)
        parts = text[model.end() if model else 0 :].split(',')
        found = [_PART.fullmatch(part) for part in parts]
        if not all(found):
            raise UserError(
                f'{text!r} is not a branch of an ensemble',
                where='config.model.head',
                fix="write it as in 'ensemble:0:512 row|0:512 power*0.5,512:900 raw'",
            )
        kind, units, shape = [group for group in model.groups() if group] if model else ('', 0, '')
        sizes = tuple(int(size) for size in shape.split('x') if size)
        representation = tuple(_part(match) for match in found if match)
        branches.append(Branch(representation, kind, int(units), sizes))
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
        widest = max(part.stop for branch in branches for part in branch.representation)
        if widest > math.prod(shape):
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
        branches: Their structure.
        num_classes: Number of logits.
        rngs: For the branches that begin with random parameters.
    """

    def __init__(self, branches: Sequence[Branch], num_classes: int, *, rngs: nnx.Rngs) -> None:
        self.branches = tuple(branches)
        for number, branch in enumerate(self.branches):
            setattr(self, branch_name(number), branch.build(num_classes, rngs))
        self.log_weight = nnx.Param(jnp.zeros(len(self.branches)))

    def __call__(self, x: Float[Array, 'b ...']) -> Float[Array, 'b num_classes']:
        x = x.reshape(x.shape[0], -1)
        logits = []
        for number, branch in enumerate(self.branches):
            rows = representations.apply(branch.representation, x)
            logits.append(jax.nn.log_softmax(getattr(self, branch_name(number))(rows)))
        weight = self.log_weight[...][:, None, None]
        return jax.nn.logsumexp(jnp.stack(logits) + weight, axis=0)


class NeighborsHead(nnx.Module):
    """Log-probabilities from the votes of the most similar stored rows, times a factor.

    Args:
        images: Number of stored rows.
        columns: Their length.
        num_classes: Number of classes.
        votes: How many rows vote.
    """

    def __init__(self, images: int, columns: int, num_classes: int, votes: int) -> None:
        self.votes = votes
        self.rows = nnx.Param(jnp.zeros((images, columns)))
        self.targets = nnx.Param(jnp.zeros((images, num_classes)))
        self.factor = nnx.Param(jnp.ones(()))

    def __call__(self, x: Float[Array, 'b d']) -> Float[Array, 'b num_classes']:
        scores = neighbors.vote(x, self.rows[...], self.targets[...], self.votes)
        return self.factor[...] * scores


class CalibratedHead(nnx.Module):
    """One of `HEADS` on rows in the shape of a feature map; its logits times a factor.

    Args:
        branch: The head's name, its units and the shape.
        num_classes: Number of logits.
        rngs: For the first parameters.
    """

    def __init__(self, branch: Branch, num_classes: int, *, rngs: nnx.Rngs) -> None:
        if math.prod(branch.shape) != branch.columns:
            raise UserError(
                f'{branch.columns} columns do not have the shape {branch.shape}',
                where='config.model.head',
                fix='let the sizes of the shape multiply to the number of columns',
            )
        self.shape = branch.shape
        make = HEADS[branch.model]
        self.head = make(branch.shape, num_classes, units=branch.units, dropout=0.0, rngs=rngs)
        self.factor = nnx.Param(jnp.ones(()))

    def __call__(self, x: Float[Array, 'b d']) -> Float[Array, 'b num_classes']:
        return self.factor[...] * self.head(x.reshape(-1, *self.shape))


def branch_name(number: int) -> str:
    """Returns the name of a branch's parameters."""
    return f'branch{number}'

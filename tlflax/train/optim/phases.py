"""What each phase of a training trains: parts of the variables, by the labels of every phase.

Linear probing before fine-tuning is two phases (Kumar et al. 2022, arXiv:2202.10054), gradual
unfreezing one for each block (Howard & Ruder 2018, arXiv:1801.06146).
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from tlflax.config.schema import OptimConfig
from tlflax.models.base.backbone import IMAGE, Backbone
from tlflax.models.base.modules import Variables
from tlflax.train.optim.learner import partition_variables
from tlflax.utils import trees
from tlflax.utils.labels import label_tree
from tlflax.utils.trees import flatten, unflatten


class Parts(NamedTuple):
    """The variables of a model in one phase.

    Attributes:
        trainable: What the phase trains.
        frozen: The others.
        changed: Those of `frozen` that an earlier phase has trained.
    """

    trainable: Variables
    frozen: Variables
    changed: Variables


def parts(optims: Sequence[OptimConfig], variables: Variables, phase: int) -> Parts:
    """Divides variables, or their shapes, by the labels of the phases.

    Args:
        optims: The optimizer's configuration in each phase.
        variables: All variables of the model.
        phase: The number of the phase, from 0.
    """
    split = [_split(optim, variables) for optim in optims[: phase + 1]]
    trainable, frozen = split[phase]
    before = [{*flatten(earlier)} for earlier, _ in split[:phase]]
    changed = _at(frozen, set().union(*before))
    return Parts(trainable, frozen, changed)


def born(optims: Sequence[OptimConfig], variables: Variables, phase: int) -> dict[str, int]:
    """Returns, for each parameter that a phase trains, since which phase it has been trained."""
    trained = [{*flatten(_split(o, variables)[0].params)} for o in optims[: phase + 1]]

    def first(path: str) -> int:
        since = phase
        while since and path in trained[since - 1]:
            since -= 1
        return since

    return {path: first(path) for path in trained[phase]}


def updated(variables: Variables, new: Variables) -> Variables:
    """Returns variables with those values that `new` has."""
    pairs = zip(variables, new, strict=True)
    return Variables(*(unflatten(flatten(old) | flatten(own)) for old, own in pairs))


def without(variables: Variables, other: Variables) -> Variables:
    """Returns the variables that are not in `other`."""
    return _at(variables, {*flatten(variables)} - {*flatten(other)})


def only(variables: Variables, other: Variables) -> Variables:
    """Returns the variables that are in `other` too."""
    return _at(variables, {*flatten(other)})


def saved(frozen: Variables, changed: Variables, *, include_backbone: bool) -> Variables:
    """Returns the frozen variables that a checkpoint has to hold.

    The digest of the weights names the pretrained backbone; a frozen part of the head has none.
    """
    return frozen if include_backbone else updated(frozen.without('backbone'), changed)


def features_digest(weights: str, changed: Variables, backbone: Backbone, cut: str) -> str:
    """Returns the digest of the weights that decide about the features at a cut.

    Args:
        weights: The digest of the pretrained backbone.
        changed: What earlier phases have trained and this one does not.
        backbone: The backbone.
        cut: The layer whose outputs are the features, or `IMAGE`.
    """
    below = backbone.between(IMAGE, cut)
    own = [
        {name: tree[name] for name in below if name in tree} for tree in changed.branch('backbone')
    ]
    if not any(own):
        return weights
    return hashlib.sha256(f'{weights} {trees.fingerprint(own)}'.encode()).hexdigest()


def _split(optim: OptimConfig, variables: Variables) -> tuple[Variables, Variables]:
    labels = label_tree(variables.params, optim.labels)
    return partition_variables(variables, labels, statistics=optim.statistics)


def _at(variables: Variables, paths: set[str]) -> Variables:
    """Returns the variables at some paths, each of which begins with 'params/' or 'state/'."""
    tree = unflatten({p: leaf for p, leaf in flatten(variables).items() if p in paths})
    return Variables(tree.get('params', {}), tree.get('state', {}))

"""Restores a trained classifier from the checkpoints of its run."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp

from tlflax.config.parse import resolve
from tlflax.config.schema import Config
from tlflax.inference.trained import Trained
from tlflax.models.classifier import Params
from tlflax.models.vgg import network
from tlflax.train import setup
from tlflax.utils import trees
from tlflax.utils.errors import UserError
from tlflax.utils.labels import label_tree, partition
from tlflax.utils.sharding import default_mesh, replicate
from tlflax.workdir.checkpoints import Checkpoints


def load(workdir: str | Path, step: str = 'best') -> Trained:
    """Restores a trained classifier on the devices of this machine.

    Args:
        workdir: The folder of a run.
        step: 'best', 'last' or the number of a saved step.

    Raises:
        UserError: The checkpoint or its pretrained weights do not exist.
    """
    with Checkpoints(_checkpoint_folder(Path(workdir)), read_only=True) as saved:
        number = saved.find(step)
        meta = saved.meta(number)
        config, class_names = resolve(meta['config']), tuple(meta['classes'])
        trainable_like, frozen_like = _abstract(config, len(class_names))
        trainable = saved.params(number, trainable_like)
        copied = dict(frozen_like)
        if not config.checkpoint.include_backbone:
            copied.pop('backbone', None)
        frozen = saved.frozen(number, copied) or {}
    if 'backbone' in frozen_like and 'backbone' not in frozen:
        frozen['backbone'] = _load_frozen(config, meta['weights_digest'], frozen_like['backbone'])
    backbone = trees.merge(trainable, frozen)['backbone']
    classifier = setup.build_classifier(config, backbone, len(class_names), meta['preprocess'])
    mesh = default_mesh()
    return Trained(
        config=config,
        class_names=class_names,
        step=number,
        weights_digest=meta['weights_digest'],
        classifier=classifier,
        trainable=replicate(trainable, mesh),
        frozen=replicate(frozen, mesh),
        mesh=mesh,
    )


def _checkpoint_folder(workdir: Path) -> Path:
    if (workdir / '_CHECKPOINT_METADATA').exists():
        raise UserError(
            'this is one checkpoint, not a workdir',
            where=str(workdir),
            fix='give the folder two levels up',
        )
    return workdir / 'checkpoints'


def _abstract(config: Config, num_classes: int) -> tuple[Params, Params]:
    """Returns the shapes of trainable and frozen parameters, from the configuration."""
    flat = network.shapes(top=config.features.layer in network.TOP)
    backbone = trees.unflatten(
        {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in flat.items()}
    )
    head = jax.eval_shape(functools.partial(setup.init_head, config, backbone, num_classes))
    params = {'backbone': backbone, 'head': head}
    return partition(params, label_tree(params, config.optim.labels))


def _load_frozen(config: Config, digest: str, like: Params) -> Params:
    """Loads the frozen backbone and checks that its digest is that of the run."""
    pretrained = setup.load_backbone(config)
    if pretrained.digest != digest:
        raise UserError(
            f'these weights ({pretrained.digest[:16]}) are not those of the run ({digest[:16]})',
            where=f'config.weights.source={config.weights.source!r}',
            fix='put the original file back',
        )
    flat = trees.flatten(pretrained.params)
    return trees.unflatten({path: flat[path] for path in trees.flatten(like)})

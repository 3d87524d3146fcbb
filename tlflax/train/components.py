"""The parts of a model that a configuration names: weights, network, head, feature sources."""

import contextlib
from collections.abc import Iterator

import jax
from absl import logging
from jax.sharding import Mesh

from tlflax.config.schema import Config
from tlflax.data.images.format import ImageFormat
from tlflax.features.select import SourceSelector
from tlflax.models import classifier as classifiers
from tlflax.models import heads, pretrained
from tlflax.models.backbones import BACKBONES, find
from tlflax.models.base import taps
from tlflax.models.base.modules import Variables
from tlflax.models.classifier import Classifier, Params
from tlflax.models.pretrained import Pretrained
from tlflax.utils import python_file, trees
from tlflax.utils.assets import fetch
from tlflax.utils.errors import UserError, located
from tlflax.utils.files import expand
from tlflax.utils.parallel import parts
from tlflax.utils.parallel.placement import FROM, ClassShards

_read: dict[tuple[object, ...], Pretrained] | None = None


@contextlib.contextmanager
def backbones_kept() -> Iterator[None]:
    """Lets `load_backbone` read each backbone once within the context.

    So what is trained and then shown has the same weights, whatever becomes of the file meanwhile.
    """
    global _read
    before, _read = _read, {} if _read is None else _read
    try:
        yield
    finally:
        _read = before


def load_backbone(config: Config) -> Pretrained:
    """Returns the pretrained backbone that `config.model.backbone` and `weights.source` name.

    Raises:
        UserError: The file is missing, damaged or of another network; or no download worked.
    """
    if _read is None:
        return _load_backbone(config)
    source, seed = config.weights.source, config.train.seed
    key = (config.model.backbone, config.features.layer, source, source == 'random' and seed)
    if key not in _read:
        _read[key] = _load_backbone(config)
    return _read[key]


def _load_backbone(config: Config) -> Pretrained:
    """Loads a backbone; see `load_backbone`.

    Raises:
        UserError: The file is missing, damaged or of another network; or no download worked.
    """
    backbone, layer = find(config.model.backbone), config.features.layer
    source = config.weights.source
    if source == 'random':
        variables = jax.device_get(backbone.init(jax.random.key(config.train.seed), layer))
        return Pretrained(
            variables=variables,
            preprocess=backbone.preprocess,
            digest=trees.digest(trees.merge(*variables)),
            name='random',
            license='none',
            source=f'seed {config.train.seed}',
        )
    if source != 'imagenet':
        with located('config.weights.source'):
            path = expand(source)
        return pretrained.load(path, backbone, layer=layer)
    if backbone.imagenet is None:
        raise UserError(
            f'{backbone.name} has no ImageNet weights to download',
            where='config.weights.source',
            fix="name a file, or 'random'",
        )
    return pretrained.load(fetch(backbone.imagenet), backbone, layer=layer)


def choose_preprocess(weights: Pretrained, requested: str) -> str:
    """Returns the preprocessing to use, and says so; warns where it does not fit the weights."""
    preprocess, warning = pretrained.resolve_preprocess(weights, requested)
    logging.info('weights: %s from %s, preprocessing %r', weights.name, weights.source, preprocess)
    if warning:
        logging.warning('WARNING: %s', warning)
    return preprocess


def build_classifier(
    config: Config, trainable: Params, num_classes: int, preprocess: str
) -> Classifier:
    """Returns the static half of the model a configuration describes."""
    return classifiers.create(
        find(config.model.backbone),
        trainable,
        image_size=config.data.image_size,
        num_classes=num_classes,
        head=config.model.head,
        units=config.model.units,
        dropout=config.model.dropout,
        preprocess=preprocess,
        layer=config.features.layer,
        dtype=config.model.dtype,
        taps=tapped(config),
    )


def build_sources(
    config: Config,
    weights_digest: str,
    backbone: Variables,
    classifier: Classifier,
    mesh: Mesh,
    *,
    first_epoch: int = 0,
) -> SourceSelector:
    """Returns what chooses the sources of the splits, in training and after it.

    Args:
        config: The configuration, of a phase if there are several.
        weights_digest: The digest of the backbone's variables below the cut.
        backbone: The backbone's variables.
        classifier: The static half of the model.
        mesh: The devices.
        first_epoch: The number of the first epoch that is trained, from 0.
    """
    return SourceSelector(
        image_format=ImageFormat.of(config.data, classifier.backbone.interpolation),
        augment=config.augment,
        features=config.features,
        train_config=config.train,
        weights_digest=weights_digest,
        backbone=backbone,
        classifier=classifier,
        mesh=mesh,
        first_epoch=first_epoch,
    )


def init_head(config: Config, num_classes: int) -> Variables:
    """Returns the head's first variables, decided by `config.train.seed`."""
    backbone = find(config.model.backbone)
    return heads.init(
        config.model.head,
        classifiers.feature_shape(
            backbone, config.data.image_size, config.features.layer, tapped(config)
        ),
        num_classes,
        jax.random.fold_in(jax.random.key(config.train.seed), 1),
        units=config.model.units,
        dropout=config.model.dropout,
    )


def head_shards(config: Config, num_classes: int, mesh: Mesh) -> ClassShards | None:
    """Returns how the head is split over the devices by class; None: each has all of it.

    Raises:
        UserError: `train.shard_head` asks for it, and the head cannot be split.
    """
    asked, leaves = config.train.shard_head, heads.class_leaves(config.model.head)
    if asked == 'True' and not leaves:
        raise UserError(
            f'the head {config.model.head!r} cannot be split by class',
            where='config.train.shard_head',
            fix=f"leave it at 'auto', or use one of the heads {', '.join(heads.HEADS)}",
        )
    if asked == 'False' or not leaves or mesh.size == 1:
        return None
    if asked == 'auto':
        flat = trees.flatten(jax.eval_shape(lambda: init_head(config, num_classes)).params)
        if sum(flat[path].size * flat[path].dtype.itemsize for path in leaves) < FROM:
            return None
    return ClassShards(mesh, num_classes, frozenset(f'head/{path}' for path in leaves))


def adders(config: Config, model: Classifier, trainable: Variables, mesh: Mesh) -> Mesh | None:
    """Returns the devices whose gradients are added up at once; None: XLA does it array by array.

    That needs a model that computes each example by itself, which is known of the built-in ones.
    """
    known = model.cut == model.layer or config.model.backbone in BACKBONES
    alone = known and config.model.head in heads.HEADS and not trainable.state
    on_cpu = mesh.devices.flat[0].platform == 'cpu'  # others do not wait for each array
    return mesh if alone and on_cpu and mesh.size > 1 and parts.draws_by_place() else None


def tapped(config: Config) -> tuple[taps.Tap, ...]:
    """Returns the taps of a configuration; empty where one layer feeds the head."""
    return taps.parse(config.features.layers, find(config.model.backbone).layers)


def joined(**parts: Variables) -> Variables:
    """Returns the variables of a model of these parts; one without state has no branch there."""
    return Variables(
        {name: part.params for name, part in parts.items()},
        {name: part.state for name, part in parts.items() if part.state},
    )


def code_digests(config: Config) -> dict[str, str]:
    """Returns the digest of each Python file that defines a part of the model, by config key."""
    keys = {'model.backbone': config.model.backbone, 'model.head': config.model.head}
    return {
        key: python_file.load(value, where=f'config.{key}').digest
        for key, value in keys.items()
        if python_file.is_spec(value)
    }

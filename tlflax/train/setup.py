"""What a run is made of, before its first step: images, weights, model and optimizer."""

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tlflax.config import automatic, parse
from tlflax.config.parse import to_dict
from tlflax.config.schema import Config
from tlflax.data.audit import checks
from tlflax.data.augment import ranges
from tlflax.data.images.format import ImageFormat
from tlflax.data.splits.load import Splits, load_splits
from tlflax.features.select import SourceSelector
from tlflax.models import classifier as classifiers
from tlflax.models import heads, pretrained
from tlflax.models.backbones import find
from tlflax.models.base import taps
from tlflax.models.base.modules import Variables
from tlflax.models.classifier import Classifier, Params
from tlflax.models.pretrained import Pretrained
from tlflax.train import losses
from tlflax.train.epoch import Runner
from tlflax.train.optim.learner import Learner, build_learner
from tlflax.utils import python_file, trees
from tlflax.utils.assets import fetch
from tlflax.utils.errors import UserError, located
from tlflax.utils.files import JsonObject, expand
from tlflax.utils.sharding import default_mesh, replicate, require_one_process
from tlflax.workdir import provenance


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything a run is made of, before its first step.

    Attributes:
        config: The configuration, with the batch size and epochs that 0 stands for.
        asked: The configuration as it was given.
        splits: The images.
        pretrained: The backbone.
        learner: Labeled parameters and their optimizer.
        runner: The steps.
        sources: Chooses the splits' sources.
        meta: The metadata that every checkpoint has in addition to the position.
    """

    config: Config
    asked: Config
    splits: Splits
    pretrained: Pretrained
    learner: Learner
    runner: Runner
    sources: SourceSelector
    meta: JsonObject

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the training images."""
        return _steps_per_epoch(self.config, self.splits)

    def log_length(self) -> None:
        """Says which batch size and epochs were chosen, if any were."""
        images = len(self.splits.train.labels)
        if told := automatic.describe(self.asked.train, self.config.train, images):
            logging.info('%s', told)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Images and weights: what runs that differ only in head and optimizer share.

    Attributes:
        splits: The images.
        pretrained: The backbone.
        preprocess: The name of the preprocessing, a key of `PREPROCESS`.
    """

    splits: Splits
    pretrained: Pretrained
    preprocess: str


def configure(raw: ConfigDict | Mapping[str, Any]) -> Config:
    """Returns a complete, checked configuration, with the backbone's own layers for 'auto'.

    Raises:
        UserError: A key or value is not allowed, there is no such backbone or layer, or several
            processes run together.
    """
    require_one_process()
    config = parse.resolve(raw)
    backbone, features = find(config.model.backbone), config.features
    layers = features.layers
    if config.model.head == 'auto' and not layers:
        layers = backbone.auto_taps(features.layer)
    found = taps.parse(layers, backbone.layers)
    layer = found[-1].layer if found else backbone.choose(features.layer)
    features = dataclasses.replace(features, layer=layer, layers=tuple(map(str, found)))
    data = config.data
    if data.resize == 'auto' and config.model.head != 'auto':
        data = dataclasses.replace(data, resize='stretch')
    return dataclasses.replace(config, data=data, features=features)


def load(config: Config) -> Inputs:
    """Reads images and weights, and audits the images.

    Args:
        config: As `configure` returns it.

    Raises:
        UserError: A split or the weights are missing or unfit; see `load_splits`, `load_backbone`.
    """
    ranges.check(config.augment, config.data.image_size)
    splits = load_splits(config.data)
    if config.data.audit != 'off':
        checks.brief(splits.by_name, strict=config.data.audit == 'error')
    _check_sizes(config, splits)
    weights = load_backbone(config)
    preprocess = choose_preprocess(weights, config.weights.preprocess)
    return Inputs(splits, weights, preprocess)


def build(config: Config, inputs: Inputs) -> Run:
    """Builds the model and its steps; nothing is computed yet."""
    asked, splits, weights = config, inputs.splits, inputs.pretrained
    train = automatic.resolve(config.train, len(splits.train.labels))
    config = dataclasses.replace(config, train=train)
    classes = splits.train.class_names
    learner = build_learner(
        config.optim,
        joined(backbone=weights.variables, head=init_head(config, len(classes))),
        steps_per_epoch=_steps_per_epoch(config, splits),
        epochs=config.train.epochs,
    )
    mesh = default_mesh()
    trainable = learner.trainable.params
    runner = Runner(
        classifier=build_classifier(config, trainable, len(classes), inputs.preprocess),
        tx=learner.tx,
        frozen=replicate(learner.frozen, mesh),
        mesh=mesh,
        seed=config.train.seed,
        loss=losses.build(
            config.loss,
            smoothing=config.train.label_smoothing,
            counts=splits.train.counts,
            classes=classes,
        ),
    )
    backbone = learner.trainable.merge(runner.frozen).branch('backbone')
    sources = build_sources(config, weights.digest, backbone, runner.classifier, mesh)
    return Run(
        config=config,
        asked=asked,
        splits=splits,
        pretrained=weights,
        learner=learner,
        runner=runner,
        sources=sources,
        meta=_metadata(config, inputs),
    )


def _metadata(config: Config, inputs: Inputs) -> JsonObject:
    """Returns the metadata needed to use and resume a checkpoint, except the position."""
    return {
        'config': to_dict(config),
        'classes': list(inputs.splits.train.class_names),
        'preprocess': inputs.preprocess,
        'weights_digest': inputs.pretrained.digest,
        'data_digest': inputs.splits.digest,
        'split_digests': {name: t.digest for name, t in inputs.splits.by_name.items()},
        'code': code_digests(config),
        'folder': os.getcwd(),  # where the relative paths in `config` start
        'versions': provenance.versions(),
    }


def code_digests(config: Config) -> dict[str, str]:
    """Returns the digest of each Python file that defines a part of the model, by config key."""
    keys = {'model.backbone': config.model.backbone, 'model.head': config.model.head}
    return {
        key: python_file.load(value, where=f'config.{key}').digest
        for key, value in keys.items()
        if python_file.is_spec(value)
    }


def _steps_per_epoch(config: Config, splits: Splits) -> int:
    return math.ceil(len(splits.train.labels) / config.train.batch_size)


def _check_sizes(config: Config, splits: Splits) -> None:
    images = len(splits.train.labels)
    if config.train.batch_size > images:
        raise UserError(
            f'a batch of {config.train.batch_size} is larger than the {images} training images',
            where='config.train.batch_size',
            fix=f'at most {images}',
        )


def load_backbone(config: Config) -> Pretrained:
    """Returns the pretrained backbone that `config.model.backbone` and `weights.source` name.

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
    config: Config, weights_digest: str, backbone: Variables, classifier: Classifier, mesh: Mesh
) -> SourceSelector:
    """Returns what chooses the sources of the splits, in training and after it."""
    return SourceSelector(
        image_format=ImageFormat.of(config.data, classifier.backbone.interpolation),
        augment=config.augment,
        features=config.features,
        train_config=config.train,
        weights_digest=weights_digest,
        backbone=backbone,
        classifier=classifier,
        mesh=mesh,
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


def tapped(config: Config) -> tuple[taps.Tap, ...]:
    """Returns the taps of a configuration; empty where one layer feeds the head."""
    return taps.parse(config.features.layers, find(config.model.backbone).layers)


def joined(**parts: Variables) -> Variables:
    """Returns the variables of a model of these parts; one without state has no branch there."""
    return Variables(
        {name: part.params for name, part in parts.items()},
        {name: part.state for name, part in parts.items() if part.state},
    )

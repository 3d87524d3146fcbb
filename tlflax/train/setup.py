"""What a run is made of, before its first step: images, weights, model and optimizer."""

import dataclasses
import math
from pathlib import Path

import jax
from absl import logging
from jax.sharding import Mesh

from tlflax.config.parse import to_dict
from tlflax.config.schema import Config
from tlflax.data.audit import checks
from tlflax.data.augment import ranges
from tlflax.data.images.format import ImageFormat
from tlflax.data.splits.load import Splits, load_splits
from tlflax.features.select import SourceSelector
from tlflax.models import classifier as classifiers
from tlflax.models import heads
from tlflax.models.classifier import Classifier, Params
from tlflax.models.vgg import network
from tlflax.models.weights import pretrained as weights
from tlflax.models.weights.catalogue import VGG16_IMAGENET
from tlflax.models.weights.pretrained import Pretrained
from tlflax.train import losses
from tlflax.train.epoch import Runner
from tlflax.train.optim import Learner, build_learner
from tlflax.utils import trees
from tlflax.utils.assets import fetch
from tlflax.utils.errors import UserError
from tlflax.utils.files import JsonObject
from tlflax.utils.sharding import default_mesh, replicate
from tlflax.workdir import files


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything a run is made of, before its first step.

    Attributes:
        config: The configuration.
        splits: The images.
        pretrained: The backbone.
        learner: Labeled parameters and their optimizer.
        runner: The steps.
        sources: Chooses the splits' sources.
        meta: The metadata that every checkpoint has in addition to the position.
    """

    config: Config
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


def load(config: Config) -> Inputs:
    """Reads images and weights, and audits the images.

    Raises:
        UserError: A split or the weights are missing or unfit; see `load_splits`, `load_backbone`.
    """
    ranges.check(config.augment, config.data.image_size)
    splits = load_splits(config.data)
    if config.data.audit != 'off':
        checks.brief(splits.by_name, strict=config.data.audit == 'error')
    _check_sizes(config, splits)
    pretrained = load_backbone(config)
    preprocess = choose_preprocess(pretrained, config.weights.preprocess)
    return Inputs(splits, pretrained, preprocess)


def build(config: Config, inputs: Inputs) -> Run:
    """Builds the model and its steps; nothing is computed yet."""
    splits, pretrained = inputs.splits, inputs.pretrained
    classes = splits.train.class_names
    params = {
        'backbone': pretrained.params,
        'head': init_head(config, pretrained.params, len(classes)),
    }
    learner = build_learner(
        config.optim,
        params,
        steps_per_epoch=_steps_per_epoch(config, splits),
        epochs=config.train.epochs,
    )
    mesh = default_mesh()
    runner = Runner(
        classifier=build_classifier(config, pretrained.params, len(classes), inputs.preprocess),
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
    sources = build_sources(
        config, pretrained.digest, learner.trainable, runner.frozen, runner.classifier, mesh
    )
    return Run(
        config=config,
        splits=splits,
        pretrained=pretrained,
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
        'versions': files.versions(),
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
    """Returns the pretrained backbone that `config.weights.source` names.

    Raises:
        UserError: The file is missing, damaged or not VGG16; or no download worked.
    """
    source, top = config.weights.source, config.features.layer in network.TOP
    if source == 'random':
        params = jax.device_get(network.init(jax.random.key(config.train.seed), top=top))
        return Pretrained(
            params=params,
            preprocess='torch',  # pixels of unit scale, as He's initialization assumes
            digest=trees.digest(params),
            name='random',
            license='none',
            source=f'seed {config.train.seed}',
        )
    if source == 'imagenet':
        if top:
            raise UserError(
                f'the downloaded ImageNet weights end at block5_pool, before '
                f'{config.features.layer!r}',
                where='config.features.layer',
                fix='name a file with a top in config.weights.source',
            )
        return weights.load(fetch(VGG16_IMAGENET))
    return weights.load(Path(source).expanduser(), top=top)


def choose_preprocess(pretrained: Pretrained, requested: str) -> str:
    """Returns the preprocessing to use, and says so; warns where it does not fit the weights."""
    preprocess, warning = weights.resolve_preprocess(pretrained, requested)
    logging.info(
        'weights: %s from %s, preprocessing %r', pretrained.name, pretrained.source, preprocess
    )
    if warning:
        logging.warning('WARNING: %s', warning)
    return preprocess


def build_classifier(
    config: Config, backbone: Params, num_classes: int, preprocess: str
) -> Classifier:
    """Returns the static half of the model a configuration describes."""
    return classifiers.create(
        backbone,
        image_size=config.data.image_size,
        num_classes=num_classes,
        head=config.model.head,
        units=config.model.units,
        dropout=config.model.dropout,
        preprocess=preprocess,
        layer=config.features.layer,
        dtype=config.model.dtype,
    )


def build_sources(
    config: Config,
    weights_digest: str,
    trainable: Params,
    frozen: Params,
    classifier: Classifier,
    mesh: Mesh,
) -> SourceSelector:
    """Returns what chooses the sources of the splits, in training and after it."""
    return SourceSelector(
        image_format=ImageFormat.of(config.data),
        augment=config.augment,
        features=config.features,
        train_config=config.train,
        weights_digest=weights_digest,
        frozen=frozen,
        classifier=classifier,
        mesh=mesh,
        backbone_learns='backbone' in trainable,
    )


def init_head(config: Config, backbone: Params, num_classes: int) -> Params:
    """Returns the head's first parameters, decided by `config.train.seed`."""
    shape = classifiers.feature_shape(
        backbone, image_size=config.data.image_size, layer=config.features.layer
    )
    key = jax.random.fold_in(jax.random.key(config.train.seed), 1)
    return heads.init(
        config.model.head,
        shape,
        num_classes,
        key,
        units=config.model.units,
        dropout=config.model.dropout,
    )

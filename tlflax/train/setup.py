"""What a run is made of, before its first step: images, weights, model and optimizer."""

import dataclasses
import math
from typing import Any

from tlflax.config.parse import to_dict
from tlflax.config.schema import Config
from tlflax.data.audit import checks
from tlflax.data.augment import ranges
from tlflax.data.images.format import ImageFormat
from tlflax.data.splits.load import Splits, load_splits
from tlflax.features.select import SourceSelector
from tlflax.models.weights.pretrained import Pretrained
from tlflax.train import epoch, experiment, losses
from tlflax.utils.errors import UserError
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
        meta: What every checkpoint's metadata holds besides the position.
    """

    config: Config
    splits: Splits
    pretrained: Pretrained
    learner: experiment.Learner
    runner: epoch.Runner
    sources: SourceSelector
    meta: dict[str, Any]

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the training images."""
        return _steps_per_epoch(self.config, self.splits)


@dataclasses.dataclass(frozen=True)
class Material:
    """What runs that differ in head and optimizer alone have in common."""

    splits: Splits
    pretrained: Pretrained
    preprocess: str


def load(config: Config) -> Material:
    """Reads data and weights."""
    ranges.check(config.augment, config.data.image_size)
    splits = load_splits(config.data)
    if config.data.audit != 'off':
        checks.brief(splits.by_name, strict=config.data.audit == 'error')
    _check_sizes(config, splits)
    pretrained = experiment.load_backbone(config)
    preprocess = experiment.choose_preprocess(pretrained, config.weights.preprocess)
    return Material(splits, pretrained, preprocess)


def build(config: Config, material: Material) -> Run:
    """Builds the model and its steps; nothing is computed yet."""
    splits, pretrained = material.splits, material.pretrained
    classes = splits.train.classes
    params = {
        'backbone': pretrained.params,
        'head': experiment.init_head(config, pretrained.params, len(classes)),
    }
    learner = experiment.build_learner(config, params, _steps_per_epoch(config, splits))
    mesh = default_mesh()
    this_runner = epoch.Runner(
        classifier=experiment.build_classifier(
            config, pretrained.params, len(classes), material.preprocess
        ),
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
    sources = SourceSelector(
        image_format=ImageFormat.of(config.data),
        augment=config.augment,
        features=config.features,
        train_config=config.train,
        weights_digest=pretrained.digest,
        frozen=this_runner.frozen,
        classifier=this_runner.classifier,
        mesh=mesh,
        backbone_learns='backbone' in learner.trainable,
    )
    return Run(
        config=config,
        splits=splits,
        pretrained=pretrained,
        learner=learner,
        runner=this_runner,
        sources=sources,
        meta={
            'config': to_dict(config),
            'classes': list(classes),
            'preprocess': material.preprocess,
            'weights_digest': pretrained.digest,
            'data_digest': splits.digest,
            'versions': files.versions(),
        },
    )


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

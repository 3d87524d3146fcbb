"""From a configuration to the things a run is made of: backbone, model, optimizer."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import optax
from absl import logging

from tlflax.config.schema import Config
from tlflax.models import classifier as classifiers
from tlflax.models import heads
from tlflax.models.classifier import Classifier, Params
from tlflax.models.vgg import network
from tlflax.models.weights import pretrained as weights
from tlflax.models.weights.catalogue import VGG16_IMAGENET
from tlflax.models.weights.pretrained import Pretrained
from tlflax.train import optim
from tlflax.utils import trees
from tlflax.utils.assets import fetch
from tlflax.utils.errors import UserError
from tlflax.utils.labels import format_table, label_tree, partition


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


def build_classifier(config: Config, backbone: Params, classes: int, preprocess: str) -> Classifier:
    """Returns the static half of the model a configuration describes."""
    return classifiers.create(
        backbone,
        image_size=config.data.image_size,
        num_classes=classes,
        head=config.model.head,
        units=config.model.units,
        dropout=config.model.dropout,
        preprocess=preprocess,
        layer=config.features.layer,
        dtype=config.model.dtype,
    )


def init_head(config: Config, backbone: Params, classes: int) -> Params:
    """Returns the head's first parameters, decided by `config.train.seed`."""
    shape = classifiers.feature_shape(
        backbone, image_size=config.data.image_size, layer=config.features.layer
    )
    key = jax.random.fold_in(jax.random.key(config.train.seed), 1)
    return heads.init(
        config.model.head,
        shape,
        classes,
        key,
        units=config.model.units,
        dropout=config.model.dropout,
    )


@dataclasses.dataclass(frozen=True)
class Learner:
    """Labeled parameters and their optimizer.

    Attributes:
        trainable: Parameters that learn.
        frozen: Parameters that do not.
        labels: The label of each trainable parameter.
        tx: The optimizer of `trainable`.
        learning_rate: Step to the learning rate of the first label, for the record.
        table: Pattern, label, tensors, parameters and optimizer bytes, as text.
    """

    trainable: Params
    frozen: Params
    labels: Params
    tx: optax.GradientTransformation
    learning_rate: Callable[[int], float]
    table: str


def build_learner(config: Config, params: Params, steps_per_epoch: int) -> Learner:
    """Labels parameters by `config.optim.labels` and builds their optimizer.

    Raises:
        UserError: A pattern matches nothing, a parameter has no label, or all are frozen.
    """
    rules = config.optim.labels
    labels = label_tree(params, rules)
    trainable, frozen = partition(params, labels)
    trainable_labels, _ = partition(labels, labels)
    tx, schedules = build_optimizer(config, trainable_labels, steps_per_epoch)
    state = jax.eval_shape(tx.init, trainable)
    table = format_table(params, rules, optim.state_bytes(state))
    first = next(iter(schedules.values()))
    return Learner(trainable, frozen, trainable_labels, tx, lambda step: float(first(step)), table)


def build_optimizer(
    config: Config, labels: Params, steps_per_epoch: int
) -> tuple[optax.GradientTransformation, dict[str, optax.Schedule]]:
    """Returns the optimizer of labeled parameters and each label's learning-rate schedule.

    Learning rates and weight decay may be traced: a sweep trains many values of them at once.

    Raises:
        UserError: `config.optim` contradicts itself or names a label that no parameter has.
    """
    peaks = optim.label_rates(
        labels, default=config.optim.learning_rate, overrides=config.optim.learning_rates
    )
    schedules = {
        label: optim.schedule(
            peak,
            kind=config.optim.schedule,
            warmup_steps=round(config.optim.warmup_epochs * steps_per_epoch),
            total_steps=config.train.epochs * steps_per_epoch,
        )
        for label, peak in peaks.items()
    }
    tx = optim.build(
        labels,
        name=config.optim.name,
        learning_rates=schedules,
        weight_decay=config.optim.weight_decay,
        momentum=config.optim.momentum,
        clip_norm=config.optim.clip_norm,
    )
    return tx, schedules

"""What a run is made of, before its first step: images, weights, model and optimizer."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tlflax.config import automatic, parse
from tlflax.config.parse import to_dict
from tlflax.config.phases import expand
from tlflax.config.schema import Config
from tlflax.data.audit import checks
from tlflax.data.augment import ranges, sampling
from tlflax.data.splits.load import Splits, load_splits
from tlflax.features.select import SourceSelector
from tlflax.models.backbones import find
from tlflax.models.base import taps
from tlflax.models.base.modules import Variables
from tlflax.models.classifier import Classifier
from tlflax.models.pretrained import Pretrained
from tlflax.train import components, losses, steps
from tlflax.train.epoch import Runner
from tlflax.train.optim import phases
from tlflax.train.optim.learner import Learner, build_learner, check_all_frozen
from tlflax.utils import trees
from tlflax.utils.errors import UserError
from tlflax.utils.files import JsonObject, leaves, plain_json
from tlflax.utils.parallel import processes
from tlflax.utils.parallel.mesh import default_mesh, replicate
from tlflax.utils.parallel.placement import on_host, place
from tlflax.workdir import provenance
from tlflax.workdir.loggers import group as loggers


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything a run is made of, before its first step.

    Attributes:
        config: The configuration of the phase, with the batch size and epochs that 0 stands for.
        whole: The configuration of all phases, with these numbers too.
        asked: The configuration as it was given.
        splits: The images.
        pretrained: The backbone.
        learner: Labeled parameters and their optimizer.
        runner: The steps.
        sources: Chooses the splits' sources.
        meta: The metadata that every checkpoint has in addition to the position.
        phase: The number of the phase, from 0.
        num_phases: Phases of the training.
        changed: What earlier phases have trained and this one does not; a part of what is frozen.
    """

    config: Config
    whole: Config
    asked: Config
    splits: Splits
    pretrained: Pretrained
    learner: Learner
    runner: Runner
    sources: SourceSelector
    meta: JsonObject
    phase: int
    num_phases: int
    changed: Variables

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the training images."""
        return _steps_per_epoch(self.config, self.splits)

    @property
    def saved_frozen(self) -> Variables:
        """The frozen variables that a checkpoint holds; see `phases.saved`."""
        include, frozen = self.config.checkpoint.include_backbone, self.runner.frozen
        return phases.saved(self.runner.fetch(frozen), self.changed, include_backbone=include)

    def first_state(self) -> steps.TrainState:
        """Returns the state before the first step, on the host.

        It is a copy: training donates its state, and the run may start once more.
        """
        learner = self.learner
        with on_host(self.runner.classifier.shards):
            first = steps.first_state(learner.trainable, tx=learner.tx, average=learner.average)
            return jax.tree.map(np.array, first)  # NumPy's copy needs no program

    def log_length(self) -> None:
        """Says which batch size and epochs were chosen, if any were."""
        images = len(self.splits.train.labels)
        if told := automatic.describe(self.asked.train, self.whole.train, images):
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
        UserError: A key or value is not allowed, there is no such backbone or layer, or JAX runs
            in several processes that tlflax did not start.
    """
    processes.require_known()
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
    config = dataclasses.replace(config, data=data, features=features)
    keys = leaves(plain_json(to_dict(config)))
    _require_same({f'config.{key}': value for key, value in keys.items()})
    expand(config)  # checks the phases
    if config.model.head == 'auto' and config.train.phases:
        raise UserError(
            "model.head='auto' is not trained in phases",
            where='config.train.phases',
            fix='leave them out, or name a head',
        )
    return config


def load(config: Config) -> Inputs:
    """Reads images and weights, and audits the images; checks that the run can be logged.

    Args:
        config: As `configure` returns it.

    Raises:
        UserError: A split or the weights are missing or unfit; see `load_splits`, `load_backbone`.
            A logger cannot be used; see `tlflax.workdir.loggers.group.check`.
    """
    loggers.check(config.train.loggers)
    ranges.check(config.augment, config.data.image_size)
    splits = load_splits(config.data)
    if config.data.audit != 'off':
        checks.brief(splits.by_name, strict=config.data.audit == 'error')
    _check_sizes(config, splits)
    weights = components.load_backbone(config)
    preprocess = components.choose_preprocess(weights, config.weights.preprocess)
    _require_same(
        {'the digest of the images': splits.digest, 'the digest of the weights': weights.digest}
    )
    return Inputs(splits, weights, preprocess)


def _require_same(facts: Mapping[str, object]) -> None:
    """Checks that processes that train together have the same work.

    Raises:
        UserError: They have not.
    """
    processes.require_same(facts, 'give all processes the same command and the same files')


def build(
    config: Config,
    inputs: Inputs,
    *,
    phase: int = 0,
    began: int = 0,
    start: Variables | None = None,
) -> Run:
    """Builds the model and its steps for a phase of a training; nothing is computed yet.

    Args:
        config: The configuration of all phases.
        inputs: Images and weights.
        phase: The number of the phase, from 0.
        began: Epochs that were completed before it.
        start: All variables of the model before it; None: the pretrained ones and a new head.

    Raises:
        UserError: Labels, rates or keys of a phase contradict each other or the model.
    """
    whole = _with_numbers(config, inputs)
    configs = [_with_numbers(one, inputs) for one in expand(whole)]
    if phase >= len(configs):
        raise UserError(
            f'there is no phase {phase + 1}',
            where='config.train.phases',
            fix='give those that the run was started with',
        )
    if start is None:
        start = first_variables(config, inputs)
    own, learner = configs[phase], _learner(configs, inputs, start, phase, began)
    if not phase:
        _check_others(configs, inputs, start, learner)
    changed = phases.parts([one.optim for one in configs], start, phase).changed
    mesh, classes = default_mesh(), inputs.splits.train.class_names
    model = components.build_classifier(
        own, learner.trainable.params, len(classes), inputs.preprocess
    )
    shards = components.head_shards(own, len(classes), mesh)
    adders = None if shards else components.adders(own, model, learner.trainable, mesh)
    model = dataclasses.replace(model, shards=shards, adders=adders)
    runner = _runner(own, inputs, learner, model, mesh)
    digest = phases.features_digest(inputs.pretrained.digest, changed, model.backbone, model.cut)
    backbone = learner.trainable.merge(runner.frozen).branch('backbone')
    return Run(
        config=own,
        whole=whole,
        asked=config,
        splits=inputs.splits,
        pretrained=inputs.pretrained,
        learner=learner,
        runner=runner,
        sources=components.build_sources(own, digest, backbone, model, mesh, first_epoch=began),
        meta=_metadata(whole, inputs),
        phase=phase,
        num_phases=len(configs),
        changed=changed,
    )


def first_variables(config: Config, inputs: Inputs) -> Variables:
    """Returns all variables of a model before training: the pretrained ones and a new head."""
    num_classes = len(inputs.splits.train.class_names)
    with on_host(components.head_shards(config, num_classes, default_mesh())):
        head = components.init_head(config, num_classes)
    return components.joined(backbone=inputs.pretrained.variables, head=head)


def _with_numbers(config: Config, inputs: Inputs) -> Config:
    """Returns a configuration with the batch size and epochs that 0 stands for."""
    train = automatic.resolve(config.train, len(inputs.splits.train.labels))
    sampling.check_shared(train.batch_size, processes.count())
    return dataclasses.replace(config, train=train)


def _learner(
    configs: Sequence[Config], inputs: Inputs, start: Variables, phase: int, began: int = 0
) -> Learner:
    config = configs[phase]
    try:
        return build_learner(
            config.optim,
            start,
            steps_per_epoch=_steps_per_epoch(config, inputs.splits),
            epochs=config.train.epochs,
            layers=find(config.model.backbone).layers,
            since=phases.born([one.optim for one in configs], start, phase),
            first_epoch=began,
        )
    except UserError as error:
        if len(configs) > 1:
            error.where = f'config.train.phases[{phase}]: {error.where}'
        raise


def _check_others(
    configs: Sequence[Config], inputs: Inputs, start: Variables, first: Learner
) -> None:
    """Checks labels, rates and optimizers of later phases, before hours are spent on the first."""
    shapes, trained = jax.eval_shape(lambda: start), set(first.trainable.params)
    for number in range(1, len(configs)):
        trained |= set(_learner(configs, inputs, shapes, number).trainable.params)
    if 'backbone' not in trained:
        for config in configs:
            check_all_frozen(config.optim)


def _runner(
    config: Config, inputs: Inputs, learner: Learner, model: Classifier, mesh: Mesh
) -> Runner:
    return Runner(
        classifier=model,
        tx=learner.tx,
        average=learner.average,
        frozen=place(learner.frozen, mesh, model.shards),
        mesh=mesh,
        seed=config.train.seed,
        loss=_loss(config, inputs, learner, mesh),
    )


def _loss(config: Config, inputs: Inputs, learner: Learner, mesh: Mesh) -> losses.Loss:
    table, alpha = inputs.splits.train, config.optim.l2_sp
    loss = losses.build(
        config.loss,
        smoothing=config.train.label_smoothing,
        counts=table.counts,
        classes=table.class_names,
    )
    if not alpha:
        return loss
    own = learner.trainable.branch('backbone').params
    start = replicate(trees.like(inputs.pretrained.variables.params, own), mesh)
    return loss._replace(l2_sp=np.float32(alpha), start=start)


def _metadata(config: Config, inputs: Inputs) -> JsonObject:
    """Returns the metadata needed to use and resume a checkpoint, except the position."""
    return {
        'config': to_dict(config),
        'classes': list(inputs.splits.train.class_names),
        'preprocess': inputs.preprocess,
        'weights_digest': inputs.pretrained.digest,
        'data_digest': inputs.splits.digest,
        'split_digests': {name: t.digest for name, t in inputs.splits.by_name.items()},
        'code': components.code_digests(config),
        'folder': os.getcwd(),  # where the relative paths in `config` start
        'versions': provenance.versions(),
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

"""Linear probes: logistic regression on frozen features, the standard way to compare backbones.

The features are those of the images as they are, without augmentation. Cross-validation on the
training images chooses the strength of regularization (see `tlflax.probe.path`), so that no choice
has seen the validation images.
"""

import dataclasses
import math
import time
from collections.abc import Sequence

import jax.numpy as jnp

from tlflax.config.schema import AugmentConfig, Config, LossConfig, OptimConfig
from tlflax.features.batches import Source
from tlflax.features.sources import require_on_device
from tlflax.models.backbones import find
from tlflax.models.classifier import feature_shape
from tlflax.models.ensemble_head import Branch, name_of
from tlflax.models.linear.representations import Part
from tlflax.probe.path import Fitted, fit_path
from tlflax.probe.rows import Representation
from tlflax.train import components, setup, steps
from tlflax.train.early_stopping import State
from tlflax.train.position import Position
from tlflax.train.run import publish
from tlflax.train.setup import Run
from tlflax.utils.errors import UserError
from tlflax.utils.files import JsonObject
from tlflax.workdir.files import Workdir

HEADS = ('flatten_linear', 'gap_linear')


def run(config: Config, work: Workdir, representation: Representation = 'raw') -> JsonObject:
    """Fits a linear probe on a configuration's training images and writes it as a workdir.

    The probe is `config.model.head` where that is linear, else 'flatten_linear'. In the workdir,
    each strength of regularization stands as an epoch; its record also has `l2`, `iterations`,
    `gradient_norm`, `cv_loss` and `cv_accuracy`, and no learning rate. The best has about
    the lowest `cv_loss`; see `fit_path`.

    Args:
        config: Its optimizer, loss, sampling, augmentation and early stopping are not used.
        work: New.
        representation: 'standard' gives each feature zero mean and unit variance over the training
            images; this becomes part of the kernel and bias that are written. 'row' scales the
            features of an image to unit norm, 'power' their square roots; the head that is written
            does the same.

    Returns:
        The contents of `result.json`.

    Raises:
        UserError: The features are not kept on the device, no class can be divided for
            cross-validation, the workdir is in use, or the head cannot normalize rows.
    """
    began = time.perf_counter()
    with work.locked():
        work.check_free()
        run, train, val = prepare(config, representation)
        path, best = fit_path(run, train, val, representation)
        return publish(
            run,
            work,
            val,
            [fitted.record for fitted in path],
            _positions(path, best, run),
            time.perf_counter() - began,
        )


def prepare(config: Config, representation: Representation = 'raw') -> tuple[Run, Source, Source]:
    """Loads what a probe needs: a run, and its training and validation images as they are.

    Raises:
        UserError: The features are not kept on the device, or the configuration or data is at
            fault.
    """
    config = probe_config(config, representation)
    run = setup.build(config, setup.load(config))
    train = run.sources.eval(run.splits.train, 'training')
    val = run.sources.eval(run.splits.val, 'validation')
    require_on_device(val)
    return run, train, val


def probe_config(config: Config, representation: Representation = 'raw') -> Config:
    """Returns the configuration of the linear head that a probe fits.

    Raises:
        UserError: It averages features, and so cannot normalize rows.
    """
    head = config.model.head if config.model.head in HEADS else HEADS[0]
    if representation in ('row', 'power'):
        if head == 'gap_linear':
            raise UserError(
                f'{head} averages features and does not scale rows',
                where='--representation',
                fix="leave it out, or set config.model.head='flatten_linear'",
            )
        backbone, size = find(config.model.backbone), config.data.image_size
        shape = feature_shape(backbone, size, config.features.layer, components.tapped(config))
        head = name_of([Branch((Part(0, math.prod(shape), representation),))])
    return dataclasses.replace(
        config,
        augment=AugmentConfig(horizontal_flip=False),
        loss=LossConfig(),
        optim=OptimConfig(),  # all of the backbone is frozen
        train=dataclasses.replace(
            config.train, balanced_sampling=False, label_smoothing=0.0, phases=()
        ),
        model=dataclasses.replace(config.model, head=head, dropout=0.0),
        early_stopping=dataclasses.replace(config.early_stopping, restore_best=True),
    )


def _positions(
    path: Sequence[Fitted], best: int, run: Run
) -> list[tuple[steps.TrainState, Position]]:
    """Returns the best and the last probe as states of a training."""
    stopping = State(best=path[best].record['val_accuracy'], best_epoch=best)
    saved = []
    for fitted in dict.fromkeys([best, len(path) - 1]):
        variables, record = path[fitted].variables, path[fitted].record
        state = steps.init_state(variables, run.learner.tx)
        state = state._replace(step=jnp.int32(record['step']))
        own = dataclasses.replace(stopping, improved=fitted == best)
        saved.append((state, Position(epoch=record['epoch'], stopping=own)))
    return saved

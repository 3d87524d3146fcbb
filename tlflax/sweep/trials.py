"""How images are shown to the backbone, judged on the training images alone.

A ridge classifier is cross-validated on a part of them for each way to resize, for each image size
that is asked for, and with mirror images in training. Another way than the first is taken where its
loss is lower by more than two standard errors of the paired difference: ties go to the cheaper.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Float, Int

from tlflax.config.schema import Config
from tlflax.data.augment import sampling
from tlflax.data.splits.stratify import fold_numbers
from tlflax.data.table import ImageTable
from tlflax.features import on_host
from tlflax.models import ensemble_head
from tlflax.models.backbones import find
from tlflax.models.ensemble_head import Branch
from tlflax.models.linear.representations import Part
from tlflax.sweep.candidates.catalogue import Layout, referee
from tlflax.sweep.candidates.fitted import Fitted, Training
from tlflax.train import components, setup
from tlflax.train.setup import Inputs, Run

FOLDS = 5
RESIZES = ('stretch', 'pad', 'crop')

_IMAGES = 500  # that the trials look at, at most
_BETTER = 2.0  # standard errors
_DISTORTED = 0.02  # by which part an aspect ratio differs from that of the input
_FEW = 0.05  # share of distorted images below which resizing is not compared


class Trial(NamedTuple):
    """One way that was tried.

    Attributes:
        key: What was varied.
        value: The way.
        loss: Cross-validated, in nats.
        accuracy: Cross-validated, in 0..1.
        chosen: Whether it is the one that is used.
    """

    key: str
    value: str
    loss: float
    accuracy: float
    chosen: bool


class Judged(NamedTuple):
    """What the trials decided.

    Attributes:
        config: The configuration with the resizing and the image size to use.
        mirrored: Whether mirror images help.
        trials: What was tried.
    """

    config: Config
    mirrored: bool
    trials: list[Trial]


def judge(config: Config, inputs: Inputs, *, mirrored: bool) -> Judged:
    """Decides how images are resized, and whether mirror images are worth training on.

    Args:
        config: `data.resize` may be 'auto'; `data.image_sizes` may name sizes.
        inputs: The images.
        mirrored: Whether mirror images may be used.
    """
    part = sample(inputs.splits.train, _IMAGES)
    if not _comparable(part):
        logging.info('too many classes, or too few images of each, to compare ways to show images')
        way = RESIZES[0] if config.data.resize == 'auto' else config.data.resize
        return Judged(_changed(config, resize=way), False, [])
    trials: list[Trial] = []
    if config.data.resize == 'auto':
        ways = RESIZES if _distorts(part, config.data.image_size) else RESIZES[:1]
        configs = {way: _changed(config, resize=way) for way in ways}
        config = configs[_compare('data.resize', configs, inputs, part, trials)]
    if sides := [side for side in config.data.image_sizes if side != config.data.image_size[0]]:
        configs = {str(config.data.image_size[0]): config}
        configs |= {str(side): _changed(config, image_size=(side, side)) for side in sides}
        config = configs[_compare('data.image_size', configs, inputs, part, trials)]
    if mirrored:
        mirrored = _judge_mirrored(config, inputs, part, trials)
    return Judged(config, mirrored, trials)


def sample(table: ImageTable, most: int) -> ImageTable:
    """Returns about `most` images at most, each class in proportion, chosen by their digests."""
    if len(table) <= most:
        return table
    rows: list[int] = []
    order = np.argsort(table.digests, kind='stable')
    for label, count in enumerate(table.counts.tolist()):
        of_class = order[table.labels[order] == label]
        rows += of_class[: max(2, round(count * most / len(table)))].tolist()
    return table.select(np.sort(np.array(rows, np.int64)))


def _comparable(part: ImageTable) -> bool:
    """Whether the images can be cross-validated, and are not many more than they should be."""
    fold = fold_numbers(part, FOLDS)
    return len(part) <= 2 * _IMAGES and len(np.unique(fold[fold >= 0])) > 1


def layout(config: Config) -> Layout:
    """Returns what the features of a configuration consist of."""
    backbone, size = find(config.model.backbone), config.data.image_size
    taps = components.tapped(config)
    shapes = [backbone.feature_shape(size, tap.layer) for tap in taps]
    columns = [tap.columns(shape) for tap, shape in zip(taps, shapes, strict=True)]
    return Layout(taps, tuple(columns), tuple(shapes[-1]))


def with_head(config: Config, branches: Sequence[Branch]) -> Config:
    """Returns the configuration of an ensemble of these branches."""
    name = ensemble_head.name_of(branches)
    model = dataclasses.replace(config.model, head=name, dropout=0.0)
    return dataclasses.replace(config, model=model)


def build(config: Config, inputs: Inputs) -> Run:
    """Returns a run that reads the features; its head is of no account."""
    width = sum(layout(config).columns)
    any_head = Branch((Part(0, width, 'raw'),))
    return setup.build(with_head(config, [any_head]), inputs)


def read(
    run: Run, table: ImageTable, *, mirrored: bool
) -> tuple[
    Float[np.ndarray, 'n columns'], Float[np.ndarray, 'n columns'] | None, Int[np.ndarray, ' n']
]:
    """Returns the features of images, those of their mirror images if asked for, and the labels."""
    if not mirrored:
        features, label = on_host.read(run.sources.eval(table, 'training'))
        return features, None, label
    views = sampling.test_views(run.config.augment)
    plain, flipped = run.sources.eval_views(table, 'training', views)
    features, label = on_host.read(plain)
    return features, on_host.read(flipped)[0], label


def _changed(config: Config, **values: Any) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **values))


def _distorts(table: ImageTable, size: tuple[int, int]) -> bool:
    """Whether ways to resize differ."""
    if table.aspect_ratios is None:
        return True
    ratio = table.aspect_ratios * size[0] / size[1]
    return bool((np.abs(np.log(ratio)) > _DISTORTED).mean() > _FEW)


def _compare(
    key: str,
    configs: dict[str, Config],
    inputs: Inputs,
    part: ImageTable,
    trials: list[Trial],
) -> str:
    """Returns the best of some ways; the first is taken unless another is clearly better."""
    if len(configs) == 1:
        return next(iter(configs))
    fold = fold_numbers(part, FOLDS)
    found = {}
    for value, config in configs.items():
        features, _, label = read(build(config, inputs), part, mirrored=False)
        training = Training(features, label, len(part.class_names), fold)
        found[value] = referee(layout(config)).fit(training, [])
    return _choose(key, found, part, trials)


def _judge_mirrored(config: Config, inputs: Inputs, part: ImageTable, trials: list[Trial]) -> bool:
    features, flipped, label = read(build(config, inputs), part, mirrored=True)
    fold = fold_numbers(part, FOLDS)
    training = Training(features, label, len(part.class_names), fold, flipped)
    judged = referee(layout(config))
    both = dataclasses.replace(judged, mirrored=True)
    found = {'off': judged.fit(training, []), 'on': both.fit(training, [])}
    return _choose('mirror images', found, part, trials) == 'on'


def _choose(key: str, found: dict[str, Fitted], part: ImageTable, trials: list[Trial]) -> str:
    first = next(iter(found))
    costs = {value: one.losses(part.labels) for value, one in found.items()}
    better = [first]
    for value, own in costs.items():
        gain = (costs[first] - own)[np.isfinite(own)]
        error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else np.inf
        if value != first and gain.mean() > _BETTER * error:
            better.append(value)
    chosen = min(better, key=lambda value: found[value].loss)
    trials += [
        Trial(key, value, one.loss, one.accuracy, value == chosen) for value, one in found.items()
    ]
    shown = ', '.join(f'{value} {one.loss:.4f}' for value, one in found.items())
    logging.info('%s: %s by the loss on %d images (%s)', key, chosen, len(part), shown)
    return chosen

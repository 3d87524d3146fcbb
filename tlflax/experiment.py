"""From a configuration to the things a run is made of: splits, backbone, model, optimiser."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import jax
import optax
from absl import logging

from tlflax import assets, optim, trees, weights
from tlflax.config import Config, DataConfig
from tlflax.data import audit, folder, split
from tlflax.data.folder import ImageTable
from tlflax.errors import UserError
from tlflax.models import classifier as classifiers
from tlflax.models import heads, vgg
from tlflax.models.classifier import Classifier, Params
from tlflax.weights import Pretrained


@dataclasses.dataclass(frozen=True)
class Splits:
    """The tables of images; `test` may be missing."""

    train: ImageTable
    val: ImageTable
    test: ImageTable | None

    @property
    def digest(self) -> str:
        """The digest of all of them, hexadecimal."""
        tables = [table for table in (self.train, self.val, self.test) if table is not None]
        return hashlib.sha256(' '.join(table.digest for table in tables).encode()).hexdigest()


def load_table(
    spec: str, *, key: str, on_bad_image: str, classes: tuple[str, ...] | None = None
) -> ImageTable:
    """Finds and checks the images of one split.

    Args:
        spec: A folder, 'demo:NAME/SPLIT' or 'tfds:NAME/SPLIT'.
        key: The configuration key it came from, for messages.
        on_bad_image: 'error' or 'skip'.
        classes: The training split's classes, whose order decides the labels.

    Raises:
        UserError: There is nothing to train with; see `tlflax.data.folder.scan`.
    """
    root = find_root(spec, key=key)
    return folder.scan(root, on_bad_image=on_bad_image, key=key, classes=classes)


def find_root(spec: str, *, key: str) -> Path:
    """Returns the folder of class folders that a split's specification stands for."""
    if spec.startswith('demo:'):
        return assets.resolve_demo(spec, where=key)
    if spec.startswith('tfds:'):
        from tlflax.data import tfds  # TensorFlow is imported only where it is needed

        return tfds.materialise(spec, assets.cache_folder())
    return Path(spec).expanduser()


def load_splits(data: DataConfig) -> Splits:
    """Returns the training, validation and test images.

    Raises:
        UserError: A split is missing or given twice, or its images are not fit for training.
    """
    if not data.train:
        raise UserError(
            'no training images are named',
            where='config.data.train',
            mend='give a folder with one sub-folder of images for each class',
        )
    for name in ('val', 'test'):
        if getattr(data, name) and getattr(data, f'{name}_fraction'):
            raise UserError(
                'a folder and a fraction are both given',
                where=f'config.data.{name} and config.data.{name}_fraction',
                mend='keep one of them',
            )
    if data.val_fraction + data.test_fraction >= 1:
        raise UserError(
            'the fractions leave nothing to train with',
            where='config.data.val_fraction and config.data.test_fraction',
            mend='give less than 1 in all',
        )
    if not data.val and not data.val_fraction:
        raise UserError(
            'no validation images are named',
            where='config.data.val',
            mend='give a folder like the training one, or config.data.val_fraction=0.2',
        )
    train = load_table(data.train, key='config.data.train', on_bad_image=data.on_bad_image)
    test, rest = _take(data, 'test', train, train, whole=1.0)
    val, rest = _take(data, 'val', train, rest, whole=1.0 - data.test_fraction)
    assert val is not None
    if data.audit != 'off':
        tables = {'train': rest, 'val': val} | ({} if test is None else {'test': test})
        audit.brief(tables, strict=data.audit == 'error')
    return Splits(rest, val, test)


def _take(
    data: DataConfig, name: str, train: ImageTable, rest: ImageTable, *, whole: float
) -> tuple[ImageTable | None, ImageTable]:
    """Returns a split and what is left of `rest`, which is the part `whole` of all images."""
    spec, fraction = getattr(data, name), getattr(data, f'{name}_fraction')
    if spec:
        key = f'config.data.{name}'
        return load_table(
            spec, key=key, on_bad_image=data.on_bad_image, classes=train.classes
        ), rest
    if not fraction:
        return None, rest
    rest, part = split.stratified_split(rest, fraction / whole, salt=name)
    return part, rest


def load_val(data: DataConfig, classes: tuple[str, ...]) -> ImageTable:
    """Returns the validation images alone, labelled in the order of `classes`.

    Raises:
        UserError: See `load_splits`.
    """
    if not data.val:
        return load_splits(dataclasses.replace(data, audit='off')).val
    return load_table(
        data.val, key='config.data.val', on_bad_image=data.on_bad_image, classes=classes
    )


def load_backbone(config: Config) -> Pretrained:
    """Returns the pretrained backbone that `config.weights.source` names.

    Raises:
        UserError: The file is missing, damaged or not VGG16; or no download worked.
    """
    source, top = config.weights.source, config.features.layer in vgg.TOP
    if source == 'random':
        params = jax.device_get(vgg.init(jax.random.key(config.train.seed), top=top))
        return Pretrained(
            params=params,
            preprocess='torch',  # pixels of unit scale, as He's initialisation assumes
            digest=trees.digest(params),
            name='random',
            licence='none',
            source=f'seed {config.train.seed}',
        )
    if source == 'imagenet':
        if top:
            raise UserError(
                f'the downloaded ImageNet weights end at block5_pool, before '
                f'{config.features.layer!r}',
                where='config.features.layer',
                mend='name a file with a top in config.weights.source',
            )
        return weights.load(assets.fetch('vgg16_imagenet_notop'))
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
        classes=classes,
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
    """Labelled parameters and their optimiser.

    Attributes:
        trainable: Parameters that learn.
        frozen: Parameters that do not.
        labels: The label of each trainable parameter.
        tx: The optimiser of `trainable`.
        learning_rate: Step to the learning rate of the first label, for the record.
        table: Pattern, label, tensors, parameters and optimiser bytes, as text.
    """

    trainable: Params
    frozen: Params
    labels: Params
    tx: optax.GradientTransformation
    learning_rate: Callable[[int], float]
    table: str


def build_learner(config: Config, params: Params, steps_per_epoch: int) -> Learner:
    """Labels parameters by `config.optim.labels` and builds their optimiser.

    Raises:
        UserError: A pattern matches nothing, a parameter has no label, or all are frozen.
    """
    rules = config.optim.labels
    labels = trees.label_tree(params, rules)
    trainable, frozen = trees.partition(params, labels)
    trainable_labels, _ = trees.partition(labels, labels)
    tx, schedules = build_optimiser(config, trainable_labels, steps_per_epoch)
    state = jax.eval_shape(tx.init, trainable)
    table = trees.table(params, rules, optim.state_bytes(state))
    first = next(iter(schedules.values()))
    return Learner(trainable, frozen, trainable_labels, tx, lambda step: float(first(step)), table)


def build_optimiser(
    config: Config, labels: Params, steps_per_epoch: int
) -> tuple[optax.GradientTransformation, dict[str, optax.Schedule]]:
    """Returns the optimiser of labelled parameters and each label's learning-rate schedule.

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

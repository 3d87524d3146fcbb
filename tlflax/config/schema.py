"""The configuration: every key with its type, default, meaning and allowed values."""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

Phase = tuple[tuple[str, Any], ...]
"""(key, value) pairs, which are given as a dict; see `tlflax.config.phases`."""


class Key(NamedTuple):
    """What the schema says of a key, in addition to its type and default.

    Attributes:
        doc: Its meaning.
        choices: The values it may have, or each in a tuple; empty if any.
        at_least: The smallest value, or the smallest in a tuple; None: no limit.
        at_most: The largest.
    """

    doc: str
    choices: tuple[str, ...]
    at_least: int | float | None
    at_most: int | float | None


def _key(
    default: object,
    doc: str,
    *,
    choices: tuple[str, ...] = (),
    at_least: int | float | None = None,
    at_most: int | float | None = None,
) -> Any:
    """Returns a dataclass field with its default and its `Key`."""
    metadata = {'key': Key(doc, choices, at_least, at_most)}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the images are and how they are read."""

    train: str = _key(
        '',
        "training images: class folders; a manifest 'FILE.csv' or .jsonl; a pattern "
        "'photos/{class}/*.jpg'; 'tfds:NAME/SPLIT'; 'py:FILE.py:FUNCTION'; 's3://BUCKET/FOLDER' or "
        "another URL; 'demo:traffic_lights/Train'. See docs/data.md",
    )
    val: str = _key('', 'validation images, given like `train`; empty: a part of `train`')
    test: str = _key('', 'test images, given like `train`; evaluated once, after training')
    val_fraction: float = _key(
        0.0, 'fraction of each class of `train` held out for validation', at_least=0, at_most=0.9
    )
    test_fraction: float = _key(
        0.0, 'fraction of each class of `train` held out for testing', at_least=0, at_most=0.9
    )
    folds: int = _key(
        0, 'number of stratified folds that `train` is split into; 0: no folds', at_least=0
    )
    fold: int | Literal['all'] = _key(
        0,
        'index of the fold used for validation, from 0; all: cross-validation, a run for each fold',
        at_least=0,
    )
    repeat: int = _key(
        0, 'index of the division into folds, from 0; each divides in another way', at_least=0
    )
    repeats: int = _key(
        1, "divisions of a cross-validation, which is run with each if fold='all'", at_least=1
    )
    group: str = _key(
        '',
        'regular expression matched against relative paths: images with the same first capture '
        'group (or the same match, without one) are never split between train, val and test',
    )
    image_size: tuple[int, int] = _key((224, 224), '(height, width) of the input of the network')
    resize: str = _key(
        'stretch',
        'stretch: ignore the aspect ratio; pad: fit inside and pad with zeros; crop: resize to '
        "cover and crop the center; auto: the best of them by cross-validation if model.head='auto'"
        ', else stretch',
        choices=('stretch', 'pad', 'crop', 'auto'),
    )
    image_sizes: tuple[int, ...] = _key(
        (),
        "sides of square inputs that model.head='auto' compares with `image_size`, such as "
        '(128, 224, 320); (): none',
        at_least=1,
    )
    interpolation: str = _key(
        'auto',
        'of the resize; auto: the one that the backbone was trained with',
        choices=('auto', 'bilinear', 'bicubic'),
    )
    antialias: bool = _key(True, 'filter when shrinking, as Pillow does')
    on_bad_image: str = _key(
        'error',
        'an image that cannot be decoded is an error before training starts, or is skipped and '
        'counted',
        choices=('error', 'skip'),
    )
    background: tuple[int, int, int] = _key(
        (0, 0, 0), 'RGB color behind transparent pixels, 0 to 255', at_least=0, at_most=255
    )
    max_pixels: int = _key(
        178_956_970,
        'an image with more pixels counts as one that cannot be decoded (decompression bombs)',
        at_least=1,
    )
    audit: str = _key(
        'warn',
        'checks for images in two splits or under two labels and for class imbalance. warn: log '
        'what is found; error: stop before training if it would spoil the result; off: no checks',
        choices=('warn', 'error', 'off'),
    )


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random augmentation of training images; the first keys are named as in Keras.

    docs/data.md has the sources of the others and the order in which all are applied.
    """

    horizontal_flip: bool = _key(True, 'flip left to right with probability 1/2')
    vertical_flip: bool = _key(False, 'flip upside down with probability 1/2')
    right_angles: bool = _key(
        False,
        'rotate by 0, 90, 180 or 270 degrees with equal probability; image_size must be square',
    )
    crops: str = _key(
        '',
        'five: one of the four corners or the center, with equal probability; ten: the same, '
        'flipped with probability 1/2; validation and prediction use the center; empty: off',
        choices=('', 'five', 'ten'),
    )
    crop_fraction: float = _key(
        0.875,
        'side of such a crop as a fraction of the side of the image, which is first resized to '
        'image_size / crop_fraction',
        at_least=0.1,
        at_most=0.99,
    )
    rotation_range: float = _key(0.0, 'rotation in degrees, uniform in [-r, r]', at_least=0)
    width_shift_range: float = _key(
        0.0, 'horizontal shift as a fraction of the width, uniform in [-r, r]', at_least=0
    )
    height_shift_range: float = _key(
        0.0, 'vertical shift as a fraction of the height, uniform in [-r, r]', at_least=0
    )
    shear_range: float = _key(0.0, 'shear angle in degrees, uniform in [-r, r]', at_least=0)
    zoom_range: float = _key(
        0.0, 'zoom factor of each axis, uniform in [1 - r, 1 + r]', at_least=0, at_most=0.99
    )
    brightness_range: tuple[float, ...] = _key(
        (), '(low, high) of the brightness factor, such as (0.8, 1.2); (): off'
    )
    channel_shift_range: float = _key(
        0.0, 'value added to all channels, uniform in [-r, r], on the scale 0 to 255', at_least=0
    )
    fill_mode: str = _key(
        'nearest',
        'fills points outside the image after a geometric transformation',
        choices=('nearest', 'constant', 'reflect', 'wrap'),
    )
    cval: float = _key(0.0, "fill value if fill_mode='constant', 0 to 255", at_least=0, at_most=255)
    random_resized_crop: bool = _key(
        False, 'crop a random area and aspect ratio, resized to image_size, in place of `resize`'
    )
    random_crop_scale: tuple[float, ...] = _key(
        (0.08, 1.0), '(low, high) of its area as a fraction of the area of the image'
    )
    random_crop_ratio: tuple[float, ...] = _key(
        (3 / 4, 4 / 3), '(low, high) of its aspect ratio, width / height, log-uniform'
    )
    jitter_brightness: float = _key(
        0.0, 'brightness factor, uniform in [max(0, 1 - j), 1 + j]', at_least=0
    )
    jitter_contrast: float = _key(
        0.0, 'contrast factor about the mean gray value, in the same range', at_least=0
    )
    jitter_saturation: float = _key(0.0, 'saturation factor, in the same range', at_least=0)
    jitter_hue: float = _key(
        0.0,
        'hue shift as a fraction of the color circle, uniform in [-j, j]',
        at_least=0,
        at_most=0.5,
    )
    policy: str = _key(
        '',
        'randaugment, or trivialaugment (wide): random operations from a list of 14; empty: off',
        choices=('', 'randaugment', 'trivialaugment'),
    )
    randaugment_ops: int = _key(2, 'number of operations in sequence', at_least=1, at_most=8)
    randaugment_magnitude: int = _key(
        9, 'magnitude of the operations, 0 to 30', at_least=0, at_most=30
    )
    erasing: float = _key(
        0.0, 'probability that a random rectangle is erased', at_least=0, at_most=1
    )
    erasing_scale: tuple[float, ...] = _key(
        (0.02, 0.33), '(low, high) of its area as a fraction of the area of the image'
    )
    erasing_ratio: tuple[float, ...] = _key(
        (0.3, 3.3), '(low, high) of its aspect ratio, height / width, log-uniform'
    )
    erasing_fill: str = _key(
        'noise',
        'what it is filled with: random pixels, the mean color of ImageNet, or black',
        choices=('noise', 'mean', 'black'),
    )
    mixup: float = _key(0.0, 'alpha of the Beta distribution of mixup weights; 0: off', at_least=0)
    cutmix: float = _key(0.0, 'alpha of the Beta distribution of CutMix areas; 0: off', at_least=0)
    mix_probability: float = _key(
        1.0,
        'fraction of images that are mixed; if both are on, half of these by mixup, half by CutMix',
        at_least=0,
        at_most=1,
    )


@dataclasses.dataclass(frozen=True)
class WeightsConfig:
    """The pretrained parameters of the backbone."""

    source: str = _key(
        'imagenet',
        "'imagenet' (downloaded once), a local .h5, .keras, .onnx, .safetensors, .npz or .pth "
        "file, or 'random'",
    )
    preprocess: str = _key(
        'auto',
        'normalization of pixel values; auto: the one that the weights were trained with',
        choices=('auto', 'caffe', 'torch', 'rescale', 'tf', 'none'),
    )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network."""

    backbone: str = _key(
        'vgg16',
        "the pretrained network: vgg16, vgg19, or 'py:FILE.py:NAME' for one of your own; see "
        'tlflax/models/backbones.py',
    )
    head: str = _key(
        'conv',
        "conv, gap_linear, flatten_linear, mlp, 'py:FILE.py:NAME' for one of your own, or auto: "
        'the best by cross-validation on the training images; see tlflax/models/heads.py',
    )
    units: int = _key(64, 'width of the hidden dense layer of the conv and mlp heads', at_least=1)
    dropout: float = _key(
        0.5, 'dropout rate of the hidden units of the head', at_least=0, at_most=0.99
    )
    dtype: str = _key(
        'float32',
        'compute type of the backbone; parameters and accumulation stay float32. tensorfloat32 is '
        'float32 on a CPU and TF32 matrix products on a GPU',
        choices=('float32', 'tensorfloat32', 'bfloat16'),
    )


OPTIMIZERS = (
    'adabelief', 'adadelta', 'adagrad', 'adam', 'adamax', 'adamaxw', 'adamw', 'adan', 'amsgrad',
    'lamb', 'lars', 'lion', 'nadam', 'nadamw', 'novograd', 'radam', 'rmsprop', 'sgd', 'yogi',
)  # fmt: skip
"""The values of `optim.name`; tlflax/train/optim/names.py has what each takes."""


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Which parameters are trained, and how."""

    labels: tuple[tuple[str, str], ...] = _key(
        (('backbone/.*', 'frozen'), ('head/.*', 'head')),
        '(pattern, label) pairs: the first pattern that matches the path of a parameter gives its '
        "label; parameters labeled 'frozen' are not trained",
    )
    name: str = _key(
        'adam', 'the optimizer, by its name in optax; see docs/optim.md', choices=OPTIMIZERS
    )
    learning_rate: float = _key(1e-3, 'peak learning rate', at_least=0)
    learning_rates: tuple[tuple[str, float], ...] = _key(
        (),
        '(label, peak learning rate) pairs for labels with a learning rate of their own',
        at_least=0,
    )
    layer_decay: float = _key(
        1.0,
        'the learning rate of a layer of the backbone is multiplied by this for each layer with '
        'parameters above it, the head counting as one; 1: the same rate for all',
        at_least=0,
        at_most=1,
    )
    schedule: str = _key(
        'constant',
        'after warm-up: constant; cosine or linear decay to zero at train.epochs; plateau: lower '
        'where the training loss no longer falls; onecycle: up and down, without warm-up',
        choices=('constant', 'cosine', 'linear', 'onecycle', 'plateau'),
    )
    warmup_epochs: float = _key(0.0, 'epochs of linear warm-up from zero', at_least=0)
    plateau_factor: float = _key(
        0.1, "what schedule='plateau' multiplies with", at_least=1e-6, at_most=0.999
    )
    plateau_patience: int = _key(
        3, "epochs without a lower training loss after which schedule='plateau' does it", at_least=1
    )
    weight_decay: float = _key(
        0.0,
        'decoupled weight decay, scaled by the learning rate; added to the gradient by sgd, lars '
        'and adadelta',
        at_least=0,
    )
    decayed: tuple[str, ...] = _key(
        (),
        'patterns of the paths of parameters that weight decay applies to; (): those of two or '
        'more dimensions, so neither biases nor norms',
    )
    momentum: float = _key(0.9, 'momentum of sgd, rmsprop and lars', at_least=0, at_most=1)
    clip_norm: float = _key(
        0.0, 'largest global gradient norm of the parameters of a label; 0: no clipping', at_least=0
    )
    l2_sp: float = _key(
        0.0,
        'alpha of L2-SP: the loss that is minimized gains alpha / 2 * the squared distance of the '
        'trained parameters of the backbone from the pretrained ones; 0: off',
        at_least=0,
    )
    accumulate_steps: int = _key(
        1, 'batches whose mean gradient makes one update of the optimizer', at_least=1
    )
    ema_decay: float = _key(
        0.0,
        'decay, for each update, of the exponential moving average of the trained parameters, '
        'which validation and everything after training then uses; 0: off',
        at_least=0,
        at_most=1 - 1e-9,
    )
    sam_rho: float = _key(
        0.0,
        'radius of sharpness-aware minimization, which takes two gradients a step; 0: off',
        at_least=0,
    )
    statistics: str = _key(
        'frozen',
        'the statistics of BatchNorm in trained layers of the backbone stay those of the '
        'pretrained weights, or are updated; those of the head always are',
        choices=('frozen', 'updated'),
    )


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The training loss; evaluation always reports plain cross-entropy."""

    name: str = _key('cross_entropy', 'the loss', choices=('cross_entropy', 'focal'))
    gamma: float = _key(
        2.0, 'focusing parameter of the focal loss; 0 is cross-entropy', at_least=0, at_most=100
    )
    class_weights: str = _key(
        'none',
        "'balanced': num_examples / (num_classes * count); 'effective': by the effective number of "
        "samples; 'explicit': as in `weights_by_class`",
        choices=('none', 'balanced', 'effective', 'explicit'),
    )
    weights_by_class: tuple[tuple[str, float], ...] = _key(
        (), '(class name, weight) pairs; the weight of all other classes is 1', at_least=0
    )
    effective_beta: float = _key(
        0.999,
        'beta of the effective number of samples; 0: equal weights; near 1: balanced',
        at_least=0,
        at_most=1 - 1e-9,
    )
    logit_adjustment: float = _key(
        0.0,
        'tau: adds tau * log(class frequency) to the logits in training; 0: off',
        at_least=0,
        at_most=100,
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    epochs: int = _key(
        50, 'most epochs; 0: as many as about 1,500 steps take, 20 to 300', at_least=0
    )
    batch_size: int = _key(
        32,
        'images per step, over all devices; 0: a power of two, 8 to 256, with which an epoch has '
        'at least about 16 steps',
        at_least=0,
    )
    seed: int = _key(
        0,
        'random seed of initialization, data order, augmentation and dropout',
        at_least=0,
        at_most=2**31 - 1,
    )
    label_smoothing: float = _key(0.0, 'label smoothing of the loss', at_least=0, at_most=0.99)
    balanced_sampling: bool = _key(
        False, 'samples all classes with equal probability; the length of an epoch stays the same'
    )
    report: bool = _key(True, 'the training command writes report.html into the workdir')
    loggers: tuple[str, ...] = _key(
        ('tensorboard',),
        'what shows the run beside metrics.jsonl: tensorboard, wandb (Weights & Biases), mlflow; '
        '(): nothing. See docs/logging.md',
        choices=('tensorboard', 'wandb', 'mlflow'),
    )
    profile: str = _key(
        '',
        "steps of the run, counted from 0, that jax.profiler traces into the workdir's folder "
        "profile, such as '10:20' for ten of them",
    )
    shard_head: str = _key(
        'auto',
        'split the last layer of the head and its optimizer state over the devices by class, for '
        'very many classes; auto: where its parameters have at least 256 MiB',
        choices=('auto', 'True', 'False'),
    )
    phases: tuple[Phase, ...] = _key(
        (),
        'trainings one after another, each {key: value} of the keys of optim, train.epochs and the '
        'limits of early_stopping that it changes; each goes on from the best epoch so far',
    )


@dataclasses.dataclass(frozen=True)
class EarlyStoppingConfig:
    """When to stop; keys are named as in EarlyStopping of Keras, which counts no steps."""

    monitor: str = _key(
        'val_loss', 'the metric in metrics.jsonl that should improve; empty: never stop early'
    )
    min_delta: float = _key(1e-4, 'smallest change that counts as an improvement', at_least=0)
    patience: int = _key(3, 'epochs without improvement before training stops', at_least=0)
    patience_steps: int = _key(
        0, 'steps without improvement, in addition to `patience`, before it stops', at_least=0
    )
    min_steps: int = _key(0, 'steps before which training never stops early', at_least=0)
    mode: str = _key(
        'auto',
        'min: lower is better; max: higher is better; auto: max for accuracies, min for losses',
        choices=('auto', 'min', 'max'),
    )
    baseline: float = _key(math.nan, 'a value that the metric has to improve on; nan: off')
    start_from_epoch: int = _key(0, 'epochs before the metric is monitored', at_least=0)
    restore_best: bool = _key(
        True,
        'the final evaluation, and whatever restores the classifier, uses the best epoch; False: '
        'the last epoch',
    )

    @property
    def counts(self) -> str:
        """The checkpoint that counts, 'best' or 'last'."""
        return 'best' if self.restore_best else 'last'


@dataclasses.dataclass(frozen=True)
class FeaturesConfig:
    """The cache of frozen features."""

    cache: str = _key(
        'auto',
        'auto: cache features if training from them is exact; True: approximate continuous '
        'augmentation by a number of `views`; False: run the backbone on every batch',
        choices=('auto', 'True', 'False'),
    )
    layer: str = _key(
        'auto',
        'the layer of the backbone whose output is fed to the head; auto: the one that the '
        'backbone recommends',
    )
    layers: tuple[str, ...] = _key(
        (),
        'several layers whose outputs feed the head as one vector, each as LAYER:POOLING (flatten, '
        'mean, max, grid2 or grid4: means of 2x2 and 4x4 cells); empty: `layer` alone',
    )
    views: int = _key(
        8, 'augmented views of each image if cache=True and augmentation is continuous', at_least=1
    )
    dtype: str = _key(
        'float32',
        'storage type of features; the 16-bit types take half the space and are not exact',
        choices=('float16', 'bfloat16', 'float32'),
    )
    max_gb: float = _key(
        50.0, 'largest size of the cache; least recently used features are evicted', at_least=0
    )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are saved beside the end of each epoch, and what they hold."""

    minutes: float = _key(
        10.0,
        'minutes after which an epoch that goes on is saved too: what a killed process loses at '
        'most; 0: only at the end of epochs',
        at_least=0,
    )
    include_backbone: bool = _key(
        False, 'save the frozen weights in every checkpoint; False: only their digest'
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """The configuration of a run."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    weights: WeightsConfig = dataclasses.field(default_factory=WeightsConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    early_stopping: EarlyStoppingConfig = dataclasses.field(default_factory=EarlyStoppingConfig)
    features: FeaturesConfig = dataclasses.field(default_factory=FeaturesConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)

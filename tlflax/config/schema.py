"""The configuration's keys: every one with its type, default and meaning."""

import dataclasses
import math
from typing import Any


def _key(
    default: Any,
    doc: str,
    *,
    choices: tuple[Any, ...] = (),
    at_least: float | None = None,
    at_most: float | None = None,
) -> Any:
    """A dataclass field that carries its documentation and the values it may take."""
    metadata = {'doc': doc, 'choices': choices, 'at_least': at_least, 'at_most': at_most}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the images are and how they become arrays."""

    train: str = _key(
        '',
        "class folders; a manifest 'FILE.csv' or .jsonl; a pattern 'photos/{class}/*.jpg'; "
        "'tfds:NAME/SPLIT'; 'py:FILE.py:FUNCTION'; 's3://BUCKET/FOLDER' or another URL; "
        "'demo:traffic_lights/Train'. See docs/data.md",
    )
    val: str = _key('', 'the same for validation; empty: taken out of `train`')
    test: str = _key('', 'the same for a test split, evaluated once at the very end; empty: none')
    val_fraction: float = _key(
        0.0, 'part of each class of `train` kept for validation', at_least=0, at_most=0.9
    )
    test_fraction: float = _key(
        0.0, 'part of each class of `train` kept for the final test', at_least=0, at_most=0.9
    )
    folds: int = _key(0, 'cut `train` into so many parts of all classes; 0: do not', at_least=0)
    fold: int = _key(0, 'the part, from 0, that serves for validation', at_least=0)
    group: str = _key(
        '',
        'regular expression over relative paths: where its first group, or else the whole match, '
        'is the same, images show one scene and stay on one side of a split',
    )
    image_size: tuple[int, int] = _key((224, 224), '(height, width) given to the network')
    resize: str = _key(
        'stretch',
        'stretch: ignore the aspect ratio; pad: fit inside, zeros around; crop: cover, center crop',
        choices=('stretch', 'pad', 'crop'),
    )
    antialias: bool = _key(True, 'widen the bilinear filter when shrinking, as Pillow does')
    on_bad_image: str = _key(
        'error',
        'an image that cannot be decoded stops the run before it starts, or is skipped and counted',
        choices=('error', 'skip'),
    )
    background: tuple[int, int, int] = _key(
        (0, 0, 0), 'RGB, 0..255, behind transparent pixels', at_least=0, at_most=255
    )
    max_pixels: int = _key(
        178_956_970, 'an image of more pixels is a bad image (decompression bombs)', at_least=1
    )
    audit: str = _key(
        'warn',
        'images in two splits or under two labels, and classes out of balance: warn; error: what '
        'would spoil a result stops the run before it starts; off: do not look',
        choices=('warn', 'error', 'off'),
    )


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random changes to training images, with Keras's ImageDataGenerator names and meanings first.

    docs/data.md tells where the others come from and in which order all are applied.
    """

    horizontal_flip: bool = _key(True, 'mirror left-right with probability 1/2')
    vertical_flip: bool = _key(False, 'mirror top-bottom with probability 1/2')
    right_angles: bool = _key(
        False, 'turn by 0, 90, 180 or 270 degrees, equally likely; image_size must be square'
    )
    crops: str = _key(
        '',
        'five: one of the corners or the center, equally likely; ten: mirrored with probability '
        '1/2 too; validation and prediction then see the center',
        choices=('', 'five', 'ten'),
    )
    crop_fraction: float = _key(
        0.875,
        'a crop has this part of each side, and image_size pixels',
        at_least=0.1,
        at_most=0.99,
    )
    rotation_range: float = _key(0.0, 'degrees, uniform in [-r, r]', at_least=0)
    width_shift_range: float = _key(0.0, 'fraction of the width, uniform in [-r, r]', at_least=0)
    height_shift_range: float = _key(0.0, 'fraction of the height, uniform in [-r, r]', at_least=0)
    shear_range: float = _key(0.0, 'degrees, uniform in [-r, r]', at_least=0)
    zoom_range: float = _key(
        0.0, 'zoom in each direction, uniform in [1 - r, 1 + r]', at_least=0, at_most=0.99
    )
    brightness_range: tuple[float, ...] = _key((), '(low, high) factor, e.g. (0.8, 1.2); (): off')
    channel_shift_range: float = _key(0.0, 'in 0..255, one value for all channels', at_least=0)
    fill_mode: str = _key(
        'nearest',
        'what stands outside the image after a geometric change',
        choices=('nearest', 'constant', 'reflect', 'wrap'),
    )
    cval: float = _key(0.0, "the value for fill_mode='constant', 0..255", at_least=0, at_most=255)
    random_resized_crop: bool = _key(
        False, 'a random part of the image, resized, in place of all of it (resize is not used)'
    )
    random_crop_scale: tuple[float, ...] = _key((0.08, 1.0), '(low, high) of its part of the area')
    random_crop_ratio: tuple[float, ...] = _key(
        (3 / 4, 4 / 3), '(low, high) of its width by its height, log-uniform'
    )
    jitter_brightness: float = _key(0.0, 'factor, uniform in [max(0, 1 - j), 1 + j]', at_least=0)
    jitter_contrast: float = _key(0.0, 'the same of the distance from mean gray', at_least=0)
    jitter_saturation: float = _key(0.0, "the same of that from the pixel's gray", at_least=0)
    jitter_hue: float = _key(
        0.0, 'part of the color circle, uniform in [-j, j]', at_least=0, at_most=0.5
    )
    policy: str = _key(
        '',
        'operations drawn from a list of 14: randaugment, trivialaugment (wide)',
        choices=('', 'randaugment', 'trivialaugment'),
    )
    randaugment_ops: int = _key(2, 'operations one after another', at_least=1, at_most=8)
    randaugment_magnitude: int = _key(9, 'their strength, 0..30', at_least=0, at_most=30)
    erasing: float = _key(
        0.0, 'probability that a random rectangle is painted over', at_least=0, at_most=1
    )
    erasing_scale: tuple[float, ...] = _key((0.02, 0.33), '(low, high) of its part of the area')
    erasing_ratio: tuple[float, ...] = _key(
        (0.3, 3.3), '(low, high) of its height by its width, log-uniform'
    )
    erasing_fill: str = _key(
        'noise',
        'with what: random pixels, the mean color of ImageNet, or black',
        choices=('noise', 'mean', 'black'),
    )
    mixup: float = _key(
        0.0, 'alpha of the Beta distribution by which two images are added; 0: off', at_least=0
    )
    cutmix: float = _key(
        0.0, 'alpha of that by which a part is replaced by another image; 0: off', at_least=0
    )
    mix_probability: float = _key(
        1.0,
        'part of the images that are mixed; with mixup and cutmix, half of them each way',
        at_least=0,
        at_most=1,
    )


@dataclasses.dataclass(frozen=True)
class WeightsConfig:
    """The backbone's pretrained parameters."""

    source: str = _key(
        'imagenet',
        "'imagenet' (downloaded once), a local .h5/.keras/.onnx/.safetensors/.npz/.pth file, "
        "or 'random'",
    )
    preprocess: str = _key(
        'auto',
        "what is done to pixels before the network; 'auto': what the weights were trained with",
        choices=('auto', 'caffe', 'torch', 'rescale'),
    )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network."""

    backbone: str = _key('vgg16', 'the pretrained network', choices=('vgg16',))
    head: str = _key('conv', 'conv, gap_linear, flatten_linear or mlp: see tlflax/models/heads.py')
    units: int = _key(64, 'width of the dense hidden layer (conv and mlp heads)', at_least=1)
    dropout: float = _key(0.5, 'dropped fraction of hidden units', at_least=0, at_most=0.99)
    dtype: str = _key(
        'float32',
        'compute type of the backbone; parameters and sums stay float32; tensorfloat32 is float32 '
        'on a CPU, TF32 products on a GPU',
        choices=('float32', 'tensorfloat32', 'bfloat16'),
    )


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Which parameters learn, and how."""

    labels: tuple[tuple[str, str], ...] = _key(
        (('backbone/.*', 'frozen'), ('head/.*', 'head')),
        "(pattern over the parameter's path, label), first match wins; 'frozen' never changes",
    )
    name: str = _key('adam', 'the optimizer', choices=('adam', 'adamw', 'sgd'))
    learning_rate: float = _key(1e-3, 'peak learning rate', at_least=0)
    learning_rates: tuple[tuple[str, float], ...] = _key(
        (), '(label, its own peak learning rate) pairs'
    )
    schedule: str = _key(
        'constant',
        'after warm-up: constant, or cosine decay to zero over train.epochs',
        choices=('constant', 'cosine'),
    )
    warmup_epochs: float = _key(0.0, 'linear warm-up from zero, in epochs', at_least=0)
    weight_decay: float = _key(0.0, 'decoupled decay (adamw, sgd), times learning rate', at_least=0)
    momentum: float = _key(0.9, 'for sgd', at_least=0, at_most=1)
    clip_norm: float = _key(0.0, 'largest global norm of a label group; 0: off', at_least=0)


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What training minimizes; evaluation always reports plain cross-entropy."""

    name: str = _key('cross_entropy', 'the loss', choices=('cross_entropy', 'focal'))
    gamma: float = _key(2.0, 'of the focal loss: 0 is cross-entropy', at_least=0, at_most=100)
    class_weights: str = _key(
        'none',
        "'balanced': n / (classes * count); 'effective': by the effective number of samples; "
        "'explicit': by `weights_by_class`",
        choices=('none', 'balanced', 'effective', 'explicit'),
    )
    weights_by_class: tuple[tuple[str, float], ...] = _key(
        (), '(class name, weight) pairs; classes that are not named weigh 1'
    )
    effective_beta: float = _key(
        0.999, '0: equal weights; towards 1: balanced', at_least=0, at_most=1 - 1e-9
    )
    logit_adjustment: float = _key(
        0.0, 'tau: add tau * log(class frequency) to training logits', at_least=0, at_most=100
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    epochs: int = _key(50, 'at most so many passes over the training images', at_least=1)
    batch_size: int = _key(32, 'images per step, over all devices', at_least=1)
    seed: int = _key(
        0, 'fixes initialization, order, augmentation, dropout', at_least=0, at_most=2**31 - 1
    )
    label_smoothing: float = _key(0.0, 'of the training loss', at_least=0, at_most=0.99)
    balanced_sampling: bool = _key(
        False, 'each epoch draws as many images as there are, all classes equally likely'
    )


@dataclasses.dataclass(frozen=True)
class EarlyStoppingConfig:
    """When to stop; Keras's EarlyStopping names and meanings."""

    monitor: str = _key('val_loss', "a metric of the epoch's record; '': never stop early")
    min_delta: float = _key(1e-4, 'smallest change that counts as an improvement', at_least=0)
    patience: int = _key(3, 'epochs without improvement before stopping', at_least=0)
    mode: str = _key(
        'auto', 'auto: max for accuracies, min for losses', choices=('auto', 'min', 'max')
    )
    baseline: float = _key(math.nan, 'a value that must be beaten; nan: none')
    start_from_epoch: int = _key(0, 'epochs before monitoring starts', at_least=0)
    restore_best: bool = _key(True, 'evaluate the test split with the best epoch, not the last')


@dataclasses.dataclass(frozen=True)
class FeaturesConfig:
    """The frozen-feature cache."""

    cache: str = _key(
        'auto',
        "'auto': whenever it is exact; True: approximate continuous augmentation by `views`; "
        'False: run the backbone on every batch',
        choices=('auto', 'True', 'False'),
    )
    layer: str = _key('block5_pool', 'the backbone output that feeds the head')
    views: int = _key(8, 'sampled views per image when augmentation is continuous', at_least=1)
    dtype: str = _key(
        'float32',
        'type in which features are stored; 16 bits take half the room and are not exact',
        choices=('float16', 'bfloat16', 'float32'),
    )
    max_gb: float = _key(50.0, 'largest store; what was used least recently goes first', at_least=0)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """What is saved."""

    include_backbone: bool = _key(
        False, 'copy frozen weights into each checkpoint instead of naming them by digest'
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole experiment."""

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

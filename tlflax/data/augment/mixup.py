"""MixUp and CutMix: which image an image is mixed with, and how; no TensorFlow.

MixUp (Zhang et al. 2017, arXiv:1710.09412) adds two images, CutMix (Yun et al. 2019,
arXiv:1905.04899) puts a rectangle of one into the other; the label is mixed as the pixels are. The
papers mix the images of a batch with each other. Here the partner comes from the whole table, by a
permutation for each epoch, so that pixels do not depend on the batch size or the processes. It is
augmented as when it is visited itself in that epoch, and is read a second time for that.
"""

import dataclasses

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64

from tlflax.config.schema import AugmentConfig
from tlflax.data.augment import random_bits

UNSEEN = 1 / 512  # a smaller part of another image changes no rounded pixel
_NODES = 2**14


@dataclasses.dataclass(frozen=True)
class Mixing:
    """How some images are mixed.

    Attributes:
        partner: The row each is mixed with.
        mix: The fraction of each image in the mixture, of its pixels and of its label.
        box: (top, left, height, width) of CutMix's rectangle; empty for MixUp.
    """

    partner: Int64[np.ndarray, ' n']
    mix: Float32[np.ndarray, ' n']
    box: Int32[np.ndarray, 'n 4']

    def select(self, indices: Int64[np.ndarray, ' m']) -> 'Mixing':
        """Returns the mixing of these images."""
        return Mixing(self.partner[indices], self.mix[indices], self.box[indices])


def active(augment: AugmentConfig) -> bool:
    """Returns whether any images are mixed."""
    return bool((augment.mixup or augment.cutmix) and augment.mix_probability)


def draw(
    augment: AugmentConfig, seed: int, epoch: int, n: int, image_size: tuple[int, int]
) -> Mixing | None:
    """Draws how each of `n` rows is mixed in an epoch; returns None if no images are mixed.

    With both kinds active, each row has one or the other with probability 1/2.

    Args:
        augment: The alphas: the fraction is drawn from Beta(alpha, alpha).
        seed: The run's seed.
        epoch: Counted from 0.
        n: Rows of the table; only the partner depends on it.
        image_size: (height, width) of the images.
    """
    if not active(augment):
        return None
    partner = random_bits.permutation(seed, epoch, 'partner', n)
    part = random_bits.units(seed, epoch, 'mix', n, 1)[:, 0]
    mixed = random_bits.units(seed, epoch, 'mixed', n, 1)[:, 0] < augment.mix_probability
    cut = random_bits.below(seed, epoch, 'cutmix', n, 1, 2)[:, 0] == 1
    if not (augment.mixup and augment.cutmix):
        cut[:] = bool(augment.cutmix)
    mix, box = np.ones(n), np.zeros((n, 4), np.int32)
    if augment.mixup:
        rows = mixed & ~cut
        mix[rows] = beta_quantile(part[rows], augment.mixup)
    if augment.cutmix:
        rows = mixed & cut
        keep = beta_quantile(part[rows], augment.cutmix)
        center = random_bits.units(seed, epoch, 'cutmix_centre', n, 2)[rows]
        box[rows] = cutmix_boxes(keep, center, image_size)
        mix[rows] = 1 - box[rows, 2] * box[rows, 3] / (image_size[0] * image_size[1])
    return Mixing(partner, mix.astype(np.float32), box)


def cutmix_boxes(
    keep: Float64[np.ndarray, ' n'], center: Float64[np.ndarray, 'n 2'], image_size: tuple[int, int]
) -> Int32[np.ndarray, 'n 4']:
    """Returns rectangles of the fraction 1 - `keep` of the image's area, cut off at its edges.

    As in the paper's `rand_bbox`, any pixel can be their center.

    Args:
        keep: The fraction of the image that is not replaced, 0..1.
        center: From top and left, 0..1.
        image_size: (height, width).
    """
    size = np.array(image_size)
    half = (size * np.sqrt(1 - keep)[:, None]).astype(np.int64) // 2
    middle = np.minimum((center * size).astype(np.int64), size - 1)
    first, last = np.clip(middle - half, 0, size), np.clip(middle + half, 0, size)
    return np.concatenate([first, last - first], axis=1).astype(np.int32)


def beta_quantile(uniform: Float64[np.ndarray, ' n'], alpha: float) -> Float64[np.ndarray, ' n']:
    """Returns quantiles of Beta(alpha, alpha), to about 1e-6.

    The density is integrated by the trapezoidal rule from 0 to 1/2; the other half is symmetric. If
    it is infinite at 0 (alpha < 1), it is integrated over x^alpha, in which it is finite.
    """
    power = min(alpha, 1.0)
    nodes = np.linspace(0.0, 0.5**power, _NODES)
    x = nodes ** (1 / power)
    density = x ** (alpha - power) * (1 - x) ** (alpha - 1)
    area = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    lower = np.interp(np.minimum(uniform, 1 - uniform), area / (2 * area[-1]), nodes)
    value = lower ** (1 / power)
    return np.where(uniform < 0.5, value, 1 - value)

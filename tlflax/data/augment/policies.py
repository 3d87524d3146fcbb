"""RandAugment and TrivialAugment: which operations, and how strong; no TensorFlow.

RandAugment (Cubuk et al. 2019, arXiv:1909.13719) applies some operations one after another, all
with one strength. TrivialAugment (Müller & Hutter 2021, arXiv:2103.10158, its 'wide' set) applies a
single one with any strength. Operations and strengths are those of torchvision's `RandAugment` and
`TrivialAugmentWide`, which draw an operation, 31 levels of strength and a sign, all uniformly.
"""

import numpy as np
from jaxtyping import Float32, Float64, Int64

from tlflax.config.schema import AugmentConfig
from tlflax.data.augment import geometry, random_bits

GEOMETRIC = ('shear_x', 'shear_y', 'translate_x', 'translate_y', 'rotate')
ENHANCING = ('brightness', 'color', 'contrast', 'sharpness')
OPS = (
    *('identity', *GEOMETRIC, *ENHANCING),
    *('posterize', 'solarize', 'autocontrast', 'equalize'),
)
STRONGEST = 30  # the highest level


def draw(
    augment: AugmentConfig, seed: int, epoch: int, n: int
) -> dict[str, Int64[np.ndarray, 'n k']]:
    """Draws `policy_op` (position in `OPS`) and `policy_level` (-30..30); see `sampling.draw`."""
    each = augment.randaugment_ops if augment.policy == 'randaugment' else 1
    level = np.full((n, each), augment.randaugment_magnitude)
    if augment.policy == 'trivialaugment':
        level = random_bits.below(seed, epoch, 'policy_level', n, each, STRONGEST + 1)
    sign = 1 - 2 * random_bits.below(seed, epoch, 'policy_sign', n, each, 2)
    return {
        'policy_op': random_bits.below(seed, epoch, 'policy_op', n, each, len(OPS)),
        'policy_level': level * sign,
    }


def values(
    policy: str,
    op: Int64[np.ndarray, '...'],
    level: Int64[np.ndarray, '...'],
    image_size: tuple[int, int],
) -> Float32[np.ndarray, '...']:
    """Returns the argument of each operation.

    Args:
        policy: 'randaugment' or 'trivialaugment'.
        op: Positions in `OPS`.
        level: -30..30; the sign matters if an operation has two directions.
        image_size: (height, width).

    Returns:
        A shear's slope, pixels of a translation, degrees counterclockwise, the factor of an
        enhancement, bits kept, or the lowest level inverted; 0 for the other operations.
    """
    table = _strengths(policy, image_size)[op, abs(level)]
    signed = np.isin(op, [OPS.index(name) for name in GEOMETRIC + ENHANCING])
    table = np.where(signed & (level < 0), -table, table)
    enhancing = np.isin(op, [OPS.index(name) for name in ENHANCING])
    return np.where(enhancing, 1 + table, table).astype(np.float32)


def _strengths(policy: str, image_size: tuple[int, int]) -> Float64[np.ndarray, 'ops 31']:
    height, width = image_size
    levels = np.arange(STRONGEST + 1) / STRONGEST
    wide = policy == 'trivialaugment'
    table = {'shear_x': (0.99 if wide else 0.3) * levels, 'rotate': (135 if wide else 30) * levels}
    table['shear_y'] = table['shear_x']
    for name, size in (('translate_x', width), ('translate_y', height)):
        table[name] = np.trunc((32 if wide else 150 / 331 * size) * levels)
    table |= dict.fromkeys(ENHANCING, (0.99 if wide else 0.9) * levels)
    table['posterize'] = 8 - np.round((6 if wide else 4) * levels)
    table['solarize'] = 255 * (1 - levels)
    return np.stack([table.get(name, np.zeros_like(levels)) for name in OPS])


def matrices(
    op: Int64[np.ndarray, '...'], value: Float32[np.ndarray, '...'], image_size: tuple[int, int]
) -> Float64[np.ndarray, '... 2 3']:
    """Returns the maps from output to input pixels of the geometric operations; else identities.

    As in Pillow, a shear leaves the upper and the left edge of the image where they are.
    """
    amount = {name: np.where(op == OPS.index(name), value, 0.0).ravel() for name in GEOMETRIC}
    result = geometry.affine_matrices({'rotation': amount['rotate']}, image_size)
    result[:, 0, 1] += amount['shear_y']
    result[:, 1, 0] += amount['shear_x']
    # The edge is half a pixel from the first pixel's center.
    result[:, 0, 2] += amount['shear_y'] / 2 + amount['translate_y']
    result[:, 1, 2] += amount['shear_x'] / 2 + amount['translate_x']
    return result.reshape(*op.shape, 2, 3)

"""A small network with BatchNorm and residuals, for check_accelerator.py."""

from collections.abc import Mapping

from flax import nnx
from jaxtyping import Array

from tlflax.models.backbones import from_layers


class Block(nnx.Module):
    """A convolution of stride 2 with BatchNorm, and a second one that is added to its output.

    Args:
        inward: Channels of the input.
        outward: Channels of the output.
        rngs: Random keys.
    """

    def __init__(self, inward: int, outward: int, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(inward, outward, (3, 3), (2, 2), use_bias=False, rngs=rngs)
        self.norm1 = nnx.BatchNorm(outward, momentum=0.9, rngs=rngs)
        self.conv2 = nnx.Conv(outward, outward, (3, 3), use_bias=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(outward, momentum=0.9, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Maps [b, h, w, inward] to [b, h/2, w/2, outward]."""
        x = nnx.relu(self.norm1(self.conv1(x)))
        return nnx.relu(x + self.norm2(self.conv2(x)))


def layers(rngs: nnx.Rngs) -> Mapping[str, nnx.Module]:
    """Returns four blocks."""
    widths = (3, 16, 32, 64, 128)
    return {f'block{i}': Block(widths[i - 1], widths[i], rngs) for i in range(1, 5)}


normalized = from_layers('normalized', layers)

"""A small network with BatchNorm, as a backbone of one's own."""

from flax import nnx

from tlflax.models.backbones import from_layers


class Block(nnx.Module):
    def __init__(self, features_in, features_out, rngs):
        self.conv = nnx.Conv(features_in, features_out, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(features_out, momentum=0.9, rngs=rngs)

    def __call__(self, x):
        return nnx.max_pool(nnx.relu(self.norm(self.conv(x))), (2, 2), (2, 2))


def layers(rngs):
    return {
        'block1': Block(3, 8, rngs),
        'block2': Block(8, 16, rngs),
        'block3': Block(16, 32, rngs),
    }


toy = from_layers('toy', layers)

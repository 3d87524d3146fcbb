"""What tests of trees and labels share."""

import numpy as np
import pytest


@pytest.fixture
def params():
    """A small tree in the shape of a classifier's."""
    rng = np.random.default_rng(0)

    def layer(*shape):
        return {
            'kernel': rng.normal(size=shape).astype(np.float32),
            'bias': rng.normal(size=shape[-1:]).astype(np.float32),
        }

    return {
        'backbone': {'block1_conv1': layer(3, 3, 3, 4), 'block5_conv1': layer(3, 3, 4, 8)},
        'head': {'dense': layer(8, 5), 'predictions': layer(5, 3)},
    }

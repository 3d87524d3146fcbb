"""Features of a split as one array on the host, for models that are fitted at once."""

import numpy as np
from jaxtyping import Float, Int

from tlflax.features.batches import Source
from tlflax.features.sources import require_on_device


def read(source: Source) -> tuple[Float[np.ndarray, 'n ...'], Int[np.ndarray, ' n']]:
    """Returns the features, f32, and the labels of all images in order, as evaluation sees them.

    Raises:
        UserError: The features are not kept on the device.
    """
    cached = require_on_device(source)
    rows = cached.eval_rows()
    rows = rows[rows >= 0]
    features = np.asarray(cached.on_device.features)[rows].astype(np.float32)
    return features, np.asarray(cached.on_device.label)[rows]

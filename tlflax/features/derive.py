"""Features from those of lower layers that the cache holds: the images are not needed again.

A lower layer's features of the same image and view, with the same weights, are what the network
computes on the way. They must be exact, so only those kept in float32 serve.
"""

import contextlib
import dataclasses
import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Float, Int, UInt64

from tlflax.data.images.format import ImageFormat
from tlflax.features.cache import segments
from tlflax.features.cache.store import Store
from tlflax.features.programs import Rest, batch_size, has_fast_program, rest_program, work
from tlflax.features.spaces import describe_space
from tlflax.models.base.backbone import IMAGE
from tlflax.models.base.modules import Variables
from tlflax.models.classifier import Classifier
from tlflax.utils.errors import UserError
from tlflax.utils.parallel.mesh import pad

_EXACT = 'float32'
_FAST = 2.0  # about so many times the speed of the network's plain program has the fast one


class Part(NamedTuple):
    """Features that are computed from those of one lower layer.

    Attributes:
        layer: The layer.
        store: Its features.
        rows: Their row numbers in it.
        which: Positions among the features asked for.
    """

    layer: str
    store: Store
    rows: Int[np.ndarray, ' m']
    which: Int[np.ndarray, ' m']

    def batches(self) -> Generator[tuple[Float[np.ndarray, 'b ...'], int], None, None]:
        """Yields the lower features in batches of one shape, and how many rows of each are real."""
        size = batch_size()
        for first in range(0, len(self.rows), size):
            values = self.store.read(self.rows[first : first + size])
            yield pad(values, size), len(values)


@dataclasses.dataclass(frozen=True)
class LowerLayers:
    """Finds features at layers below the cut that differ in nothing else.

    Attributes:
        image_format: How images are read.
        classifier: Its preprocessing, backbone, cut, taps and compute type.
        weights_digest: The digest of the backbone's variables.
        backbone: The variables.
        mesh: The devices.
    """

    image_format: ImageFormat
    classifier: Classifier
    weights_digest: str
    backbone: Variables
    mesh: Mesh

    def find(
        self, root: Path, wanted: UInt64[np.ndarray, 'n 2'], opened: contextlib.ExitStack
    ) -> list[Part]:
        """Returns what can be computed from features of lower layers, the nearest layer first.

        Args:
            root: The folder of all spaces.
            wanted: The keys of the features.
            opened: Closes the stores of the parts; until then nobody evicts their rows.
        """
        parts: list[Part] = []
        missing = np.arange(len(wanted))
        for layer, shape, space in self._kept(root):
            try:
                store = opened.enter_context(Store(root, space, shape, _EXACT))
                rows = store.lookup(wanted[missing])
            except UserError as error:  # they may not be read; the images serve as well
                logging.info('features at %s are left out: %s', layer, error)
                continue
            found = rows >= 0
            if found.any():
                parts.append(Part(layer, store, rows[found], missing[found]))
            missing = missing[~found]
            if not len(missing):
                break
        return parts

    def program(self, layer: str) -> Rest:
        """Returns the program that computes features from those of a lower layer."""
        size = self.image_format.image_size
        return rest_program(self.backbone, self.classifier, layer, image_size=size, mesh=self.mesh)

    def _kept(self, root: Path) -> Iterator[tuple[str, tuple[int, ...], dict[str, object]]]:
        """Yields the layers with a space on disk, from the highest down: name, row shape, space."""
        model, size = self.classifier, self.image_format.image_size
        if model.taps:  # the rows of taps are pooled: nothing follows from them
            return
        described = _descriptions(root)
        for layer in reversed(model.backbone.between(IMAGE, model.cut)[:-1]):
            lower = dataclasses.replace(model, cut=layer)
            space = describe_space(self.image_format, lower, weights_digest=self.weights_digest)
            if space in described and self._pays(layer):
                yield layer, model.backbone.feature_shape(size, layer), space

    def _pays(self, layer: str) -> bool:
        """Whether computing from a layer is faster than from images by the fast program."""
        if not has_fast_program(self.classifier):
            return True
        size = self.image_format.image_size
        rest, whole = (work(self.classifier, start, size) for start in (layer, IMAGE))
        return rest * _FAST <= whole


def _descriptions(root: Path) -> list[object]:
    """Returns the descriptions of all spaces on disk whose rows are exact."""
    found = []
    for name in segments.names(root):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            whole = json.loads((root / name / 'space.json').read_text())
            if whole['dtype'] == _EXACT:
                found.append(whole['space'])
    return found

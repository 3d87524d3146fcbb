"""A trained classifier as the service uses it: batches of image files to answers."""

import io
from collections.abc import Iterator, Sequence
from typing import Literal

import jax
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from tlflax.data.images import decode
from tlflax.features import programs
from tlflax.inference import heat_maps
from tlflax.inference.prediction import Prediction
from tlflax.inference.trained import Trained
from tlflax.report.gather import heat
from tlflax.utils import cpu
from tlflax.utils.errors import UserError
from tlflax.utils.files import JsonObject

Kind = Literal['predict', 'heat_map']
Answer = Prediction | heat_maps.Map | UserError
"""Of an image file: its prediction or its heat map, or why it has none."""

_SIDES = (256, 512)  # pixels of the longer side of a picture with a heat map, least and most
_IMAGES = 16  # that a few cores compute at once; 32 take 5 % less each, and seconds to prepare
_FEW_CORES = 4  # of more, 16 images would not keep all busy
_MAPS = 8  # heat maps that are computed at once


class Classifier:
    """Answers for batches of image files.

    Args:
        trained: The classifier.
        calibrated: Apply the temperature that fits the validation images.

    Raises:
        UserError: No temperature is known.
    """

    def __init__(self, trained: Trained, *, calibrated: bool) -> None:
        if calibrated:
            trained.known_temperature()
        self._trained, self._calibrated = trained, calibrated
        full = programs.batch_size()
        few = jax.default_backend() == 'cpu' and cpu.cores() <= _FEW_CORES
        most = _IMAGES if few else full
        self.batch_sizes: dict[Kind, int] = {'predict': most, 'heat_map': _MAPS}
        self.no_heat_maps = heat_maps.none(trained)

    def answers(self, kind: Kind, files: Sequence[bytes]) -> list[Answer]:
        """Returns an answer for each image file; a bad one does not spoil the others."""
        if kind == 'predict':
            found = self._trained.predict_each(files, calibrated=self._calibrated)
            return [_finite(one) for one in found]
        maps = heat_maps.of_images(self._trained, files)
        return [one if isinstance(one, UserError) else one[1] for one in maps]

    def picture(self, file: bytes, found: Float[np.ndarray, 'h w']) -> bytes:
        """Returns a PNG of an image, as the classifier sees it, under its heat map.

        An image that the classifier stretches is shown with its own proportions.

        Args:
            file: An image file that has a heat map.
            found: The heat map.
        """
        stream = io.BytesIO()
        Image.fromarray(heat.blended(self._seen(file), found)).save(stream, 'PNG')
        return stream.getvalue()

    def _seen(self, file: bytes) -> UInt8[np.ndarray, 'h w 3']:
        form = self._trained.sources.image_format
        pixels = decode.read_image(
            file, background=form.background, max_pixels=form.max_pixels, side=_SIDES[1]
        )
        augment = self._trained.config.augment
        if form.resize != 'stretch' or augment.crops:
            return heat.as_seen(pixels, form, augment)
        longer = max(pixels.shape[:2])
        scale = min(max(longer, _SIDES[0]), _SIDES[1]) / longer
        size = [max(1, round(side * scale)) for side in pixels.shape[1::-1]]
        return np.asarray(Image.fromarray(pixels).resize(size))

    def warm_up(self) -> Iterator[None]:
        """Compiles every program, one at each step."""
        for kind, most in self.batch_sizes.items():
            full = programs.batch_size()
            sizes = {size for n in range(1, most + 1) for size in programs.batch_sizes(n, full)}
            for size in sorted(sizes) if kind == 'predict' or not self.no_heat_maps else ():
                for one in self.answers(kind, [_noise(number) for number in range(size)]):
                    if isinstance(one, UserError):
                        raise one
                yield

    def about(self) -> JsonObject:
        """Returns what clients may know: names and sizes, and no path of this machine."""
        trained, config = self._trained, self._trained.config
        return {
            'classes': list(trained.class_names),
            'image_size': list(config.data.image_size),
            'resize': config.data.resize,
            'step': trained.step,
            'backbone': trained.classifier.backbone.name,
            'head': _public(config.model.head),
            'calibrated': self._calibrated,
            'heat_maps': not self.no_heat_maps,
            'max_pixels': config.data.max_pixels,
        }

    @property
    def step(self) -> int:
        """The checkpoint's step."""
        return self._trained.step


def _finite(one: Prediction | UserError) -> Prediction | UserError:
    if isinstance(one, UserError) or np.isfinite(list(one.probabilities.values())).all():
        return one
    return UserError('gives probabilities that are not numbers', fix='train again')


def _public(head: str) -> str:
    """Returns the name of a head without the path of its file, or the branches of an ensemble."""
    if head.startswith('py:'):
        return head.rpartition(':')[2]
    return head.partition(':')[0]


def _noise(seed: int) -> bytes:
    """Returns an image file that no cache has."""
    pixels = np.random.default_rng([seed, 0x7E57]).integers(0, 256, (16, 16, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, 'PNG')
    return stream.getvalue()

"""The sets of images that results.md is about: the demo, and folders that are given.

Shared by reproduce.py and study_stopping.py.
"""

import dataclasses
import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from tlflax.config.schema import Config
from tlflax.train import setup

ROOT = Path(__file__).resolve().parent.parent
HEADS = ('conv', 'mlp', 'gap_linear', 'flatten_linear')
CREDITS = {
    'traffic lights': 'the demo; MIT self-driving car course, CC BY-SA 4.0',
    'signs': 'ardamavi/Sign-Language-Digits-Dataset, Apache 2.0',
    'clothing': 'alexeygrigorev/clothing-dataset-small, CC0',
}
QUICK_LAYER, QUICK_SIDE, QUICK_BATCH = 'block3_pool', 32, 8


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Training and validation images.

    Attributes:
        name: What the tables call it.
        train, val: As in the configuration.
        side: Height and width of the input of the network.
        quick: Random weights and few steps, so that a run takes a second.
    """

    name: str
    train: str
    val: str
    side: int
    quick: bool = False

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads that are trained by steps."""
        return HEADS[-1:] if self.quick else HEADS

    def raw(self, recipe: str, **changes: Any) -> ConfigDict:
        """Returns a configuration on these images.

        Args:
            recipe: A file in configs/, without its ending.
            **changes: Values by key, with `__` for the dot.
        """
        config = runpy.run_path(str(ROOT / 'configs' / f'{recipe}.py'))['get_config']()
        config.data.train, config.data.val = self.train, self.val
        config.data.image_size, config.data.audit = (self.side, self.side), 'off'
        if self.quick:
            config.weights.source, config.features.layer = 'random', QUICK_LAYER
            config.train.batch_size, config.train.epochs = QUICK_BATCH, 2
        for key, value in changes.items():
            section, name = key.split('__')
            config[section][name] = value
        return config

    def configure(self, recipe: str, **changes: Any) -> Config:
        """Returns the checked configuration of `raw`."""
        return setup.configure(self.raw(recipe, **changes))


DEMO = ImageSet('traffic lights', 'demo:traffic_lights/Train', 'demo:traffic_lights/Test', 224)


def parse(texts: list[str], *, demo: bool, quick: bool) -> list[ImageSet]:
    """Returns the sets that arguments FOLDER[@SIDE] name, after the demo if it is wanted."""
    found = [DEMO] if demo else []
    for text in texts:
        folder, _, side = text.partition('@')
        path = Path(folder)
        train, val = str(path / 'train'), str(path / 'val')
        size = QUICK_SIDE if quick else int(side or 224)
        found.append(ImageSet(path.name, train, val, size, quick))
    return found

"""Which views of its images a split needs, and which of them each epoch draws.

A *view* is one outcome of augmenting an image. If an augmentation has finitely many outcomes
(flips, right angles, corner crops), they are the views, and training from their features equals
training from images. Continuous augmentation is approximated by `features.views` sampled views.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Int, UInt64

from tlflax.config.schema import AugmentConfig
from tlflax.data.augment import sampling
from tlflax.features.cache.keys import row_keys


@dataclasses.dataclass(frozen=True)
class Views:
    """The views of a table's images.

    Attributes:
        names: The name of each view, the same for every image; or one name for each image.
        draws: The augmentation parameters of every image, for each view.
        augment: The settings they were drawn with.
        choose: Epoch to the number of each image's view, i64[n].
        exact: Whether drawing from the views equals augmenting in every epoch.
    """

    names: Sequence[str | Sequence[str]]
    draws: Sequence[sampling.Draws]
    augment: AugmentConfig
    choose: Callable[[int], Int[np.ndarray, ' n']]
    exact: bool

    def drawn(self, view: Int[np.ndarray, ' m'], index: Int[np.ndarray, ' m']) -> sampling.Draws:
        """Returns the augmentation parameters of view `view[j]` of image `index[j]` for each j."""
        return {
            name: np.stack([draws[name] for draws in self.draws])[view, index]
            for name in self.draws[0]
        }


def fixed_views(views: Sequence[sampling.View], augment: AugmentConfig, n: int) -> Views:
    """Returns the given views of each of `n` images; every epoch shows the first."""
    return Views(
        names=[sampling.describe(view, augment) for view in views],
        draws=[sampling.repeat(view, n) for view in views],
        augment=augment,
        choose=lambda epoch: np.zeros(n, np.int64),
        exact=True,
    )


def training_views(augment: AugmentConfig, *, seed: int, n: int, samples: int) -> Views:
    """Returns the views from which each epoch's images are drawn.

    Args:
        augment: The augmentations.
        seed: The run's seed.
        n: Number of images.
        samples: Views of each image if the outcomes are endless.
    """
    outcomes = sampling.outcomes(augment)
    if outcomes is not None:
        return dataclasses.replace(
            fixed_views(outcomes, augment, n),
            choose=lambda epoch: sampling.outcome_numbers(
                sampling.draw(augment, seed, epoch, n), outcomes, n
            ),
        )
    # Epochs beyond any real one, so that no view equals what some epoch would draw.
    draws = [sampling.draw(augment, seed, 2**32 + k, n) for k in range(samples)]
    settings = _changed(augment)
    return Views(
        names=[[f'{settings} {row}' for row in _rows(view, n)] for view in draws],
        draws=draws,
        augment=augment,
        choose=lambda epoch: sampling.choose(seed, epoch, n, samples),
        exact=False,
    )


def _changed(augment: AugmentConfig) -> str:
    """Returns as text the settings that differ from their defaults; draws do not hold them all."""
    return ' '.join(
        f'{field.name}={value}'
        for field in dataclasses.fields(augment)
        if (value := getattr(augment, field.name)) != field.default
    )


def joined(separate: Sequence[Views]) -> list[Views]:
    """Returns views that choose as the given ones do, all from the same names and draws."""
    if all(views.exact for views in separate):  # they have the same outcomes
        return list(separate)
    names = [name for views in separate for name in views.names]
    draws = [draw for views in separate for draw in views.draws]
    starts = np.cumsum([0] + [len(views.names) for views in separate])

    def choose(views: Views, start: int) -> Callable[[int], Int[np.ndarray, ' n']]:
        return lambda epoch: start + views.choose(epoch)

    return [
        dataclasses.replace(views, names=names, draws=draws, choose=choose(views, int(start)))
        for views, start in zip(separate, starts, strict=False)
    ]


def _rows(draws: sampling.Draws, n: int) -> list[str]:
    """Returns each image's parameters as text."""
    names = sorted(draws)
    columns = [draws[name].tolist() for name in names]
    return [str(list(zip(names, row, strict=True))) for row in zip(*columns, strict=True)] or [
        ''
    ] * n


def view_keys(
    digests: Sequence[str] | np.ndarray, name: str | Sequence[str]
) -> UInt64[np.ndarray, 'n 2']:
    """Returns the store's keys of one view of some images."""
    if isinstance(name, str):
        return row_keys(digests, name)
    mixed = [
        hashlib.sha256(f'{digest} {view}'.encode()).hexdigest()
        for digest, view in zip(digests, name, strict=True)
    ]
    return row_keys(mixed, '')


def needed(
    views: Views, epochs: range, n: int, order: Callable[[int], Int[np.ndarray, ' n']]
) -> Bool[np.ndarray, 'views n']:
    """Returns which view of which image any epoch draws; `order` gives the images it visits."""
    drawn = np.zeros((len(views.names), n), bool)
    for epoch in epochs:
        rows = order(epoch)
        drawn[views.choose(epoch)[rows], rows] = True
        if drawn.all():
            break
    return drawn

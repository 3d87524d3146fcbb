"""Which parts of an image speak for a class: Grad-CAM at the layer that feeds the head.

Selvaraju et al. 2017, arXiv:1610.02391: the channels of the feature map, each weighted by the mean
over its positions of the gradient of the class's logit, are summed; what is negative is cut off.
Heads that read a map position by position have no reason to share a weight between positions:
there each value is weighted by its own gradient (HiResCAM, Draelos & Carin 2020, arXiv:2011.08891),
which for a linear head is exactly what the position adds to the logit.

Of several layers that are read as one vector, it is the last whose positions are kept ('flatten');
what is pooled from the same layer counts too, and the other layers stay as they are. The logits of
an ensemble are logarithms of probabilities, which no longer change where one is nearly 1, so the
log-odds of the class serve there.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from tlflax.data.augment import sampling
from tlflax.data.images.given import Given
from tlflax.data.inputs import loose_images
from tlflax.data.pipeline.batch import Batch
from tlflax.data.table import ImageTable
from tlflax.inference import embeddings
from tlflax.inference.prediction import Images
from tlflax.inference.predictor import Predictor
from tlflax.inference.trained import Trained
from tlflax.models import ensemble_head
from tlflax.models.base.backbone import Backbone
from tlflax.models.base.modules import Variables
from tlflax.models.base.taps import Tap
from tlflax.models.classifier import Classifier
from tlflax.models.standard_heads import for_these_devices
from tlflax.utils.errors import UserError
from tlflax.utils.parallel.mesh import put_batch

Map = Float32[np.ndarray, 'h w']
"""0..1 for each position of the feature map; see `HeatMaps`."""

Method = Literal['grad_cam', 'by_position', 'log_odds', 'own']

_BY_POSITION = ('flatten_linear', 'mlp')  # heads without a convolution
_NOTES: dict[Method, str] = {
    'grad_cam': 'Grad-CAM (Selvaraju et al. 2017)',
    'by_position': 'HiResCAM (Draelos & Carin 2020)',
    'log_odds': 'HiResCAM (Draelos & Carin 2020) of the log-odds',
    'own': "The backbone's own heat map",
}


class HeatMaps(NamedTuple):
    """Maps of a table's images.

    Attributes:
        maps: 0..1 for each position of the feature map, 1 where it speaks most for the class; all 0
            where nothing does. None where the features have no positions.
        note: How they were made, or why there are none, in a sentence.
    """

    maps: Float32[np.ndarray, 'n h w'] | None
    note: str


class Place(NamedTuple):
    """Where the feature map is in what the head reads.

    Attributes:
        shape: (h, w, c), or any with a backbone that has heat maps of its own.
        layer: The layer whose output it is.
        columns: The taps of that layer with the first column of each; empty where the head reads
            the map itself.
    """

    shape: tuple[int, ...]
    layer: str
    columns: tuple[tuple[Tap, int], ...] = ()


def of_table(
    trained: Trained, table: ImageTable, classes: Int[np.ndarray, ' n'] | None = None
) -> HeatMaps:
    """Returns a map for each image of a table.

    Features come from the cache, and those that are not there are computed and kept.

    Args:
        trained: The classifier.
        table: The images.
        classes: The class of each map; None: the one that is predicted.
    """
    place = _place(trained)
    if place is None:
        return HeatMaps(None, none(trained))
    method = _method(trained)
    wanted = np.full(len(table), -1) if classes is None else classes

    def program(batch: dict[str, Array], host: Batch) -> Float[Array, 'b h w']:
        target = {'target': np.where(host['mask'], wanted[host['index']], -1)}
        return _maps(
            trained.variables,
            batch,
            put_batch(target, trained.mesh)['target'],
            classifier=trained.classifier,
            place=place,
            method=method,
        )

    parts = list(embeddings.run(trained, table, program))
    maps = np.concatenate(parts) if parts else np.zeros((0, *place.shape[:2]), np.float32)
    names = ' x '.join(map(str, maps.shape[1:]))
    of = 'predicted' if classes is None else 'given'
    return HeatMaps(
        maps, f'{_NOTES[method]} of the {of} class at {place.layer}, {names} positions.'
    )


def none(trained: Trained) -> str:
    """Returns why a classifier has no heat maps, in a sentence; '' if it has some."""
    if _place(trained) is not None:
        return ''
    what = f'{", ".join(map(str, trained.classifier.taps)) or trained.classifier.layer}'
    return f'There are no heat maps, as {what} has no positions.'


def of_images(trained: Trained, images: Images) -> Iterator[tuple[Given, Map] | UserError]:
    """Yields the heat maps of the predicted classes of images as they come, in bounded memory.

    Args:
        trained: A classifier of which `none` says that it has heat maps.
        images: See `Trained.predict`.

    Yields:
        An image with its map, which has the values of `of_table`; or the error of an image that
        cannot be used.
    """
    place = _place(trained)
    assert place is not None
    method, shapes = _method(trained), []

    def output(
        variables: Variables, batch: dict[str, Array], *, classifier: Classifier
    ) -> Float[Array, 'b d']:
        (size,) = {len(values) for values in batch.values()}
        maps = _maps(
            variables,
            batch,
            np.full(size, -1),
            classifier=classifier,
            place=place,
            method=method,
        )
        shapes.append(maps.shape[1:])
        return maps.reshape(size, -1)

    predictor = Predictor(
        trained.classifier, trained.variables, trained.sources, trained.mesh, output
    )
    views = [sampling.plain(trained.config.augment)]
    for outcome in predictor.outputs(loose_images.find(images), views):
        if isinstance(outcome, UserError):
            yield outcome
        else:
            image, values = outcome
            yield image, values.reshape(shapes[0]).astype(np.float32)


def _method(trained: Trained) -> Method:
    head = trained.config.model.head
    if trained.classifier.backbone.heat_map is not None:
        return 'own'
    if head.startswith(ensemble_head.PREFIX):
        return 'log_odds'
    return 'by_position' if head in _BY_POSITION else 'grad_cam'


def _place(trained: Trained) -> Place | None:
    """Returns where the map is; None if there is no map of more than one position."""
    model, size = trained.classifier, trained.config.data.image_size
    shapes = {
        layer: model.backbone.feature_shape(size, layer)
        for layer in {model.layer, *(tap.layer for tap in model.taps)}
    }
    maps = {layer for layer, shape in shapes.items() if _has_positions(shape, model.backbone)}
    if not model.taps:
        return Place(shapes[model.layer], model.layer) if model.layer in maps else None
    whole = [tap.layer for tap in model.taps if tap.pooling == 'flatten' and tap.layer in maps]
    if not whole:
        return None
    widths = [tap.columns(shapes[tap.layer]) for tap in model.taps]
    starts = [sum(widths[:number]) for number in range(len(widths))]
    columns = [pair for pair in zip(model.taps, starts, strict=True) if pair[0].layer == whole[-1]]
    return Place(shapes[whole[-1]], whole[-1], tuple(columns))


def _has_positions(shape: Sequence[int], backbone: Backbone) -> bool:
    if backbone.heat_map is not None:
        return len(shape) > 1
    return len(shape) == 3 and shape[0] * shape[1] > 1


@functools.partial(jax.jit, static_argnames=('classifier', 'place', 'method'))
def _maps(
    variables: Variables,
    batch: dict[str, Array],
    target: Int[Array | np.ndarray, ' b'],
    *,
    classifier: Classifier,
    place: Place,
    method: Method,
) -> Float[Array, 'b h w']:
    """Returns the maps of a batch, each divided by its maximum; target -1: the predicted class."""
    x, _ = classifier.before_head(variables, batch)
    activations, rebuilt = _split(x, place)

    def logits(activations: Float[Array, 'b ...']) -> Float[Array, 'b classes']:
        head = variables.branch('head')
        with for_these_devices():
            return classifier.head.apply(head, rebuilt(activations))[0]

    found, back = jax.vjp(logits, activations)
    target = jnp.where(target < 0, found.argmax(-1), target)
    if classifier.backbone.heat_map is not None:
        heat = classifier.backbone.heat_map(logits, activations, target)
    else:
        (gradient,) = back(jax.grad(_score)(found, target, method))
        heat = _weighted(gradient, activations, method)
    heat = jnp.nan_to_num(jax.nn.relu(heat))
    largest = heat.max((1, 2), keepdims=True)
    return heat / jnp.where(largest > 0, largest, 1)


def _split(
    x: Float[Array, 'b ...'], place: Place
) -> tuple[Float[Array, 'b ...'], Callable[[Float[Array, 'b ...']], Float[Array, 'b ...']]]:
    """Returns the map in what the head reads, and the function that puts another in its place."""
    if not place.columns:
        return x, lambda activations: activations
    starts = {tap.pooling: start for tap, start in place.columns}
    start, size = starts['flatten'], math.prod(place.shape)

    def rebuilt(activations: Float[Array, 'b ...']) -> Float[Array, 'b d']:
        rows = x
        for tap, first in place.columns:
            own = tap.pooled(activations)
            rows = rows.at[:, first : first + own.shape[1]].set(own)
        return rows

    return x[:, start : start + size].reshape(-1, *place.shape), rebuilt


def _score(
    logits: Float[Array, 'b classes'], target: Int[Array, ' b'], method: Method
) -> Float[Array, '']:
    """Returns what is explained, summed over the examples, which do not depend on each other."""
    own = jnp.take_along_axis(logits, target[:, None], 1)[:, 0]
    if method == 'log_odds':
        others = jnp.where(jnp.arange(logits.shape[1]) == target[:, None], -jnp.inf, logits)
        own -= jax.nn.logsumexp(others, axis=1)
    return own.sum()


def _weighted(
    gradient: Float[Array, 'b h w c'], activations: Float[Array, 'b h w c'], method: Method
) -> Float[Array, 'b h w']:
    # The gradient of a square root is infinite at 0, where it adds nothing.
    gradient = jnp.where(jnp.isfinite(gradient), gradient, 0)
    if method == 'grad_cam':
        gradient = gradient.mean((1, 2), keepdims=True)
    return (gradient * activations).sum(-1)

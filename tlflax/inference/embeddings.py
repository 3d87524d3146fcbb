"""One vector for each image: what the head of a trained classifier reads of it.

It is the output of the layer that feeds the head, with the trained weights where the backbone was
fine-tuned. A feature map is replaced by the mean over its positions; vectors, as those of several
layers (`features.layers`), stay as they are.
"""

import functools
from collections.abc import Callable, Generator, Iterator

import jax
import numpy as np
from jaxtyping import Array, Float, Float32

from tlflax.data.augment import sampling
from tlflax.data.inputs import loose_images
from tlflax.data.pipeline.batch import Batch
from tlflax.data.table import ImageTable
from tlflax.inference.prediction import Images
from tlflax.inference.predictor import Outcome, Predictor
from tlflax.inference.trained import Trained
from tlflax.models.base.modules import Variables
from tlflax.models.classifier import Classifier
from tlflax.utils.parallel.mesh import local_rows, put_batch

Program = Callable[[dict[str, Array], Batch], Float[Array, 'b ...']]
"""A batch on the devices, and the same batch on the host, to an output for each example."""


def of_table(
    trained: Trained, table: ImageTable, *, full: bool = False, name: str = 'images'
) -> Float32[np.ndarray, 'n d']:
    """Returns the vectors of a table's images, in order.

    Features come from the cache, and those that are not there are computed and kept.

    Args:
        trained: The classifier.
        table: The images; their classes do not matter.
        full: All positions of a feature map, one after another, in place of their mean.
        name: Of the images, in the log.
    """
    parts = list(batches(trained, table, full=full, name=name))
    return np.concatenate(parts) if parts else np.zeros((0, dimension(trained, full=full)), 'f4')


def batches(
    trained: Trained, table: ImageTable, *, full: bool = False, name: str = 'images'
) -> Generator[Float32[np.ndarray, 'b d'], None, None]:
    """Yields what `of_table` returns in batches, so that memory is bounded."""
    embed = _program(full)
    return run(
        trained,
        table,
        lambda batch, _: embed(trained.variables, batch, classifier=trained.classifier),
        name=name,
    )


def run(
    trained: Trained, table: ImageTable, program: Program, *, name: str = 'images'
) -> Generator[Float32[np.ndarray, 'b ...'], None, None]:
    """Yields the outputs of a program for batches of a table's images, in order; see `of_table`."""
    source = trained.sources.eval_streamed(table, name)
    for batch in source.eval_batches():
        out = program(put_batch(batch, trained.mesh), batch)
        yield local_rows(out)[: len(batch['mask'])][batch['mask']]


def of_images(
    trained: Trained, images: Images, *, full: bool = False, keep_features: bool = False
) -> Iterator[Outcome]:
    """Yields the vectors of images as they come, in bounded memory.

    Args:
        trained: The classifier.
        images: See `Trained.predict`.
        full: See `of_table`.
        keep_features: Add the features of image files to the cache.

    Yields:
        An image with its vector f64[d], which has the values of `of_table`; or the error of an
        image that cannot be used.
    """
    predictor = Predictor(
        trained.classifier, trained.variables, trained.sources, trained.mesh, _program(full)
    )
    views = [sampling.plain(trained.config.augment)]
    given = loose_images.find(images)
    return predictor.outputs(given, views, keep_features=keep_features)


def dimension(trained: Trained, *, full: bool = False) -> int:
    """Returns the length of a vector."""
    image = jax.ShapeDtypeStruct((1, *trained.config.data.image_size, 3), np.uint8)
    embed = functools.partial(_program(full), classifier=trained.classifier)
    return int(jax.eval_shape(embed, trained.variables, {'image': image}).shape[1])


def _program(full: bool) -> Callable[..., Float[Array, 'b d']]:
    return _positions if full else _mean


@functools.partial(jax.jit, static_argnames=('classifier',))
def _mean(
    variables: Variables, batch: dict[str, Array], *, classifier: Classifier
) -> Float[Array, 'b d']:
    x, _ = classifier.before_head(variables, batch)
    return x.mean(tuple(range(1, x.ndim - 1)))


@functools.partial(jax.jit, static_argnames=('classifier',))
def _positions(
    variables: Variables, batch: dict[str, Array], *, classifier: Classifier
) -> Float[Array, 'b d']:
    x, _ = classifier.before_head(variables, batch)
    return x.reshape(len(x), -1)

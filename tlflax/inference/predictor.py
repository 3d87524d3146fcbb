"""Runs a classifier on images as they come: reads, decodes and computes block by block."""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import compress, islice
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Shaped, UInt8, UInt64

from tlflax.data.augment import sampling
from tlflax.data.images import decode, given
from tlflax.data.images.given import Given
from tlflax.data.pipeline import without_tensorflow
from tlflax.features import programs
from tlflax.features.cache.store import Store
from tlflax.features.select import SourceSelector
from tlflax.features.views import view_keys
from tlflax.models.base.modules import Variables
from tlflax.models.classifier import Classifier
from tlflax.models.standard_heads import for_these_devices
from tlflax.utils import cpu
from tlflax.utils.errors import UserError
from tlflax.utils.parallel.mesh import put_batch

_NO_DIGEST = 64 * '0'  # of what is not a file: it is not looked up
_FEW = 8  # views: transforming the kernels for the fast program takes longer
_READERS = 8  # threads at least, however few cores: files may be far away

T = TypeVar('T')
Output = Callable[..., Float[Array, 'b d']]
"""(variables, batch, classifier=) to the outputs of a batch of images, or of their features."""

Values = Float[np.ndarray, ' d']
Outcome = tuple[Given, Values] | UserError
"""An image, without its contents, with its output, float64; or why it has none."""


@dataclasses.dataclass
class _Block:
    """Some images on their way.

    Attributes:
        images: Without their contents; one that cannot be used is replaced by the error.
        keys: Of each view of each image in the store.
        rows: Of each view of each image in the store; -1: to be computed.
        pixels: By the number of an image, its views that are to be computed.
        few: The process computes no other images, and these are few.
    """

    images: list[Given | UserError]
    keys: UInt64[np.ndarray, 'n views 2']
    rows: Int[np.ndarray, 'n views']
    pixels: dict[int, Future[UInt8[np.ndarray, '_views h w 3']]]
    few: bool


class _Threads(NamedTuple):
    """What works while a block is computed."""

    begin: ThreadPoolExecutor  # one thread, which begins the next block
    read: ThreadPoolExecutor
    decode: ThreadPoolExecutor

    @classmethod
    def start(cls, stack: contextlib.ExitStack) -> '_Threads':
        """Starts threads that end with `stack`: first the one that gives work to the others."""
        read, decode, begin = (
            stack.enter_context(ThreadPoolExecutor(count))
            for count in (max(_READERS, cpu.cores()), cpu.cores(), 1)
        )
        return cls(begin, read, decode)


@dataclasses.dataclass(frozen=True)
class Predictor:
    """Computes outputs of images; programs are compiled once for each of a few batch sizes.

    Attributes:
        classifier: The static half of the model.
        variables: All of its variables.
        sources: Knows the program of the backbone, the store of its features, and how images are
            read.
        mesh: The devices.
        output: What is computed, such as `class_probabilities`.
    """

    classifier: Classifier
    variables: Variables
    sources: SourceSelector
    mesh: Mesh
    output: Output

    def outputs(
        self,
        images: Iterable[Given | UserError],
        views: Sequence[sampling.View],
        *,
        keep_features: bool = False,
        no_more: bool = False,
    ) -> Iterator[Outcome]:
        """Yields the mean of each image's outputs over its views, in order.

        While one block is computed, other threads read and decode the next. Features that the store
        holds are not computed, and the images of which it holds all are not decoded.

        Args:
            images: Images, and errors, which are passed on.
            views: How each image is shown.
            keep_features: Add computed features to the store.
            no_more: This process computes no others, so for a few images nothing is prepared that
                pays for many: the backbone runs as XLA compiles it, whose features differ by
                rounding.
        """
        with contextlib.ExitStack() as stack:
            store = None
            if self.sources.keeps_features:
                store = stack.enter_context(self.sources.open_store())
            threads = _Threads.start(stack)
            before: Future[_Block] | None = None
            for part in in_blocks(images, programs.batch_size()):
                few = no_more and before is None and len(part) * len(views) <= _FEW
                block = threads.begin.submit(self._begin, part, views, store, threads, few)
                if before is not None:
                    yield from self._finish(before.result(), store, keep_features)
                before = block
            if before is not None:
                yield from self._finish(before.result(), store, keep_features)

    def _begin(
        self,
        images: Sequence[Given | UserError],
        views: Sequence[sampling.View],
        store: Store | None,
        threads: _Threads,
        few: bool,
    ) -> _Block:
        """Reads images, looks their features up, and starts to decode those that lack some."""
        read = list(threads.read.map(_read, images))
        digests = [digest for _, digest in read]
        names = [sampling.describe(view, self.sources.augment) for view in views]
        keys = np.stack([view_keys(digests, name) for name in names], axis=1)
        rows = np.full(keys.shape[:2], -1)
        if store is not None:
            known = np.array(digests) != _NO_DIGEST
            rows[known] = store.lookup(keys[known].reshape(-1, 2)).reshape(-1, len(views))
        pixels = {
            number: threads.decode.submit(self._show, image, list(compress(views, lacking)))
            for number, ((image, _), lacking) in enumerate(zip(read, rows < 0, strict=True))
            if isinstance(image, Given) and lacking.any()
        }
        return _Block([_emptied(image) for image, _ in read], keys, rows, pixels, few)

    def _show(
        self, image: Given, views: Sequence[sampling.View]
    ) -> UInt8[np.ndarray, 'views h w 3']:
        """Decodes an image and returns views of it, of the network's size."""
        form, augment = self.sources.image_format, self.sources.augment
        rgb = given.to_rgb(image, background=form.background, max_pixels=form.max_pixels)
        if all(without_tensorflow.serves(view, form) for view in views):
            return np.stack([without_tensorflow.show(rgb, view, form) for view in views])
        from tlflax.data.pipeline import one_image  # imports TensorFlow, which takes seconds

        return np.stack([one_image.show(rgb, view, form, augment) for view in views])

    def _finish(self, block: _Block, store: Store | None, keep: bool) -> Iterator[Outcome]:
        """Computes what a block lacks, and yields its outcomes."""
        for number, future in block.pixels.items():
            try:
                future.result()
            except UserError as error:
                block.images[number] = error
        good = [n for n, image in enumerate(block.images) if isinstance(image, Given)]
        means: Iterator[Values] = iter(())
        if good:
            pixels = [block.pixels[n].result() for n in good if n in block.pixels]
            few = block.few and not keep
            program = self.sources.few_program if few else self.sources.program
            values = self._values(block.keys[good], block.rows[good], pixels, store, keep, program)
            every = programs.in_batches(values, self._outputs).astype(np.float64)
            means = iter(every.reshape(len(good), -1, every.shape[-1]).mean(1))
        for image in block.images:
            yield image if isinstance(image, UserError) else (image, next(means))

    def _values(
        self,
        keys: UInt64[np.ndarray, 'n views 2'],
        rows: Int[np.ndarray, 'n views'],
        pixels: Sequence[UInt8[np.ndarray, '_views h w 3']],
        store: Store | None,
        keep: bool,
        program: Callable[[], programs.Compute],
    ) -> Shaped[np.ndarray, 'n*views ...']:
        """Returns what the upper part of the model takes: features, or pixels if it is all of it.

        Args:
            keys: Of each view of each image in the store.
            rows: Of each view of each image in the store; -1: to be computed.
            pixels: Of the images that lack something, the views that do.
            store: The features that are kept.
            keep: Add what is computed.
            program: Returns that of the backbone.
        """
        computed = np.concatenate(pixels) if pixels else np.zeros(0)
        if self.classifier.cut_is_image:
            return computed
        if pixels:
            computed = programs.in_batches(computed, program())
        if store is None:
            return computed
        lacking = rows.ravel() < 0
        values = np.empty((rows.size, *store.row_shape), store.dtype)
        values[~lacking] = store.read(rows.ravel()[~lacking])
        if pixels:
            values[lacking] = store.rounded(computed)
            if keep:
                self.sources.reserve(store, len(computed))
                store.append(keys.reshape(-1, 2)[lacking], computed)
        return values

    def _outputs(self, values: Shaped[np.ndarray, 'b ...']) -> Array:
        name = 'image' if self.classifier.cut_is_image else 'features'
        batch = put_batch({name: values}, self.mesh)
        return self.output(self.variables, batch, classifier=self.classifier)


@functools.partial(jax.jit, static_argnames=('classifier',))
def class_probabilities(
    variables: Variables, batch: dict[str, Array], *, classifier: Classifier
) -> Float[Array, 'b classes']:
    """Returns the class probabilities of a batch."""
    with for_these_devices():
        return jax.nn.softmax(classifier(variables, batch)[0])


def _read(image: Given | UserError) -> tuple[Given | UserError, str]:
    """Reads the bytes of a file; returns them and their digest, or `_NO_DIGEST`."""
    if isinstance(image, UserError):
        return image, _NO_DIGEST
    if isinstance(image.source, str):
        try:
            image = image._replace(source=decode.read_bytes(image.source))
        except UserError as error:
            return error, _NO_DIGEST
    if not isinstance(image.source, bytes):
        return image, _NO_DIGEST
    return image, hashlib.sha256(image.source).hexdigest()


def _emptied(image: Given | UserError) -> Given | UserError:
    """Returns an image without its contents, of which many would fill the memory."""
    return image if isinstance(image, UserError) else image._replace(source=b'')


def in_blocks(items: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    """Yields tuples of `size` items; the last may be shorter."""
    rest = iter(items)
    while block := tuple(islice(rest, size)):
        yield block

"""What a classifier says of an image, and how commands print it."""

import contextlib
import csv
import dataclasses
import heapq
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self, TypeVar

import numpy as np
from absl import logging
from jaxtyping import Array, Float
from PIL import Image

from tlflax.data.images.given import Given
from tlflax.data.inputs import loose_images
from tlflax.utils.errors import UserError, printable
from tlflax.utils.files import JsonObject, dump_json
from tlflax.utils.progress import progress

T = TypeVar('T')

OneImage = str | os.PathLike[str] | bytes | bytearray | Image.Image | np.ndarray | Array
Images = OneImage | Iterable[OneImage | Given | UserError]
"""One or many images, as `tlflax.inference.trained.Trained.predict` takes them."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        path: The path of the image; '' where it was not a file.
        label: The most probable class.
        probability: The probability of that class.
        probabilities: The probability of each class, by class name.
        true_class: The class that the nearest folder of the path is named after; None without one.
    """

    path: str
    label: str
    probability: float
    probabilities: dict[str, float]
    true_class: str | None = None

    @classmethod
    def of(
        cls, path: str, probabilities: Float[np.ndarray, ' classes'], class_names: Sequence[str]
    ) -> Self:
        """Returns the prediction that class probabilities make."""
        return cls(
            path=path,
            label=class_names[int(probabilities.argmax())],
            probability=float(probabilities.max()),
            probabilities=dict(zip(class_names, probabilities.tolist(), strict=True)),
            true_class=loose_images.named_class(path, class_names),
        )

    def top(self, k: int) -> list[tuple[str, float]]:
        """Returns the `k` most probable classes, or all if there are fewer, with probabilities.

        The most probable comes first; equally probable ones are in the classifier's order.
        """
        return heapq.nlargest(k, self.probabilities.items(), key=lambda item: item[1])


@dataclasses.dataclass(frozen=True)
class Style:
    """How predictions are printed.

    Attributes:
        form: 'text', 'json' (an object a line) or 'csv'.
        top_k: How many classes are shown of each image, the most probable first; None: in text the
            most probable, in JSON and CSV all, in the order of the classifier.
        threshold: A prediction of a lower probability is called unsure; None: none is.
    """

    form: str
    top_k: int | None = None
    threshold: float | None = None

    @classmethod
    def parse(cls, form: str, top_k: str | None, threshold: str | None) -> Self:
        """Returns the style that a command line asks for.

        Raises:
            UserError: `top_k` is no whole number from 1, or `threshold` none from 0 to 1.
        """
        count = None
        if top_k is not None:
            count = int(top_k) if top_k.isascii() and top_k.isdecimal() else 0
            if count < 1:
                what = f'{printable(top_k)!r} is not a whole number from 1'
                raise UserError(what, where='--top_k', fix='give 3, for example')
        limit = None
        if threshold is not None:
            with contextlib.suppress(ValueError):
                limit = float(threshold)
            if limit is None or not 0 <= limit <= 1:  # NaN too
                what = f'{printable(threshold)!r} is not a number from 0 to 1'
                raise UserError(what, where='--threshold', fix='give 0.9, for example')
        return cls(form, count, limit)

    def unsure(self, one: Prediction) -> dict[str, bool]:
        """Returns whether a prediction is unsure, as a field; no field without a threshold."""
        return {} if self.threshold is None else {'unsure': one.probability < self.threshold}


def printer(style: Style, class_names: Sequence[str]) -> Callable[[Prediction], Any]:
    """Returns what prints a prediction on stdout; prints the header of a CSV.

    Args:
        style: What is printed.
        class_names: In the order of the classifier.
    """
    if style.form == 'csv':
        table = csv.writer(sys.stdout)
        table.writerow(_header(style, class_names))
        return lambda one: table.writerow(_row(one, style))
    if style.form == 'json':
        return lambda one: print(dump_json(_record(one, style)))
    return lambda one: print(_line(one, style))


def _line(one: Prediction, style: Style) -> str:
    best = '  '.join(f'{label}  {p:.4f}' for label, p in one.top(style.top_k or 1))
    if not style.unsure(one).get('unsure'):
        return f'{one.path}  {best}'
    return f'{one.path}  unsure  ' + (best if style.top_k else f'{one.probability:.4f}')


def _record(one: Prediction, style: Style) -> JsonObject:
    fixed = {
        'path': one.path,
        'class': one.label,
        'probability': one.probability,
        'true_class': one.true_class,
        **style.unsure(one),
    }
    if style.top_k is None:
        return {**fixed, 'probabilities': one.probabilities}
    best = [{'class': label, 'probability': p} for label, p in one.top(style.top_k)]
    return {**fixed, 'top': best}


def _header(style: Style, class_names: Sequence[str]) -> list[str]:
    fixed = ['path', 'class', 'probability', 'true_class']
    fixed += [] if style.threshold is None else ['unsure']
    if style.top_k is None:
        return [*fixed, *class_names]
    ranks = range(2, min(style.top_k, len(class_names)) + 1)
    return [*fixed, *(f'{name}{rank}' for rank in ranks for name in ('class', 'probability'))]


def _row(one: Prediction, style: Style) -> list[object]:
    unsure = [str(value).lower() for value in style.unsure(one).values()]
    fixed = [one.path, one.label, one.probability, one.true_class, *unsure]
    if style.top_k is None:
        return [*fixed, *one.probabilities.values()]
    return [*fixed, *(value for pair in one.top(style.top_k)[1:] for value in pair)]


def print_each(
    results: Iterable[T | UserError],
    show: Callable[[T], Any],
    done: str,
    total: int | None = None,
) -> None:
    """Prints the results of images as they come, and on stderr the files that have none.

    Progress is shown on stderr, unless the results themselves are seen on a terminal.

    Args:
        results: A result for each image, or why it has none.
        show: Prints a result.
        done: What could not be done with the others, such as 'classified'.
        total: How many results there will be; None: that is not known.

    Raises:
        UserError: At the end, if some have none.
    """
    good = faults = 0
    seen = sys.stdout.isatty()
    with contextlib.nullcontext(_untold) if seen else progress(done, total) as tick:
        for one in results:
            if isinstance(one, UserError):
                faults += 1
                logging.error('error: %s', one)
            else:
                good += 1
                show(one)
            tick(1)
    if faults:
        what = f'{faults} of {faults + good} files could not be {done}'
        raise UserError(what, where='command line', fix='see the lines above')


def _untold(images: int, note: Callable[[], str] | None = None) -> None:
    """Shows no progress."""

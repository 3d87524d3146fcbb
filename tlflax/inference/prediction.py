"""What a classifier says of an image, and how commands print it."""

import csv
import dataclasses
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self, TypeVar

import numpy as np
from jaxtyping import Array, Float
from PIL import Image

from tlflax.data.inputs import loose_images
from tlflax.utils.errors import UserError
from tlflax.utils.files import dump_json

T = TypeVar('T')

OneImage = str | os.PathLike[str] | bytes | bytearray | Image.Image | np.ndarray | Array
Images = OneImage | Iterable[OneImage]
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


def printer(form: str, class_names: Sequence[str]) -> Callable[[Prediction], Any]:
    """Returns what prints a prediction on stdout; prints the header of a CSV.

    Args:
        form: 'text', 'json' (an object a line) or 'csv'.
        class_names: In the order of the columns.
    """
    if form == 'csv':
        table = csv.writer(sys.stdout)
        table.writerow(['path', 'class', 'probability', 'true_class', *class_names])
        return lambda one: table.writerow(
            [one.path, one.label, one.probability, one.true_class, *one.probabilities.values()]
        )
    if form == 'json':
        return lambda one: print(
            dump_json(
                {
                    'path': one.path,
                    'class': one.label,
                    'probability': one.probability,
                    'true_class': one.true_class,
                    'probabilities': one.probabilities,
                }
            )
        )
    return lambda one: print(f'{one.path}  {one.label}  {one.probability:.4f}')


def print_each(results: Iterable[T | UserError], show: Callable[[T], Any], done: str) -> None:
    """Prints the results of images as they come, and on stderr the files that have none.

    Args:
        results: A result for each image, or why it has none.
        show: Prints a result.
        done: What could not be done with the others, such as 'classified'.

    Raises:
        UserError: At the end, if some have none.
    """
    good = faults = 0
    for one in results:
        if isinstance(one, UserError):
            faults += 1
            print(f'error: {one}', file=sys.stderr)
        else:
            good += 1
            show(one)
    if faults:
        what = f'{faults} of {faults + good} files could not be {done}'
        raise UserError(what, where='command line', fix='see the lines above')

"""What weights are: their name, their license and the preprocessing that belongs to them."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Identity:
    """The identity of weights, with the preprocessing and license that belong to them.

    Attributes:
        name: Such as 'imagenet-caffe'; 'custom' where they are not known.
        preprocess: The preprocessing that the weights were trained with, a key of `PREPROCESS`.
        license: The license, and whom to cite.
        assumed: Whether `preprocess` is only assumed.
    """

    name: str
    preprocess: str
    license: str
    assumed: bool = False

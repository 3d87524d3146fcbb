"""The images of a trained classifier's run, read again as its configuration says."""

from absl import logging

from tlflax.data.inputs.listing import Announced
from tlflax.data.splits.load import load_splits, load_train, load_val
from tlflax.data.table import ImageTable
from tlflax.inference.trained import Trained
from tlflax.utils.errors import UserError

NAMES = {'train': 'train', 'validation': 'val', 'test': 'test'}
"""The splits as people name them, and the names of their keys in `config.data`."""


def load_split(trained: Trained, split: str, announced: Announced | None = None) -> ImageTable:
    """Returns the images of a split, and warns where they are not those of the run any more.

    Args:
        trained: The classifier.
        split: A key of `NAMES`.
        announced: See `tlflax.data.inputs.listing.scan`.

    Raises:
        UserError: The images cannot be read, or the run has no such split.
    """
    name, data = NAMES[split], trained.config.data
    if name == 'train':
        divided = data.val_fraction or data.test_fraction or data.folds
        table = load_splits(data, announced).train if divided else load_train(data, announced)
    elif name == 'val':
        table = load_val(data, trained.class_names, announced)
    elif (found := load_splits(data, announced).test) is not None:
        table = found
    else:
        raise UserError(
            'the run has no test images',
            where='split',
            fix='choose train or validation, or name images of your own',
        )
    if is_changed(trained, split, table):
        logging.warning(
            'WARNING: the %s images in config.data.%s=%r are not those of the run any more',
            *(split, name, getattr(data, name) or data.train),
        )
    return table


def is_changed(trained: Trained, split: str, table: ImageTable) -> bool:
    """Returns whether the images of a split are others than those of the run."""
    return trained.split_digests.get(NAMES[split], table.digest) != table.digest

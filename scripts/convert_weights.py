"""Converts weights of any known format to safetensors, and says what they are.

python scripts/convert_weights.py vgg16_weights_tf_dim_ordering_tf_kernels.h5 vgg16.safetensors
python scripts/convert_weights.py mine.pth mine.safetensors --preprocess=torch
python scripts/convert_weights.py mine.npz mine.safetensors --backbone=py:mine.py:backbone
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from tlflax.models import backbones, pretrained
from tlflax.models.weights.preprocess import PREPROCESS
from tlflax.utils import trees
from tlflax.utils.errors import EXIT_CODE, UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('input', help='Keras .h5 or .keras, ONNX, safetensors, .npz or PyTorch')
    parser.add_argument('output', help='the safetensors file to write')
    parser.add_argument(
        '--backbone', default='vgg16', help='as config.model.backbone; vgg16 by default'
    )
    parser.add_argument('--no-top', action='store_true', help='leave out fc1, fc2 and predictions')
    parser.add_argument(
        '--preprocess',
        choices=[*PREPROCESS],
        help='what custom weights were trained with, if the file does not say',
    )
    options = parser.parse_args(arguments)
    try:
        convert(
            options.input,
            options.output,
            backbone=options.backbone,
            top=not options.no_top,
            stated=options.preprocess,
        )
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return EXIT_CODE
    return 0


def convert(source: str, target: str, *, backbone: str, top: bool, stated: str | None) -> None:
    """Reads `source`, prints what it is, and writes `target`.

    Args:
        source: A weights file.
        target: The safetensors file.
        backbone: The network, as `config.model.backbone` names it.
        top: Whether to keep the dense top, if the file has one.
        stated: The preprocessing of custom weights, if the user gives it.

    Raises:
        UserError: The file cannot be read or written, or is known to need other preprocessing.
    """
    row = backbones.find(backbone)
    found = pretrained.load(source, row, layer=None if top else row.layer)
    if stated and found.assumed:
        found = dataclasses.replace(found, preprocess=stated, assumed=False)
    elif stated and stated != found.preprocess:
        raise UserError(
            f'{found.name} weights need {found.preprocess!r} preprocessing, not {stated!r}',
            where='--preprocess',
            fix='leave it out',
        )
    pretrained.save(target, found)
    count = sum(len(trees.flatten(part)) for part in found.variables)
    layers = [name for name in row.layers if name in found.variables.params]
    print(f'source      {found.source}')
    print(f'recognized  {found.name}: {found.recognized}')
    print(f'tensors     {count}, {layers[0]} to {layers[-1]}')
    print(f'digest      {found.digest}')
    print(f'preprocess  {found.preprocess}{" (assumed)" if found.assumed else ""}')
    print(f'license     {found.license}')
    print(f'written     {target}')


if __name__ == '__main__':
    sys.exit(main())

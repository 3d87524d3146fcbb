"""Writes docs/results.md: every method on every set, measured.

    python scripts/reproduce.py [FOLDER[@SIDE]...] [--no-demo] [--out=docs/results.md] [--quick]

The sets are the demo and the given folders, each of which holds `train/` and `val/` of class
folders; SIDE is the image size, 224 by default. The page names folders by their last name only.
Keras and PyTorch are measured where they are installed (`pip install -e '.[bench]'`). Features are
computed once and come from the cache after that; everything else is trained in fresh temporary
workdirs. Takes about 45 minutes on two cores for the demo and two sets of 500 images.

`--quick` leaves the demo out and takes small images, random weights, few steps, one head and one
seed; without `--out` it prints the page.
"""

import argparse
import datetime
from pathlib import Path

import jax
from absl import logging
from image_sets import ROOT, ImageSet, parse
from reproduce_methods import (
    FULL,
    QUICK,
    RIGHT,
    Effort,
    methods,
    peers,
    shots,
    step_trained,
    warm,
)
from reproduce_page import Circumstances, Figures, page
from study_stopping import markdown, study

from tlflax.utils import cpu
from tlflax.utils.files import atomic_write


def measure(images: ImageSet, effort: Effort) -> Figures:
    """Measures all methods on a set."""
    told = '%s: %s'
    found, few = {}, {}
    for preprocess in effort.preprocessing:
        logging.info(told, images.name, f'features, preprocessing {preprocess}')
        inputs = warm(images, preprocess)
        logging.info(told, images.name, 'recipe, probe and automatic choice')
        found[preprocess] = methods(images, effort, preprocess)
        few[preprocess] = shots(images, effort, preprocess)
    logging.info(told, images.name, 'heads trained by steps')
    found[RIGHT] |= step_trained(images, effort)
    logging.info(told, images.name, 'Keras and PyTorch')
    found[RIGHT] |= peers(images, inputs, effort)
    train, val = inputs.splits.train, inputs.splits.val
    return Figures(
        images.name, len(train), len(val), len(train.class_names), images.side, found, few
    )


def machine() -> str:
    """Returns the processor and the version of JAX."""
    return f'{cpu.described()}, jax {jax.__version__}'


def main() -> None:
    """Measures and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folders', nargs='*', metavar='FOLDER[@SIDE]')
    parser.add_argument('--no-demo', action='store_true')
    parser.add_argument('--out', type=Path)
    parser.add_argument('--quick', action='store_true', help='small images, no demo, one seed')
    options = parser.parse_args()
    logging.set_verbosity(logging.INFO if not options.quick else logging.ERROR)
    effort, out = QUICK if options.quick else FULL, options.out
    demo = not (options.no_demo or options.quick)
    sets = parse(options.folders, demo=demo, quick=options.quick)
    if not sets:
        parser.error('give a folder')
    found = [measure(images, effort) for images in sets]
    logging.info('the study of stopping')
    stopping = markdown(study(sets, effort.seeds))
    given = [Path(text).name for text in options.folders]
    flags = [f'--{name}' for name in ('no-demo', 'quick') if vars(options)[name.replace('-', '_')]]
    command = ' '.join(['python scripts/reproduce.py', *given, *flags])
    today = datetime.date.today().isoformat()
    text = page(found, stopping, Circumstances(command, machine(), today, effort))
    if options.quick and out is None:
        print(text, end='')
    else:
        atomic_write(out or ROOT / 'docs' / 'results.md', text)


if __name__ == '__main__':
    main()

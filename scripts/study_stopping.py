"""Which epoch to keep: rules of early stopping, and the end of a schedule.

    python scripts/study_stopping.py FOLDER[@SIDE]... [--seeds=3] [--no-demo] [--quick]

A FOLDER holds `train/` and `val/` of class folders; SIDE is the image size, 224 by default. The
demo is studied too. Each head that is trained by steps is trained on frozen VGG16 features in two
ways, for about 1,500 steps: as in `configs/traffic.py`, at a constant rate, and as in
`configs/images.py`, at a rate that falls to zero. Each rule then chooses an epoch of each training.

The validation images are divided in two halves by class. A rule sees one half, and the accuracy of
the epoch it chose is measured on the other, both ways; so no figure is flattered by the choice. The
cost of a rule is what it misses of the best epoch of both trainings in hindsight on the measured
half, in points. Hindsight itself is flattered, so that even the best rule has a cost.

Prints a table in Markdown. Sets of more than 1,000 training images have one seed. `--quick` takes
small images, random weights, few steps, one head, one seed and no demo.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from image_sets import ImageSet, parse
from scipy import stats

from tlflax.config import automatic
from tlflax.config.schema import EarlyStoppingConfig, TrainConfig
from tlflax.train import setup, steps
from tlflax.train.early_stopping import stopping_rule
from tlflax.utils.parallel.mesh import replicate

MANY = 1000  # training images with which one seed is enough
STEPS = {'patience_steps': 300, 'min_steps': 500}
RULES: dict[str, dict[str, Any]] = {
    'val_loss, patience 3': {'monitor': 'val_loss'},
    'val_accuracy, patience 3': {'monitor': 'val_accuracy'},
    'val_loss, patience 3, patience_steps 300, min_steps 500': {'monitor': 'val_loss', **STEPS},
    'val_accuracy, the same': {'monitor': 'val_accuracy', **STEPS},
    'the last epoch': {'monitor': ''},
}
TRAININGS = {'traffic': 'constant', 'images': 'to zero'}
"""Names in configs/, and what the rate does there."""


class Trajectory(NamedTuple):
    """A head on the validation images after each epoch.

    Attributes:
        loss: f32[epochs, n], in nats.
        correct: bool[epochs, n].
        steps_per_epoch: Optimizer steps of an epoch.
    """

    loss: np.ndarray
    correct: np.ndarray
    steps_per_epoch: int


class Outcome(NamedTuple):
    """What a rule gave for one head and seed on one set.

    Attributes:
        images: The set's name.
        training: A key of `TRAININGS`.
        rule: A key of `RULES`.
        accuracy: In %, mean of both halves.
        cost: Points below hindsight.
        steps: Optimizer steps until the rule stopped.
    """

    images: str
    training: str
    rule: str
    accuracy: float
    cost: float
    steps: float


def follow(
    images: ImageSet, inputs: setup.Inputs, training: str, head: str, seed: int
) -> Trajectory:
    """Trains a head to the end and evaluates it after each epoch."""
    changes: dict[str, Any] = {'model__head': head, 'train__seed': seed}
    if training == 'traffic' and not images.quick:
        count = len(inputs.splits.train)
        changes['train__epochs'] = automatic.resolve(TrainConfig(epochs=0), count).epochs
    run = setup.build(images.configure(training, **changes), inputs)
    train = run.sources.train(run.splits.train)
    val = run.sources.eval(run.splits.val, 'validation')
    first = jax.tree.map(np.array, steps.init_state(run.learner.trainable, run.learner.tx))
    state, label = replicate(first, run.runner.mesh), np.asarray(run.splits.val.labels)
    loss, correct = [], []
    for epoch in range(run.config.train.epochs):
        state, _, _ = run.runner.train(state, train, epoch)
        found = run.runner.evaluate(state.variables, val).probabilities
        own = np.maximum(found[np.arange(len(label)), label], np.finfo(np.float32).tiny)
        loss.append(-np.log(own))
        correct.append(found.argmax(1) == label)
    return Trajectory(np.array(loss), np.array(correct), run.steps_per_epoch)


def halves(label: np.ndarray, seed: int) -> np.ndarray:
    """Returns which images are in the first half, bool[n]; about half of each class."""
    order = np.random.default_rng(seed).permutation(len(label))
    order = order[np.argsort(label[order], kind='stable')]
    first = np.zeros(len(label), bool)
    first[order[::2]] = True
    return first


def keep(rule: dict[str, Any], seen: Trajectory) -> tuple[int, int]:
    """Returns the epoch that a rule keeps, from 0, and the number of epochs until it stops."""
    count = len(seen.loss)
    stopping = stopping_rule(EarlyStoppingConfig(**rule))
    if stopping is None:
        return count - 1, count
    by_epoch = seen.loss if stopping.monitor == 'val_loss' else seen.correct
    state = stopping.init()
    for epoch, value in enumerate(by_epoch.mean(1, dtype=np.float64)):
        state = stopping.update(state, float(value), epoch, (epoch + 1) * seen.steps_per_epoch)
        if state.stopped:
            break
    assert state.best_epoch is not None
    return state.best_epoch, epoch + 1


def compare(
    name: str, label: np.ndarray, trajectories: dict[str, Trajectory], seed: int
) -> Iterator[Outcome]:
    """Yields the outcome of each rule on the trainings of one head and seed."""
    first = halves(label, seed)
    sides = [(first, ~first), (~first, first)]
    best = [
        max(t.correct[:, there].mean(1).max() for t in trajectories.values()) for _, there in sides
    ]
    for training, whole in trajectories.items():
        for rule, keys in RULES.items():
            found, ran = [], []
            for here, there in sides:
                seen = whole._replace(loss=whole.loss[:, here], correct=whole.correct[:, here])
                epoch, epochs = keep(keys, seen)
                found.append(whole.correct[epoch, there].mean())
                ran.append(epochs * whole.steps_per_epoch)
            accuracy = 100 * float(np.mean(found))
            cost = 100 * float(np.mean(best)) - accuracy
            yield Outcome(name, training, rule, accuracy, cost, float(np.mean(ran)))


def study(sets: Sequence[ImageSet], seeds: int) -> list[Outcome]:
    """Returns the outcomes of all rules, heads and seeds on all sets."""
    outcomes: list[Outcome] = []
    for images in sets:
        inputs = setup.load(images.configure('traffic'))
        label = np.asarray(inputs.splits.val.labels)
        count = 1 if len(inputs.splits.train) > MANY else seeds
        for head in images.heads:
            for seed in range(count):
                trajectories = {
                    training: follow(images, inputs, training, head, seed) for training in TRAININGS
                }
                outcomes += compare(images.name, label, trajectories, seed)
            logging.info('%s: %s is done', images.name, head)
    return outcomes


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the mean and its 95 % interval (Student's t); of one value, without an interval."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return mean, mean - half, mean + half


def spelled(values: Sequence[float]) -> str:
    """Returns the mean and its interval as the tables show them."""
    mean, low, high = interval(values)
    return f'{mean:.1f}' if math.isnan(low) else f'{mean:.1f} ({low:.1f} to {high:.1f})'


def markdown(outcomes: Sequence[Outcome]) -> str:
    """Returns the table: cost, accuracy on each set and steps of each training and rule."""
    names = list(dict.fromkeys(outcome.images for outcome in outcomes))
    head = ['rate', 'epoch kept', 'points lost (95 % interval)', *names, 'steps']
    lines = [f'| {" | ".join(head)} |', f'|{" --- |" * len(head)}']
    for training, rate in TRAININGS.items():
        for rule in RULES:
            own = [o for o in outcomes if (o.training, o.rule) == (training, rule)]
            cells = [rate, rule, spelled([o.cost for o in own])]
            cells += [f'{np.mean([o.accuracy for o in own if o.images == n]):.1f}' for n in names]
            cells += [f'{np.mean([o.steps for o in own]):,.0f}']
            lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def main() -> None:
    """Runs the study."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folders', nargs='*', metavar='FOLDER[@SIDE]')
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--no-demo', action='store_true')
    parser.add_argument('--quick', action='store_true', help='one seed, small images, no demo')
    options = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    demo = not (options.no_demo or options.quick)
    sets = parse(options.folders, demo=demo, quick=options.quick)
    print(markdown(study(sets, 1 if options.quick else options.seeds)))


if __name__ == '__main__':
    main()

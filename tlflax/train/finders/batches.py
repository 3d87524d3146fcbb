"""Training batches on the mesh, of any source, for steps that are taken one by one."""

import dataclasses
import itertools
from collections.abc import Iterator

import jax

from tlflax.features.batches import OnDeviceSource, Source
from tlflax.features.sources import OnDeviceFeatures, StreamedFeatures
from tlflax.models.classifier import Params
from tlflax.train import steps
from tlflax.train.setup import Run
from tlflax.utils.parallel.mesh import put_batch, put_rows

Batch = dict[str, jax.Array]

_gather = jax.jit(steps.gather)


def epoch(run: Run, source: Source, number: int) -> Iterator[Batch]:
    """Yields the batches of an epoch, counted from 0, in the order of training."""
    mesh = run.runner.mesh
    if isinstance(source, OnDeviceSource):
        for rows in put_rows(source.train_rows(number), mesh):
            yield _gather(source.on_device, rows)
        return
    for batch in source.train_batches(number, 0):
        yield put_batch(batch, mesh)


def endless(run: Run, source: Source) -> Iterator[Batch]:
    """Yields the batches of all epochs of the configuration, again and again."""
    for number in itertools.count():
        yield from epoch(run, source, number % run.config.train.epochs)


def with_size(run: Run, source: Source, size: int) -> Source:
    """Returns the training source with another batch size."""
    if isinstance(source, OnDeviceFeatures | StreamedFeatures):
        order = dataclasses.replace(source.cached.order, batch_size=size)
        return dataclasses.replace(source, cached=dataclasses.replace(source.cached, order=order))
    train = dataclasses.replace(run.config.train, batch_size=size)
    return dataclasses.replace(run.sources, train_config=train).live(run.splits.train)


def first_state(run: Run) -> steps.TrainState:
    """Returns the state before the first step, on the mesh; without a moving average."""
    return run.runner.place(run.first_state()._replace(ema={}))


def step(run: Run, state: steps.TrainState, batch: Batch) -> tuple[steps.TrainState, steps.Sums]:
    """Takes a step of the run's optimizer; the state is donated."""
    runner = run.runner
    return steps.train_step(
        state,
        runner.frozen,
        batch,
        runner.seed,
        runner.loss,
        classifier=runner.classifier,
        tx=runner.tx,
    )


def gradient(run: Run, state: steps.TrainState, batch: Batch) -> Params:
    """Returns the gradient of a step that is not taken."""
    runner = run.runner
    gradients, _ = steps.gradient_step(
        state, runner.frozen, batch, runner.seed, runner.loss, classifier=runner.classifier
    )
    return gradients

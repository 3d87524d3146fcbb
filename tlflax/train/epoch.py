"""One epoch of training or evaluation: puts batches on the mesh, runs steps, collects sums."""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Float, Int

from tlflax.data.splits.stratify import units
from tlflax.data.table import ImageTable
from tlflax.features.batches import OnDeviceSource, Source
from tlflax.models.base.modules import Variables
from tlflax.models.classifier import Classifier
from tlflax.train import losses, steps
from tlflax.train.metrics.summary import summary
from tlflax.train.optim.ema import Average
from tlflax.utils.files import JsonObject
from tlflax.utils.parallel import processes
from tlflax.utils.parallel.mesh import Tree, local_rows, put_batch, put_rows, to_host
from tlflax.utils.parallel.placement import place
from tlflax.utils.progress import Tick, progress

_AHEAD = 2  # dispatched steps in flight: bounds memory, hides latency
SCAN = 256  # most steps of one compiled scan; a stop takes effect between two scans


def _ignore(images: int, note: Callable[[], str] | None = None) -> None:
    pass


class Evaluation(NamedTuple):
    """The outcome of one pass over a split.

    Attributes:
        metrics: What `tlflax.train.steps.means` returns; of `evaluate_split`, more.
        probabilities: f32[n, classes], in the order of the examples.
    """

    metrics: JsonObject
    probabilities: Float[np.ndarray, 'n classes']


@dataclasses.dataclass(frozen=True)
class Runner:
    """Runs epochs: holds what does not change from step to step.

    Attributes:
        classifier: The static half of the model.
        tx: The optimizer of the trainable parameters; None where nothing is trained.
        frozen: The parameters and state that never change, as `place` puts them.
        mesh: Devices along one axis, 'data', over which batches are split.
        seed: Of dropout.
        loss: What training minimizes.
        average: The moving average of the trained parameters; None: there is none.
    """

    classifier: Classifier
    tx: optax.GradientTransformation | None
    frozen: Variables
    mesh: Mesh
    seed: int
    loss: losses.Loss
    average: Average | None = None

    def place(self, tree: Tree) -> Tree:
        """Puts states and variables of the host on the mesh, as the steps expect them."""
        return place(tree, self.mesh, self.classifier.shards)

    def fetch(self, tree: Tree) -> Tree:
        """Returns a tree in which what is split by class is whole again, on the host."""
        shards = self.classifier.shards
        return tree if shards is None else shards.fetch(tree)

    def train(
        self,
        state: steps.TrainState,
        source: Source,
        epoch: int,
        start_step: int = 0,
        *,
        limit: int | None = None,
        stop: Callable[[], bool] = lambda: False,
        progress: Tick = _ignore,
    ) -> tuple[steps.TrainState, list[steps.Sums], int]:
        """Trains for the rest of an epoch, or until `stop` returns True.

        Args:
            state: Donated.
            source: The training split.
            epoch: Counted from 0.
            start_step: Completed steps of the epoch.
            limit: The most steps to take; None: no limit.
            stop: Called between steps.
            progress: Called with the number of images of each step or scan, and a note of the
                loss: that of the last step that has ended, for which nobody waits.

        Returns:
            The new state, the sums of each step, and the number of completed steps.
        """
        if isinstance(source, OnDeviceSource):
            rows = source.train_rows(epoch)[start_step:][:limit]
            return self._train_on_device(state, source, rows, stop, progress)
        sums: list[steps.Sums] = []
        waiting: collections.deque[steps.Sums] = collections.deque()
        for batch in itertools.islice(source.train_batches(epoch, start_step), limit):
            if stop():
                break
            state, step_sums = steps.train_step(
                state,
                self.frozen,
                put_batch(batch, self.mesh),
                self.seed,
                self.loss,
                classifier=self.classifier,
                tx=self.tx,
                average=self.average,
            )
            sums.append(step_sums)
            waiting.append(step_sums)
            if len(waiting) > _AHEAD:
                jax.block_until_ready(waiting.popleft())
            progress(int(batch['mask'].sum()), lambda: _loss(sums))
        jax.block_until_ready(state)
        return state, sums, len(sums)

    def _train_on_device(
        self,
        state: steps.TrainState,
        source: OnDeviceSource,
        rows: Int[np.ndarray, 'steps b'],
        stop: Callable[[], bool],
        progress: Tick,
    ) -> tuple[steps.TrainState, list[steps.Sums], int]:
        sums: list[steps.Sums] = []
        done = 0
        while done < len(rows) and not stop():
            part = rows[done : done + SCAN]
            state, part_sums = steps.train_scan(
                state,
                self.frozen,
                source.on_device,
                put_rows(part, self.mesh),
                self.seed,
                self.loss,
                classifier=self.classifier,
                tx=self.tx,
                average=self.average,
            )
            sums.append(part_sums)
            done += len(part)
            progress(int((part >= 0).sum()), lambda: _loss(sums))
        jax.block_until_ready(state)
        return state, sums, done

    def evaluate(
        self,
        trainable: Variables,
        source: Source,
        *,
        progress: Tick = _ignore,
    ) -> Evaluation:
        """Evaluates every example of a split exactly once."""
        variables = trainable.merge(self.frozen)
        if isinstance(source, OnDeviceSource):
            rows = source.eval_rows()
            sums, probabilities = steps.eval_scan(
                variables, source.on_device, put_rows(rows, self.mesh), classifier=self.classifier
            )
            progress(int((rows >= 0).sum()))
            real = to_host(probabilities)[:, : rows.shape[1]][rows >= 0]
            return Evaluation(steps.means([sums.sums], sums.counts), real)
        all_sums, counts = [], None
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        for batch in source.eval_batches():
            sums, probabilities = steps.eval_step(
                variables, put_batch(batch, self.mesh), classifier=self.classifier
            )
            all_sums.append(sums.sums)
            counts = sums.counts if counts is None else jax.tree.map(jnp.add, counts, sums.counts)
            rows = local_rows(probabilities)[: len(batch['mask'])]
            parts.append((batch['index'], rows))
            progress(int(batch['mask'].sum()))
        assert counts is not None
        return Evaluation(steps.means(all_sums, counts), _in_order(parts, source.num_examples))


def _in_order(
    parts: Sequence[tuple[np.ndarray, np.ndarray]], n: int
) -> Float[np.ndarray, 'n classes']:
    """Returns the rows of all processes in the order of the examples.

    Args:
        parts: The numbers of examples, -1 for padding, and the rows of each, batch by batch.
        n: Number of examples.
    """
    index, rows = (np.concatenate(values) for values in zip(*parts, strict=True))
    index, rows = processes.gather_arrays(index), processes.gather_arrays(rows)
    found = np.empty((n, rows.shape[-1]), rows.dtype)
    found[index[index >= 0]] = rows[index >= 0]
    return found


def _loss(sums: Sequence[steps.Sums]) -> str:
    """Returns a note of the mean loss of the last step that has ended; does not wait."""
    for one in reversed(sums):
        if all(value.is_ready() for value in one):  # type: ignore[attr-defined]
            loss, examples = (
                float(np.asarray(value).flat[-1]) for value in (one.loss, one.examples)
            )
            return f'loss {loss / max(examples, 1):.4f}'
    return ''


def evaluate_split(
    runner: Runner, trainable: Variables, source: Source, table: ImageTable
) -> Evaluation:
    """Evaluates every image of a split once.

    Returns:
        `accuracy`, `loss`, `num_examples` and what `summarize` adds; and the probabilities.
    """
    with progress('evaluation', source.num_examples) as tick:
        outcome = runner.evaluate(trainable, source, progress=tick)
    return outcome._replace(metrics={**outcome.metrics, **summarize(table, outcome.probabilities)})


def summarize(table: ImageTable, probabilities: Float[np.ndarray, 'n classes']) -> JsonObject:
    """Returns the metrics of predictions of a table's images; see `metrics.summary.summary`.

    Copies of one file, and images of one group, are not independent.
    """
    return summary(np.asarray(table.labels), probabilities, table.class_names, units(table))

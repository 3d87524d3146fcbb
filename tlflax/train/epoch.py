"""Running one epoch: batches onto the mesh, steps in order, sums out."""

import collections
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from tlflax.models.classifier import Classifier, Params
from tlflax.train import losses, steps
from tlflax.utils.trees import merge

HostBatch = dict[str, Any]
_AHEAD = 2  # steps dispatched before the oldest is waited for: bounds memory, hides latency
SCAN = 256  # most steps of one compiled scan: between two, a stop can be heeded


class Source(Protocol):
    """Images or features of one split, in batches of a fixed shape.

    Attributes:
        num_examples: Examples in an epoch.
        resident: All features, where they fit on the device; None: they come in batches.
    """

    num_examples: int
    resident: steps.Resident | None

    def train_batches(self, epoch: int, start_step: int) -> Iterator[HostBatch]:
        """Yields an epoch's shuffled, augmented batches, from `start_step` on."""
        ...

    def eval_batches(self) -> Iterator[HostBatch]:
        """Yields every example once, in order."""
        ...

    def train_rows(self, epoch: int) -> Int[np.ndarray, 'steps b']:
        """The resident rows of an epoch's batches; -1 is padding."""
        ...

    def eval_rows(self) -> Int[np.ndarray, 'steps b']:
        """The resident rows of every example once, in order; -1 is padding."""
        ...


class Evaluation(NamedTuple):
    """The outcome of one pass over a split.

    Attributes:
        metrics: What `tlflax.train.steps.means` returns.
        probabilities: f32[n, classes], in the order of the examples.
    """

    metrics: dict[str, float]
    probabilities: Float[np.ndarray, 'n classes']


def default_mesh() -> Mesh:
    """Returns a mesh of all devices along one axis, 'data'."""
    return jax.make_mesh((jax.device_count(),), ('data',), axis_types=(AxisType.Auto,))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a tree of arrays on every device of a mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


@dataclasses.dataclass(frozen=True)
class Runner:
    """Everything about a run that does not change from step to step.

    Attributes:
        classifier: The static half of the model.
        tx: The optimiser of the trainable parameters.
        frozen: The parameters that never change, replicated over the mesh.
        mesh: Devices along one axis, 'data', over which batches are split.
        seed: Of dropout.
        loss: What training minimises.
    """

    classifier: Classifier
    tx: optax.GradientTransformation
    frozen: Params
    mesh: Mesh
    seed: int
    loss: losses.Loss

    def put(self, batch: HostBatch) -> steps.Batch:
        """Splits a batch over the devices, padded to a multiple of their number.

        The host keeps `index` to itself.
        """
        sharding = NamedSharding(self.mesh, PartitionSpec('data'))
        local = len(self.mesh.local_devices)

        def put(value: np.ndarray | jax.Array) -> jax.Array:
            if isinstance(value, jax.Array) and value.sharding.device_set == sharding.device_set:
                return value  # features that were computed on the mesh
            return jax.make_array_from_process_local_data(sharding, _pad(np.asarray(value), local))

        return {key: put(value) for key, value in batch.items() if key != 'index'}

    def train(
        self,
        state: steps.TrainState,
        source: Source,
        epoch: int,
        start_step: int = 0,
        *,
        stop: Callable[[], bool] = lambda: False,
        progress: Callable[[int], None] = lambda images: None,
    ) -> tuple[steps.TrainState, list[steps.Sums], int]:
        """Trains for the rest of an epoch, or until `stop` says so.

        Args:
            state: Donated.
            source: The training split.
            epoch: Counted from 0.
            start_step: Steps of the epoch already done.
            stop: Asked between steps.
            progress: Told the number of images of each step or group of steps.

        Returns:
            The new state, the steps' sums, and the number of steps done.
        """
        if source.resident is not None:
            return self._train_resident(state, source, epoch, start_step, stop, progress)
        sums: list[steps.Sums] = []
        waiting: collections.deque[steps.Sums] = collections.deque()
        for batch in source.train_batches(epoch, start_step):
            if stop():
                break
            state, step_sums = steps.train_step(
                state,
                self.frozen,
                self.put(batch),
                self.seed,
                self.loss,
                classifier=self.classifier,
                tx=self.tx,
            )
            sums.append(step_sums)
            waiting.append(step_sums)
            if len(waiting) > _AHEAD:
                jax.block_until_ready(waiting.popleft())
            progress(int(batch['mask'].sum()))
        jax.block_until_ready(state)
        return state, sums, len(sums)

    def _train_resident(
        self,
        state: steps.TrainState,
        source: Source,
        epoch: int,
        start_step: int,
        stop: Callable[[], bool],
        progress: Callable[[int], None],
    ) -> tuple[steps.TrainState, list[steps.Sums], int]:
        rows = source.train_rows(epoch)[start_step:]
        sums: list[steps.Sums] = []
        done = 0
        while done < len(rows) and not stop():
            part = rows[done : done + SCAN]
            state, part_sums = steps.train_scan(
                state,
                self.frozen,
                source.resident,
                self._put_rows(part),
                self.seed,
                self.loss,
                classifier=self.classifier,
                tx=self.tx,
            )
            sums.append(part_sums)
            done += len(part)
            progress(int((part >= 0).sum()))
        jax.block_until_ready(state)
        return state, sums, done

    def evaluate(
        self,
        trainable: Params,
        source: Source,
        *,
        progress: Callable[[int], None] = lambda images: None,
    ) -> Evaluation:
        """Evaluates every example of a split exactly once."""
        params = merge(trainable, self.frozen)
        if source.resident is not None:
            rows = source.eval_rows()
            sums, probabilities = steps.eval_scan(
                params, source.resident, self._put_rows(rows), classifier=self.classifier
            )
            progress(int((rows >= 0).sum()))
            real = np.asarray(probabilities)[:, : rows.shape[1]][rows >= 0]
            return Evaluation(steps.means([sums.sums], sums.counts), real)
        all_sums, parts, counts = [], [], None
        for batch in source.eval_batches():
            sums, probabilities = steps.eval_step(
                params, self.put(batch), classifier=self.classifier
            )
            all_sums.append(sums.sums)
            counts = sums.counts if counts is None else jax.tree.map(jnp.add, counts, sums.counts)
            local = np.concatenate([np.asarray(s.data) for s in _shards(probabilities)])
            parts.append(local[: len(batch['mask'])][batch['mask']])
            progress(int(batch['mask'].sum()))
        assert counts is not None
        return Evaluation(steps.means(all_sums, counts), np.concatenate(parts))

    def _put_rows(self, rows: Int[np.ndarray, 'steps b']) -> Int[jax.Array, 'steps b']:
        padded = _pad(rows.T, self.mesh.size, fill=-1).T
        return jax.device_put(padded, NamedSharding(self.mesh, PartitionSpec(None, 'data')))


def _shards(array: jax.Array) -> list[Any]:
    """This process's parts of an array split over devices, in order."""
    shards = {str(shard.index): shard for shard in array.addressable_shards}
    return sorted(shards.values(), key=lambda shard: shard.index[0].start or 0)


def _pad(value: np.ndarray, multiple: int, fill: int = 0) -> np.ndarray:
    missing = -len(value) % multiple
    if not missing:
        return value
    return np.concatenate([value, np.full((missing, *value.shape[1:]), fill, value.dtype)])

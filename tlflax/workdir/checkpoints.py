"""Saving and restoring runs; the only home of Orbax.

A checkpoint is a step of an Orbax `CheckpointManager` with separate items: `params` (the trained
parameters), `opt_state`, `meta` (JSON: everything needed to use or resume them) and, if
configured, `frozen` (the frozen parameters). The latest and the best step are kept.
"""

import contextlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from tlflax.models.classifier import Params
from tlflax.utils import trees
from tlflax.utils.errors import UserError, as_user_error
from tlflax.utils.files import JsonObject, plain_json

_RANK = 'rank'


class Checkpoints:
    """The checkpoints of one workdir.

    Saving runs in the background; an error in one save is raised by the next call. As a context
    manager it waits for the last save on exit.

    Args:
        folder: Created by the first save.
        read_only: Nothing is created, saved or deleted.

    Raises:
        UserError: The folder cannot be written.
    """

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        self.folder = folder.resolve()
        if read_only and not self.folder.is_dir():
            raise UserError(
                'no checkpoint found',
                where=str(self.folder),
                fix='give a workdir in which `python -m tlflax.train` ran',
            )
        keep = policies.AnyPreservationPolicy(
            [
                policies.LatestN(1),
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics[_RANK],
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep,
            best_fn=lambda metrics: metrics[_RANK],
            keep_checkpoints_without_metrics=False,
            # Folders made in the background leave threads waiting for minutes when that fails.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            read_only=read_only,
            create=not read_only,
            cleanup_tmp_directories=not read_only,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except UserError:
            if kind is None:  # else the error under way says more
                raise
        finally:
            self._manager.close()

    def latest(self) -> int | None:
        """Returns the last saved step, or None."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """Returns the step of the best epoch so far, or None."""
        ranks = {step: self.meta(step)['rank'] for step in self._manager.all_steps()}
        ranked = {step: rank for step, rank in ranks.items() if rank >= 0}
        return max(ranked, key=lambda step: ranked[step]) if ranked else None

    def find(self, which: str) -> int:
        """Returns the saved step that 'best', 'last' or a number names.

        Raises:
            UserError: No such step is saved.
        """
        steps = sorted(self._manager.all_steps())
        if not steps:
            raise UserError(
                'no checkpoint found',
                where=str(self.folder),
                fix='train first, or give another workdir',
            )
        if which in ('best', 'last'):
            best = self.best() if which == 'best' else None
            return steps[-1] if best is None else best
        if not which.isdigit() or int(which) not in steps:
            raise UserError(
                f'no checkpoint of step {which!r}',
                where=str(self.folder),
                fix=f"choose 'best', 'last' or one of {', '.join(map(str, steps))}",
            )
        return int(which)

    def save(
        self,
        step: int,
        *,
        params: Params,
        opt_state: optax.OptState,
        meta: JsonObject,
        rank: int,
        frozen: Params | None = None,
    ) -> None:
        """Starts saving; arrays are copied before it returns and may be donated.

        Args:
            step: Completed optimizer steps.
            params: The trainable parameters.
            opt_state: The optimizer's state.
            meta: Plain values; NaN and infinities are saved as null.
            rank: The epoch, if it is the best so far, else -1; the highest rank is the best.
            frozen: Frozen parameters to save too.
        """
        self.wait()
        if step in self._manager.all_steps():
            self._manager.delete(step)
        host = jax.tree.map(np.asarray, (params, opt_state))
        items: dict[str, ocp.args.CheckpointArgs] = {
            'params': ocp.args.StandardSave(host[0]),
            'opt_state': ocp.args.StandardSave(host[1]),
            'meta': ocp.args.JsonSave(plain_json({**meta, 'rank': rank})),
        }
        if frozen is not None:
            items['frozen'] = ocp.args.StandardSave(jax.tree.map(np.asarray, frozen))
        with self._saving():
            self._manager.save(
                step, args=ocp.args.Composite(**items), metrics={_RANK: float(rank)}, force=True
            )

    def wait(self) -> None:
        """Waits for the current save.

        Raises:
            UserError: It failed; earlier steps are still saved.
        """
        with self._saving():
            self._manager.wait_until_finished()

    def _saving(self) -> contextlib.AbstractContextManager[None]:
        return as_user_error(
            'the state cannot be saved ({reason})',
            where=str(self.folder),
            fix='make room or fix that, then run the same command to continue',
            of=(OSError, ValueError, RuntimeError),
        )

    def meta(self, step: int) -> JsonObject:
        """Returns the metadata saved with a step."""
        restored = self._restore(step, meta=ocp.args.JsonRestore())
        return _decode(restored['meta'])

    def params(self, step: int, abstract: Params) -> Params:
        """Returns the trainable parameters alone, as host arrays shaped like `abstract`."""
        params = self._restore(step, params=_host(abstract))['params']
        self._check(step, abstract, params)
        return params

    def state(
        self, step: int, params: Params, opt_state: optax.OptState
    ) -> tuple[Params, optax.OptState]:
        """Returns parameters and optimizer state as host arrays shaped like the arguments."""
        restored = self._restore(step, params=_host(params), opt_state=_host(opt_state))
        self._check(step, params, restored['params'])
        return restored['params'], restored['opt_state']

    def frozen(self, step: int, abstract: Params) -> Params | None:
        """Returns the frozen parameters in the checkpoint, or None if they were not saved."""
        if not (self.folder / str(step) / 'frozen').is_dir():
            return None
        return self._restore(step, frozen=_host(abstract))['frozen']

    def _check(self, step: int, expected: Params, got: Params) -> None:
        """Compares shapes and types: Orbax restores those that were saved."""
        where = str(self.folder / str(step))
        trees.check_same(expected, got, where=where, fix='it was written by another model')

    def _restore(self, step: int, **items: ocp.args.CheckpointArgs) -> Any:
        with as_user_error(
            f'step {step} cannot be read ({{reason}})',
            where=str(self.folder),
            fix='it was written by another model or is damaged; choose another --step',
            of=(ValueError, KeyError, FileNotFoundError),
        ):
            return self._manager.restore(step, args=ocp.args.Composite(**items))


def _host(tree: Any) -> ocp.args.StandardRestore:
    """Restores as NumPy arrays, so that the number of devices that saved does not matter."""
    arrays = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), tree)
    return ocp.args.StandardRestore(arrays)


def _decode(value: Any) -> Any:
    """Returns metadata as it was saved; {'float': 'nan'} is how released versions wrote a NaN."""
    if isinstance(value, dict):
        if set(value) == {'float'}:
            return float(value['float'])
        return {key: _decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_decode(item) for item in value]
    return value

"""Saving and restoring runs; the only home of Orbax.

A checkpoint is a step of an Orbax `CheckpointManager` with separate items: `params` (what was
learned), `opt_state`, `meta` (JSON: everything a reader needs to use or go on with them) and, if
asked for, `frozen` (the backbone). The latest and the best are kept, whichever they are.
"""

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from tlflax.utils import trees
from tlflax.utils.errors import UserError

_RANK = 'rank'


class Checkpoints:
    """The checkpoints of one workdir.

    Saving runs in the background; an error of one save is raised by the next call. Use as a
    context manager, so that the last one is waited for, whatever ends the run.

    Args:
        folder: Created when something is first saved.
        read_only: Nothing is created, saved or deleted.

    Raises:
        UserError: The folder cannot be written.
    """

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        self.folder = folder.resolve()
        if read_only and not self.folder.is_dir():
            raise UserError(
                'there is no checkpoint here',
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
        """Turns 'best', 'last' or a number into a saved step.

        Raises:
            UserError: There is none.
        """
        steps = sorted(self._manager.all_steps())
        if not steps:
            raise UserError(
                'there is no checkpoint here yet',
                where=str(self.folder),
                fix='train first, or give another workdir',
            )
        if which in ('best', 'last'):
            best = self.best() if which == 'best' else None
            return steps[-1] if best is None else best
        if not which.isdigit() or int(which) not in steps:
            raise UserError(
                f'there is no checkpoint of step {which!r}',
                where=str(self.folder),
                fix=f"choose 'best', 'last' or one of {', '.join(map(str, steps))}",
            )
        return int(which)

    def save(
        self,
        step: int,
        *,
        params: Any,
        opt_state: Any,
        meta: dict[str, Any],
        rank: int,
        frozen: Any = None,
    ) -> None:
        """Starts saving; arrays are copied before this returns, so they may be donated.

        Args:
            step: Optimizer steps done.
            params: The trainable parameters.
            opt_state: The optimizer's state.
            meta: Plain values; NaN and infinities allowed.
            rank: Rises with every improvement; the highest is the best. -1: not an improvement.
            frozen: Frozen parameters to copy along.
        """
        self.wait()
        if step in self._manager.all_steps():
            self._manager.delete(step)
        host = jax.tree.map(np.asarray, (params, opt_state))
        items: dict[str, Any] = {
            'params': ocp.args.StandardSave(host[0]),
            'opt_state': ocp.args.StandardSave(host[1]),
            'meta': ocp.args.JsonSave(_encode({**meta, 'rank': rank})),
        }
        if frozen is not None:
            items['frozen'] = ocp.args.StandardSave(jax.tree.map(np.asarray, frozen))
        with self._saving():
            self._manager.save(
                step, args=ocp.args.Composite(**items), metrics={_RANK: float(rank)}, force=True
            )

    def wait(self) -> None:
        """Waits for a save under way.

        Raises:
            UserError: It failed; the steps saved before stand.
        """
        with self._saving():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f'the state cannot be saved ({str(error).strip().splitlines()[0][:200]})',
                where=str(self.folder),
                fix='make room or fix that, then run the same command to go on',
            ) from error

    def meta(self, step: int) -> dict[str, Any]:
        """Returns the metadata saved with a step."""
        restored = self._restore(step, meta=ocp.args.JsonRestore())
        return _decode(restored['meta'])

    def params(self, step: int, abstract: Any) -> Any:
        """Returns the trainable parameters alone, as host arrays shaped like `abstract`."""
        params = self._restore(step, params=_host(abstract))['params']
        self._check(step, abstract, params)
        return params

    def state(self, step: int, params: Any, opt_state: Any) -> tuple[Any, Any]:
        """Returns parameters and optimizer state as host arrays shaped like the arguments."""
        restored = self._restore(step, params=_host(params), opt_state=_host(opt_state))
        self._check(step, params, restored['params'])
        return restored['params'], restored['opt_state']

    def frozen(self, step: int, abstract: Any) -> Any | None:
        """Returns the backbone copied into the checkpoint, or None if it is not there."""
        if not (self.folder / str(step) / 'frozen').is_dir():
            return None
        return self._restore(step, frozen=_host(abstract))['frozen']

    def _check(self, step: int, expected: Any, got: Any) -> None:
        """Orbax restores whatever shape was saved."""
        where = str(self.folder / str(step))
        trees.check_same(expected, got, where=where, fix='it was written by another model')

    def _restore(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (ValueError, KeyError, FileNotFoundError, json.JSONDecodeError) as error:
            raise UserError(
                f'step {step} cannot be read ({str(error).splitlines()[0]})',
                where=str(self.folder),
                fix='it was written by another model or is damaged; choose another --step',
            ) from error


def _host(tree: Any) -> ocp.args.StandardRestore:
    """Restores as NumPy arrays, so that the number of devices that saved does not matter."""
    arrays = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), tree)
    return ocp.args.StandardRestore(arrays)


def _encode(value: Any) -> Any:
    """Plain JSON, with NaN and infinities as {'float': 'nan'}: JSON has no word for them."""
    if isinstance(value, dict):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {'float': repr(value)}
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {'float'}:
            return float(value['float'])
        return {key: _decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_decode(item) for item in value]
    return value

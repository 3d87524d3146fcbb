"""Saving and restoring runs; the only home of Orbax.

A checkpoint is a step of an Orbax `CheckpointManager` with separate items: `params` (the trained
parameters), `opt_state`, `meta` (JSON: everything needed to use or resume them) and, where there is
any, `state` (what training changes without a gradient), `frozen` and `frozen_state` (what it does
not change, unless the pretrained weights hold it). The latest and the best step are kept.
"""

import contextlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from tlflax.models.base.modules import Variables
from tlflax.utils import trees
from tlflax.utils.errors import UserError, as_user_error
from tlflax.utils.files import JsonObject, plain_json

_RANK = 'rank'
NOTHING = Variables({}, {})


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
        trained: Variables,
        opt_state: optax.OptState,
        meta: JsonObject,
        rank: int,
        frozen: Variables = NOTHING,
    ) -> None:
        """Starts saving; arrays are copied before it returns and may be donated.

        Args:
            step: Completed optimizer steps.
            trained: The trainable parameters, and the state that changes with them.
            opt_state: The optimizer's state.
            meta: Plain values; NaN and infinities are saved as null.
            rank: The epoch, if it is the best so far, else -1; the highest rank is the best.
            frozen: Frozen parameters and state to save too.
        """
        self.wait()
        if step in self._manager.all_steps():
            self._manager.delete(step)
        arrays = {
            'params': trained.params,
            'opt_state': opt_state,
            'state': trained.state,
            'frozen': frozen.params,
            'frozen_state': frozen.state,
        }
        items: dict[str, ocp.args.CheckpointArgs] = {
            name: ocp.args.StandardSave(jax.tree.map(np.asarray, tree))
            for name, tree in arrays.items()
            if tree
        }
        items['meta'] = ocp.args.JsonSave(plain_json({**meta, 'rank': rank}))
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

    def trained(self, step: int, abstract: Variables) -> Variables:
        """Returns what training has changed, as host arrays shaped like `abstract`."""
        return self._variables(step, abstract, ('params', 'state'))

    def state(
        self, step: int, trained: Variables, opt_state: optax.OptState
    ) -> tuple[Variables, optax.OptState]:
        """Returns what training has changed and the optimizer's state, as host arrays."""
        restored = self._restore(step, opt_state=_host(opt_state))
        return self.trained(step, trained), restored['opt_state']

    def frozen(self, step: int, abstract: Variables) -> Variables:
        """Returns the frozen variables in the checkpoint; those it does not hold are missing."""
        names = ('frozen', 'frozen_state')
        saved = [(self.folder / str(step) / name).is_dir() for name in names]
        present = (tree if here else {} for tree, here in zip(abstract, saved, strict=True))
        return self._variables(step, Variables(*present), names)

    def _variables(self, step: int, abstract: Variables, names: tuple[str, str]) -> Variables:
        """Restores variables, and compares them: Orbax restores the shapes that were saved."""
        wanted = {name: _host(tree) for name, tree in zip(names, abstract, strict=True) if tree}
        got = self._restore(step, **wanted) if wanted else {}
        found = Variables(*(got[name] if name in wanted else {} for name in names))
        where = str(self.folder / str(step))
        for expected, tree in zip(abstract, found, strict=True):
            trees.check_same(expected, tree, where=where, fix='it was written by another model')
        return found

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

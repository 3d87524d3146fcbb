"""Saving and restoring runs.

A checkpoint is a step of an Orbax `CheckpointManager` with separate items: `params` (the trained
parameters), `opt_state`, `meta` (JSON: everything needed to use or resume them) and, where there is
any, `ema` (the moving average of `params`, which is what is evaluated), `state` (what training
changes without a gradient), `frozen` and `frozen_state` (what it does not change, unless the
pretrained weights hold it). The metadata holds a digest of every other item and of itself, which
are compared when they are read, so that damage is an error and never another answer. The latest,
the best and the best before it are kept: whichever of them is damaged, another leads to the same
end (`tlflax.workdir.recovery`).
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import optax

from tlflax.models.base.modules import Variables
from tlflax.utils import trees
from tlflax.utils.errors import UserError, as_user_error
from tlflax.utils.files import JsonObject, signed
from tlflax.utils.parallel.mesh import to_host
from tlflax.utils.parallel.processes import on_primary
from tlflax.workdir import metadata
from tlflax.workdir.folders import require_folder

NOTHING = Variables({}, {})

_DIGESTS = 'digests'  # key of the metadata: those of the other items
_ROOM = 2**18  # bytes of a checkpoint beside its arrays, at most


class Checkpoints:
    """The checkpoints of one workdir, which the primary process alone reads and writes.

    Saving runs in the background; an error in one save is raised by the next call. As a context
    manager it waits for the last save on exit.

    Args:
        folder: Created by the first save.
        read_only: Nothing is created, saved or deleted.

    Raises:
        UserError: The folder cannot be written, or Orbax's own notes are damaged.
    """

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        self.folder = folder.resolve()
        self._open(read_only)

    @on_primary
    def _open(self, read_only: bool) -> None:
        if read_only:
            require_folder(self.folder)
        from tlflax.workdir import orbax_manager  # Orbax takes a quarter of a second

        self._metas: dict[int, JsonObject] = {}
        if not read_only:
            with self._saving():
                self.folder.mkdir(parents=True, exist_ok=True)
        with as_user_error(
            'the checkpoints cannot be opened ({reason})',
            where=str(self.folder),
            fix='delete what is damaged of the files _CHECKPOINT_METADATA, which are not needed',
            of=(ValueError, TypeError),
        ):
            self._manager = orbax_manager.Manager(self.folder, read_only=read_only)

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except UserError:
            if kind is None:  # else the error under way says more
                raise
        finally:
            self._close()

    @on_primary
    def _close(self) -> None:
        self._manager.close()

    @on_primary
    def steps(self) -> list[int]:
        """Returns the steps that have a folder, in order, damaged or not."""
        return saved_steps(self.folder)

    def best(self) -> int | None:
        """Returns the step of the best epoch so far, or None.

        Raises:
            UserError: The metadata of a step is damaged, so that it cannot be told.
        """
        return self.best_of(self.steps())

    @on_primary
    def best_of(self, steps: Sequence[int]) -> int | None:
        """Returns the best of some steps, the last of which knows it; see `best`."""
        meta = self.meta(steps[-1]) if steps else {'best_step': None}
        if 'best_step' not in meta:  # released versions did not say
            ranks = self._ranks(steps)
            return max(ranks, key=lambda step: ranks[step]) if ranks else None
        best: int | None = meta['best_step']
        if best is not None and best not in steps:
            raise UserError(
                f'step {best}, the best before step {steps[-1]}, is missing',
                where=str(self.folder),
                fix='put back a copy of it, or choose another --step',
            )
        return best

    def _ranks(self, steps: Sequence[int]) -> dict[int, int]:
        """Returns the ranks of the steps that were the best when they were saved."""
        ranks = {step: self.meta(step)['rank'] for step in steps}
        return {step: rank for step, rank in ranks.items() if rank >= 0}

    @on_primary
    def find(self, which: str) -> int:
        """Returns the saved step that 'best', 'last' or a number names.

        Raises:
            UserError: No such step is saved.
        """
        steps = self.steps()
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

    @on_primary
    def set_aside(self, steps: Sequence[int], folder: Path) -> None:
        """Moves steps to another folder of the same disk.

        Raises:
            UserError: They cannot be moved.
        """
        with self._saving():
            for step in steps:
                folder.mkdir(exist_ok=True)
                shutil.rmtree(folder / str(step), ignore_errors=True)
                os.rename(self.folder / str(step), folder / str(step))
                self._metas.pop(step, None)
        self._manager.reload()

    def save(
        self,
        step: int,
        *,
        trained: Variables,
        opt_state: optax.OptState,
        meta: JsonObject,
        rank: int,
        ema: trees.Tree | None = None,
        frozen: Variables = NOTHING,
    ) -> None:
        """Starts saving; arrays are copied before it returns and may be donated.

        Args:
            step: Completed optimizer steps.
            trained: The trainable parameters, and the state that changes with them.
            opt_state: The optimizer's state.
            meta: Plain values; NaN and infinities are saved as null.
            rank: The epoch, if it is the best so far, else -1; the highest rank is the best.
            ema: The moving average of the trainable parameters; None or {}: there is none.
            frozen: Frozen parameters and state to save too.
        """
        trees_by_name = {
            'params': trained.params,
            'opt_state': opt_state,
            'ema': ema,
            'state': trained.state,
            'frozen': frozen.params,
            'frozen_state': frozen.state,
        }
        arrays = {name: to_host(tree) for name, tree in trees_by_name.items() if tree}
        self._save(step, arrays, meta, rank)

    @on_primary
    def _save(self, step: int, arrays: dict[str, Any], meta: JsonObject, rank: int) -> None:
        self.wait()
        ranks = self._ranks(self.steps()) | ({step: rank} if rank >= 0 else {})
        best = sorted(ranks, key=lambda step: ranks[step])[-2:]
        with self._saving():
            self._check_room(sum(leaf.nbytes for leaf in jax.tree.leaves(arrays)))
        digests = {name: trees.fingerprint(tree) for name, tree in arrays.items()}
        best_step = best[-1] if best else None
        whole = signed({**meta, 'rank': rank, 'best_step': best_step, _DIGESTS: digests})
        with self._saving():
            self._manager.save(step, arrays, whole, keep={step, *best})
        self._metas[step] = whole

    def _check_room(self, size: int) -> None:
        """Refuses to begin what will not fit: Orbax's threads report it at length."""
        if shutil.disk_usage(self.folder).free < size + _ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @on_primary
    def drop_former(self) -> None:
        """Deletes all but the best and the latest step, for a training that has ended."""
        self.wait()
        keep = {self.find('best'), self.find('last')}
        for step in self.steps():
            if step not in keep:
                self._manager.delete(step)

    @on_primary
    def wait(self) -> None:
        """Waits for the current save.

        Raises:
            UserError: It failed; earlier steps are still saved.
        """
        with self._saving():
            self._manager.wait()

    def _saving(self) -> contextlib.AbstractContextManager[None]:
        return as_user_error(
            'the state cannot be saved ({reason})',
            where=str(self.folder),
            fix='make room or fix that, then run the same command to continue',
            of=(OSError, ValueError, RuntimeError),
        )

    @on_primary
    def meta(self, step: int) -> JsonObject:
        """Returns the metadata saved with a step.

        Raises:
            UserError: It is damaged.
        """
        if step not in self._metas:
            saved = self._restore(step, meta=None)['meta']
            try:
                self._metas[step] = metadata.decode(saved)
            except ValueError as error:
                raise self._damaged(step, 'meta') from error
        return self._metas[step]

    def _damaged(self, step: int, name: str) -> UserError:
        return UserError(
            f'step {step} is damaged: its {name} is not what was saved',
            where=str(self.folder),
            fix='put back a copy of it, or choose another --step',
        )

    @on_primary
    def evaluated(self, step: int, abstract: Variables) -> Variables:
        """Returns what is used of a step: the moving average of the parameters, if it has one.

        Returns:
            What training has changed, as host arrays shaped like `abstract`.
        """
        averaged = 'ema' in self.meta(step).get(_DIGESTS, {})
        return self._variables(step, abstract, ('ema' if averaged else 'params', 'state'))

    @on_primary
    def state(
        self, step: int, trained: Variables, opt_state: optax.OptState, ema: trees.Tree
    ) -> tuple[Variables, optax.OptState, trees.Tree]:
        """Returns variables, the optimizer's state and the moving average, as host arrays."""
        restored = self._restore(step, opt_state=opt_state)
        variables = self._variables(step, trained, ('params', 'state'))
        average = self._variables(step, Variables(ema, {}), ('ema', 'state')).params
        return variables, restored['opt_state'], average

    @on_primary
    def frozen(self, step: int, abstract: Variables) -> Variables:
        """Returns the frozen variables in the checkpoint; those it does not hold are missing."""
        names = ('frozen', 'frozen_state')
        saved = [(self.folder / str(step) / name).is_dir() for name in names]
        present = (tree if here else {} for tree, here in zip(abstract, saved, strict=True))
        return self._variables(step, Variables(*present), names)

    def _variables(self, step: int, abstract: Variables, names: tuple[str, str]) -> Variables:
        """Restores variables, and compares them: Orbax restores the shapes that were saved."""
        wanted = {name: tree for name, tree in zip(names, abstract, strict=True) if tree}
        got = self._restore(step, **wanted) if wanted else {}
        found = Variables(*(got[name] if name in wanted else {} for name in names))
        where = str(self.folder / str(step))
        for expected, tree in zip(abstract, found, strict=True):
            trees.check_same(expected, tree, where=where, fix='it was written by another model')
        return found

    def _restore(self, step: int, **items: Any) -> Any:
        """Restores items of a step, and compares arrays with the digests in its metadata."""
        with as_user_error(
            f'step {step} cannot be read ({{reason}})',
            where=str(self.folder),
            fix='it was written by another model or is damaged; choose another --step',
        ):
            restored = self._manager.restore(step, items)
        arrays = [name for name in items if name != 'meta']
        digests = self.meta(step).get(_DIGESTS) if arrays else None
        for name in arrays:
            if digests is not None and trees.fingerprint(restored[name]) != digests.get(name):
                raise self._damaged(step, name)
        return restored


def saved_steps(folder: Path) -> list[int]:
    """Returns the steps in a folder of checkpoints, in order; none where there is no folder."""
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())

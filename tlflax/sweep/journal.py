"""What a sweep has done so far, on disk: its finished members, and the best of them as a run.

`members.jsonl` begins with what the sweep is of; each further line is a member that has finished,
with a digest. `best/` is replaced before the line of the member it holds is written, so whatever
moment a process is killed at, the next one trains again at most the members under way and that one.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from tlflax.config.parse import to_dict
from tlflax.sweep.group import Member
from tlflax.train.position import Position
from tlflax.utils.errors import UserError
from tlflax.utils.files import JsonObject, atomic_write, dump_json, is_signed, plain_json, signed
from tlflax.utils.parallel.processes import on_primary
from tlflax.workdir.files import Workdir, read_json, writing

_BEST, _NEW, _OLD = 'best', '.best.new', '.best.old'


class Journal:
    """The journal of the sweep in one workdir.

    Args:
        work: The workdir, locked.
        header: What the sweep is of: configuration, settings, images, weights, code.

    Attributes:
        seconds: Spent on the members that have finished, by all processes.

    Raises:
        UserError: The workdir holds another sweep, or something else.
    """

    def __init__(self, work: Workdir, header: JsonObject) -> None:
        self._work, self._path = work, work.path / 'members.jsonl'
        self.seconds = 0.0
        self._open(plain_json(header))

    @on_primary
    def _open(self, header: JsonObject) -> None:
        if not self._path.exists():
            self._work.require_unused('sweep.json', 'config.json', _BEST)
            self._write([header])
        self._check(header)
        _recover(self._work.path)

    def _check(self, header: JsonObject) -> None:
        first = self._lines()[:1]
        started = first[0] if first else None
        if not isinstance(started, dict) or started.keys() != header.keys():
            raise UserError(
                'the first line is damaged, so this sweep cannot go on',
                where=str(self._path),
                fix='give another --workdir',
            )
        differ = [key for key in header if header[key] != started[key]]
        if differ:
            raise UserError(
                f'this workdir holds a sweep of other {" and ".join(differ)}',
                where=str(self._work.path),
                fix='give another --workdir, or start it as before to continue',
            )

    def restore(self, members: Sequence[Member]) -> list[int]:
        """Gives members that have finished the outcome they had.

        Args:
            members: All of the sweep, as they are before training.

        Returns:
            The numbers, from 0, of those that have finished.
        """
        lines = self._lines()
        kept = {line['number']: line for line in lines[1:] if self._is_whole(line, len(members))}
        for number, line in kept.items():
            member = members[number]
            member.records, member.diverged = line['records'], line['diverged']
            member.position = Position.from_json(line['position'])
            member.best_position = Position.from_json(line['best_position'])
            self.seconds = max(self.seconds, line['seconds'])
        self._write([lines[0], *kept.values()])
        return sorted(kept)

    def _is_whole(self, line: Any, members: int) -> bool:
        whole = is_signed(line) and line['number'] in range(members)
        if not whole:
            logging.warning(
                'WARNING: %s: a line is damaged; that setting is trained again', self._path
            )
        return whole

    @on_primary
    def forget(self, number: int) -> None:
        """Removes a member's line, so that it is trained again."""
        first, *lines = self._lines()
        self._write([first, *(line for line in lines if line['number'] != number)])

    @on_primary
    def add(self, number: int, member: Member, seconds: float) -> None:
        """Adds a member that has finished."""
        line = {
            'number': number,
            'records': member.records,
            'position': member.position.to_json(),
            'best_position': member.best_position.to_json(),
            'diverged': member.diverged,
            'seconds': seconds,
        }
        with writing(self._work.path), open(self._path, 'a') as file:
            file.write(dump_json(signed(line)) + '\n')

    @on_primary
    def holds_best(self, member: Member) -> bool:
        """Returns whether `best/` is the finished run of this member."""
        folder = self._work.path / _BEST
        if not (folder / 'result.json').exists():
            return False
        try:
            Workdir(folder).result()
            return read_json(folder / 'config.json') == plain_json(to_dict(member.run.config))
        except UserError as error:
            logging.warning('WARNING: %s', error)
            return False

    def replace_best(self, write: Callable[[Workdir], object]) -> None:
        """Replaces `best/` by what `write` puts into a new workdir; one of them is always there."""
        self._clear()
        write(Workdir(self._work.path / _NEW))
        self._put_best()

    @on_primary
    def _clear(self) -> None:
        shutil.rmtree(self._work.path / _NEW, ignore_errors=True)

    @on_primary
    def _put_best(self) -> None:
        new, best, old = (self._work.path / name for name in (_NEW, _BEST, _OLD))
        with writing(self._work.path):
            if best.exists():
                os.rename(best, old)
            os.rename(new, best)
        shutil.rmtree(old, ignore_errors=True)

    @on_primary
    def _lines(self) -> list[Any]:
        lines: list[Any] = []
        for text in self._path.read_text(errors='replace').splitlines():
            try:
                lines.append(json.loads(text))
            except (ValueError, RecursionError):
                lines.append(None)
        return lines

    @on_primary
    def _write(self, lines: Sequence[object]) -> None:
        with writing(self._work.path):
            atomic_write(self._path, ''.join(dump_json(line) + '\n' for line in lines))


def _recover(folder: Path) -> None:
    """Puts `best/` back if a process was killed while it replaced it, and removes the rest."""
    new, best, old = (folder / name for name in (_NEW, _BEST, _OLD))
    if old.exists() and not best.exists():
        os.rename(old, best)
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)

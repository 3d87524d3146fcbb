"""The files of a workdir other than checkpoints: config, metrics, result; and its loggers."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from absl import logging

from tlflax.config import parse
from tlflax.config.parse import to_dict
from tlflax.config.schema import Config
from tlflax.utils.errors import UserError, as_user_error
from tlflax.utils.files import (
    JsonObject,
    atomic_write,
    dump_json,
    is_signed,
    leaves,
    plain_json,
    signed,
    write_json,
)
from tlflax.utils.parallel.processes import on_primary
from tlflax.workdir.lock import locked
from tlflax.workdir.loggers.base import Status
from tlflax.workdir.loggers.group import IDS, Loggers


class Workdir:
    """The folder of one run, of which the primary process alone reads and writes files.

    Attributes:
        path: Absolute.
        loggers: Show the run elsewhere; see `log_to`.

    Args:
        path: Created if it does not exist.

    Raises:
        UserError: It cannot be created or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self._create()
        self.loggers = Loggers(self.path)

    @on_primary
    def _create(self) -> None:
        with writing(self.path, 'give another one with --workdir'):
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass

    @property
    def checkpoints(self) -> Path:
        """The folder of Orbax checkpoints."""
        return self.path / 'checkpoints'

    @on_primary
    def check(self, config: Config) -> Config:
        """Checks that the workdir is new or belongs to the same configuration.

        Returns:
            The configuration; where the run was started by a released version, with the defaults
            of that version.

        Raises:
            UserError: It belongs to another configuration; names the keys that differ.
        """
        path = self.path / 'config.json'
        if not path.exists():
            return config
        started = read_json(path)
        config = parse.continued(config, started)
        self.check_same(to_dict(config), started)
        return config

    @on_primary
    def check_same(self, config: JsonObject, started: JsonObject) -> None:
        """Checks that a configuration is the one that a run was started with.

        Raises:
            UserError: It is not; names the keys that differ.
        """
        # A key that did not exist when the run was started had its default, or what it stood for.
        filled = leaves(plain_json(parse.filled(started)))
        theirs = {**leaves(plain_json(to_dict(Config()))), **filled}
        ours = leaves(plain_json(config))
        differ = [
            f'{key} was {theirs.get(key)!r} and is {ours.get(key)!r}'
            for key in sorted(theirs.keys() | ours.keys())
            if theirs.get(key) != ours.get(key)
        ]
        if differ:
            raise UserError(
                f'this workdir holds a run of another config ({"; ".join(differ[:5])})',
                where=str(self.path),
                fix='give another --workdir, or the same config to continue',
            )

    @on_primary
    def claim(self, config: JsonObject) -> None:
        """Writes config.json, which binds the workdir to this configuration."""
        with writing(self.path):
            write_json(self.path / 'config.json', config)

    @on_primary
    def require_unused(self, *names: str) -> None:
        """Refuses a workdir that has any of these files.

        Raises:
            UserError: It has one.
        """
        if any((self.path / name).exists() for name in names):
            raise UserError(
                'this workdir is in use', where=str(self.path), fix='give another --workdir'
            )

    @on_primary
    def check_free(self) -> None:
        """Refuses a workdir with a run in it, unless a process was killed while it wrote that.

        Raises:
            UserError: It has one.
        """
        if not self._mark.exists():
            self.require_unused('config.json', 'result.json')

    @on_primary
    def begin_writing(self) -> None:
        """Prepares for a run that is written at once, until `write_result`; see `check_free`."""
        self.check_free()
        with writing(self.path):
            self._mark.touch()
            for folder in (self.checkpoints, self.path / 'tensorboard'):
                shutil.rmtree(folder, ignore_errors=True)
            for name in ('metrics.jsonl', IDS):
                (self.path / name).unlink(missing_ok=True)

    @property
    def _mark(self) -> Path:
        return self.path / '.writing'

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps others from training here; see `tlflax.workdir.lock.locked`."""
        with contextlib.ExitStack() as held:
            self._lock(held)
            yield

    @on_primary
    def _lock(self, held: contextlib.ExitStack) -> None:
        held.enter_context(locked(self.path))

    @on_primary
    def has_checkpoints(self) -> bool:
        """Returns whether a run has begun here."""
        return self.checkpoints.is_dir()

    @on_primary
    def add_session(self, session: JsonObject) -> None:
        """Adds to provenance.json, which has an entry for each process of the run."""
        path = self.path / 'provenance.json'
        try:
            before = json.loads(path.read_text())['sessions']
        except FileNotFoundError:
            before = []
        except (ValueError, KeyError, TypeError, RecursionError):
            logging.warning('WARNING: %s: is damaged and begins again', path)
            before = []
        with writing(self.path):
            write_json(path, {'sessions': [*before, session]})

    @on_primary
    def result(self) -> JsonObject | None:
        """Returns the result of a finished run, or None.

        Raises:
            UserError: The file is damaged.
        """
        return read_result(self.path)

    @on_primary
    def write_result(self, result: JsonObject) -> JsonObject:
        """Writes result.json, which marks the run as finished; returns its contents."""
        whole = signed(result)
        with writing(self.path):
            write_json(self.path / 'result.json', whole)
            self._mark.unlink(missing_ok=True)
        self.loggers.finish(whole)
        return whole

    @on_primary
    def records(self) -> list[JsonObject]:
        """Returns the epochs' records written so far; a line that is damaged is left out."""
        return read_records(self.path)

    @on_primary
    def rewind(self, epochs: int) -> int:
        """Drops the records after the first `epochs` epochs, which will be run again.

        Returns:
            The last step that has a record, dropped ones included; -1: none has.
        """
        records = self.records()
        kept = [record for record in records if record['epoch'] <= epochs]
        if lost := sorted({*range(1, epochs + 1)} - {record['epoch'] for record in kept}):
            what = f'the lines of {len(lost)} epochs, the first of them {lost[0]}, are lost'
            logging.warning('WARNING: %s: %s', self.path / 'metrics.jsonl', what)
        lines = ''.join(dump_json(record) + '\n' for record in kept)
        with writing(self.path):
            atomic_write(self.path / 'metrics.jsonl', lines)
        return max((record['step'] for record in records), default=-1)

    @on_primary
    def log_to(
        self, names: Sequence[str], config: JsonObject, step: int = 0, shown: int = -1
    ) -> None:
        """Opens loggers, to which `append` and `write_result` write too; see `Loggers`."""
        self.loggers = Loggers(self.path, names, config, step, shown)

    @on_primary
    def append(self, record: JsonObject) -> None:
        """Adds an epoch's record to metrics.jsonl and shows it by the loggers."""
        with writing(self.path), open(self.path / 'metrics.jsonl', 'a') as file:
            file.write(dump_json(record) + '\n')
        values = {name: value for name, value in record.items() if name not in ('epoch', 'step')}
        self.loggers.scalars(record['step'], values)

    @on_primary
    def close(self, status: Status) -> None:
        """Closes the loggers.

        Args:
            status: How this process ends its part of the run.
        """
        self.loggers.close(status)


def writing(
    folder: Path, fix: str = 'make room or fix that, then run the same command to continue'
) -> AbstractContextManager[None]:
    """Turns what the operating system refuses, while a workdir is written, into a `UserError`."""
    return as_user_error(
        'the workdir cannot be written ({reason})', where=str(folder), fix=fix, of=(OSError,)
    )


def read_result(folder: Path) -> JsonObject | None:
    """Returns the result of the finished run in a folder, or None.

    Raises:
        UserError: The file is damaged.
    """
    path = folder / 'result.json'
    if not path.exists():
        return None
    result = read_json(path)
    if not is_signed(result, needed=False):
        raise _damaged(path)
    return result


def read_records(folder: Path) -> list[JsonObject]:
    """Returns the epochs' records of the run in a folder; a line that is damaged is left out.

    Raises:
        UserError: The file cannot be read.
    """
    path = folder / 'metrics.jsonl'
    records = []
    with _reading(path):
        lines = path.read_text(errors='replace').splitlines() if path.exists() else ()
    for line in lines:
        try:
            record = json.loads(line)
            record['epoch'] + record['step']
        except (ValueError, TypeError, KeyError, RecursionError):
            logging.warning('WARNING: %s: a line is damaged and is left out', path)
        else:
            records.append(record)
    return records


def read_json(path: Path) -> JsonObject:
    """Reads a JSON object from a file of a workdir.

    Raises:
        UserError: It does not exist, cannot be read, or does not hold an object.
    """
    missing = as_user_error(
        f'no {path.name} found',
        where=str(path.parent),
        fix='give a workdir in which `python -m tlflax.train` ran',
        of=(FileNotFoundError,),
    )
    with _reading(path), missing:
        text = path.read_bytes()
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(path) from error
    if not isinstance(found, dict):
        raise _damaged(path)
    return found


def _reading(path: Path) -> AbstractContextManager[None]:
    """Turns what the operating system refuses, while a file is read, into a `UserError`."""
    return as_user_error(
        'cannot be read: {reason}', where=str(path), fix='give yourself access to it', of=(OSError,)
    )


def _damaged(path: Path) -> UserError:
    return UserError(
        'the file is damaged',
        where=str(path),
        fix='delete it and run the command again; what it held is restored from the checkpoints',
    )

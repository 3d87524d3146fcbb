"""The files of a workdir other than checkpoints: config, metrics, result, TensorBoard events."""

import importlib.metadata
import json
import tempfile
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from tlflax.config.parse import to_dict
from tlflax.config.schema import Config
from tlflax.utils.errors import UserError, as_user_error
from tlflax.utils.files import JsonObject, atomic_write, dump_json, plain_json, write_json

_PACKAGES = ('tlflax', 'jax', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def versions() -> dict[str, str]:
    """Returns the versions of the packages that decide a result."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


class Workdir:
    """The folder of one run.

    Args:
        path: Created if it does not exist.

    Raises:
        UserError: It cannot be created or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        with as_user_error(
            'the workdir cannot be written ({reason})',
            where=str(path),
            fix='give another one with --workdir',
            of=(OSError,),
        ):
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        self._events: SummaryWriter | None = None

    @property
    def checkpoints(self) -> Path:
        """The folder of Orbax checkpoints."""
        return self.path / 'checkpoints'

    def check(self, config: JsonObject) -> None:
        """Checks that the workdir is new or belongs to the same configuration.

        Raises:
            UserError: It belongs to another configuration; names the keys that differ.
        """
        path = self.path / 'config.json'
        if not path.exists():
            return
        # A key that did not exist when the run was started had its default.
        theirs = {**_plain(to_dict(Config())), **_leaves(read_json(path))}
        ours = _plain(config)
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

    def claim(self, config: JsonObject) -> None:
        """Writes config.json, which binds the workdir to this configuration."""
        write_json(self.path / 'config.json', config)

    def require_unused(self, *names: str) -> None:
        """Refuses a workdir that has any of these files.

        Raises:
            UserError: It has one.
        """
        if any((self.path / name).exists() for name in names):
            raise UserError(
                'this workdir is in use', where=str(self.path), fix='give another --workdir'
            )

    def result(self) -> JsonObject | None:
        """Returns the result of a finished run, or None."""
        path = self.path / 'result.json'
        return read_json(path) if path.exists() else None

    def write_result(self, result: JsonObject) -> None:
        """Writes result.json, which marks the run as finished."""
        write_json(self.path / 'result.json', result)

    def records(self) -> list[JsonObject]:
        """Returns the epochs' records written so far."""
        path = self.path / 'metrics.jsonl'
        if not path.exists():
            return []
        lines = path.read_text().splitlines()
        return [json.loads(line) for line in lines if line.endswith('}')]

    def rewind(self, epochs: int) -> None:
        """Drops the records after the first `epochs` epochs, which will be run again."""
        kept = [record for record in self.records() if record['epoch'] <= epochs]
        lines = ''.join(dump_json(record) + '\n' for record in kept)
        atomic_write(self.path / 'metrics.jsonl', lines)

    def append(self, record: JsonObject) -> None:
        """Adds an epoch's record to metrics.jsonl and to the TensorBoard events."""
        with open(self.path / 'metrics.jsonl', 'a') as file:
            file.write(dump_json(record) + '\n')
        if self._events is None:
            self._events = SummaryWriter(str(self.path / 'tensorboard'))
        for name, value in record.items():
            if name not in ('epoch', 'step'):
                self._events.add_scalar(name, value, record['step'])
        self._events.flush()

    def close(self) -> None:
        """Closes the TensorBoard events."""
        if self._events is not None:
            self._events.close()


def read_json(path: Path) -> Any:
    """Reads a JSON file of a workdir.

    Raises:
        UserError: It does not exist or is not valid JSON.
    """
    missing = as_user_error(
        f'no {path.name} found',
        where=str(path.parent),
        fix='give a workdir in which `python -m tlflax.train` ran',
        of=(FileNotFoundError,),
    )
    damaged = as_user_error(
        'is not JSON ({reason})', where=str(path), fix='the file is damaged', of=(ValueError,)
    )
    with missing, damaged:
        return json.loads(path.read_text())


def _plain(config: JsonObject) -> JsonObject:
    """Returns a configuration's leaves as they are once written and read."""
    return _leaves(plain_json(config))


def _leaves(tree: JsonObject, prefix: str = '') -> JsonObject:
    leaves = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            leaves.update(_leaves(value, f'{prefix}{key}.'))
        else:
            leaves[f'{prefix}{key}'] = value
    return leaves

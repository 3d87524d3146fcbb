"""The files of a workdir other than checkpoints: config, metrics, result, TensorBoard events."""

import importlib.metadata
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from tlflax.config.parse import to_dict
from tlflax.config.schema import Config
from tlflax.utils.errors import UserError

_PACKAGES = ('tlflax', 'jax', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def versions() -> dict[str, str]:
    """Returns the versions of the packages that decide a result."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never half of one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
    with os.fdopen(handle, 'w') as file:
        json.dump(_finite(value), file, indent=2)
        file.write('\n')
    os.replace(temporary, path)


class Workdir:
    """The folder of one run.

    Args:
        path: Created if need be.

    Raises:
        UserError: It cannot be created or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise UserError(
                f'the workdir cannot be written ({error.strerror})',
                where=str(path),
                fix='give another one with --workdir',
            ) from error
        self._events: SummaryWriter | None = None

    @property
    def checkpoints(self) -> Path:
        """The folder of Orbax checkpoints."""
        return self.path / 'checkpoints'

    def check(self, config: dict[str, Any]) -> None:
        """Checks that the workdir is new or belongs to the same configuration.

        Raises:
            UserError: It belongs to another one; names the keys that differ.
        """
        path = self.path / 'config.json'
        if not path.exists():
            return
        # Keys that came after the run was started had their defaults in it.
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
                fix='give another --workdir, or the same config to go on',
            )

    def claim(self, config: dict[str, Any]) -> None:
        """Writes config.json: from now on the workdir belongs to this configuration."""
        write_json(self.path / 'config.json', config)

    def result(self) -> dict[str, Any] | None:
        """Returns the result of a finished run, or None."""
        path = self.path / 'result.json'
        return read_json(path) if path.exists() else None

    def write_result(self, result: dict[str, Any]) -> None:
        """Marks the run as finished."""
        write_json(self.path / 'result.json', result)

    def records(self) -> list[dict[str, Any]]:
        """Returns the epochs' records written so far."""
        path = self.path / 'metrics.jsonl'
        if not path.exists():
            return []
        lines = path.read_text().splitlines()
        return [json.loads(line) for line in lines if line.endswith('}')]

    def rewind(self, epochs: int) -> None:
        """Drops the records of epochs after the first `epochs`, which will be run again."""
        kept = [record for record in self.records() if record['epoch'] <= epochs]
        lines = ''.join(json.dumps(record) + '\n' for record in kept)
        temporary = self.path / '.metrics.jsonl.tmp'
        temporary.write_text(lines)
        os.replace(temporary, self.path / 'metrics.jsonl')

    def append(self, record: dict[str, Any]) -> None:
        """Adds an epoch's record to metrics.jsonl and to the TensorBoard events."""
        with open(self.path / 'metrics.jsonl', 'a') as file:
            file.write(json.dumps(_finite(record)) + '\n')
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
    """Reads a JSON file of ours.

    Raises:
        UserError: It is not there or is no JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(
            f'there is no {path.name} here',
            where=str(path.parent),
            fix='give a workdir in which `python -m tlflax.train` ran',
        ) from error
    except json.JSONDecodeError as error:
        raise UserError(
            f'is not JSON ({error})', where=str(path), fix='the file is damaged'
        ) from error


def _finite(value: Any) -> Any:
    """NaN and infinities as null: JSON has no word for them."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration's leaves as they look once written and read."""
    return _leaves(json.loads(json.dumps(_finite(config))))


def _leaves(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    leaves = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            leaves.update(_leaves(value, f'{prefix}{key}.'))
        else:
            leaves[f'{prefix}{key}'] = value
    return leaves

"""Reads the file that `--config` names: Python with a `get_config()`, or the JSON of a run."""

import contextlib
import json
import traceback
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from tlflax.config import parse
from tlflax.config.parse import default_config, locked, resolve
from tlflax.utils import python_file
from tlflax.utils.errors import UserError, as_user_error, did_you_mean, shown
from tlflax.utils.files import expand, regular

_FIX = "give the path of a .py file, or of a run's config.json"


def read(spec: str) -> ConfigDict:
    """Returns the configuration in a file.

    Args:
        spec: The path; text after a colon is given to `get_config` as its argument.

    Raises:
        UserError: It cannot be read or fails, sets a key that does not exist, or returns no
            configuration; of JSON also: a key or value is not allowed.
    """
    path, argument = split(spec)
    if not path.exists():
        raise UserError('no such config file', where=str(path), fix=_FIX)
    with (
        as_user_error(
            'cannot be read as a configuration ({reason})',
            where=str(path),
            fix=_FIX,
            of=(OSError, ValueError, RecursionError),
        ),
        open(path, 'rb', opener=regular) as file,
    ):
        if path.suffix == '.json':
            raw = json.loads(file.read())
            if not isinstance(raw, dict):
                raise ValueError('it holds no keys')
            return locked(resolve(parse.filled(raw)))
    if path.suffix != '.py':
        raise UserError(
            'is no config file: its name does not end in .py', where=str(path), fix=_FIX
        )
    with _explaining(path):
        return _called(path, argument)


def split(spec: str) -> tuple[Path, str | None]:
    """Returns the path of a config file and the argument that follows it, if any."""
    path, colon, argument = spec.partition(':')
    return Path(expand(path)), argument if colon else None


def _called(path: Path, argument: str | None) -> ConfigDict:
    """Runs a file and returns what its `get_config()` returns."""
    function = getattr(python_file.run(path)[0], 'get_config', None)
    fix = 'define get_config(), which changes default_config() and returns it'
    if not callable(function):
        raise UserError('it has no get_config()', where=str(path), fix=fix)
    found = function() if argument is None else function(argument)
    if isinstance(found, ConfigDict | dict):
        return _completed(ConfigDict(found, type_safe=False), default_config())
    fix = "end it with 'return config'" if found is None else fix
    raise UserError(f'get_config() returns {shown(found)}', where=str(path), fix=fix)


def _completed(config: ConfigDict, defaults: ConfigDict) -> ConfigDict:
    """Adds the keys that a configuration lacks, so that the command line can change them too."""
    with config.unlocked():
        for key, value in defaults.items():
            if key not in config:
                config[key] = value
            elif isinstance(value, ConfigDict) and isinstance(config[key], ConfigDict):
                _completed(config[key], value)
    return config


@contextlib.contextmanager
def _explaining(path: Path) -> Iterator[None]:
    """Names the line that sets or reads an unknown key; else as `python_file.explaining`."""
    with python_file.explaining(str(path)):
        try:
            yield
        except (AttributeError, KeyError) as error:
            # The library's message lists every key there is.
            *_, (frame, _) = traceback.walk_tb(error.__traceback__)
            names = frame.f_locals
            asked, config = names.get('attribute', names.get('key')), names.get('self')
            if not isinstance(config, ConfigDict) or not isinstance(asked, str) or asked in config:
                raise
            what, place = f'there is no key {asked!r}', python_file.place_of(error)
            fix = did_you_mean(asked, config)
            raise UserError(what, where=place or str(path), fix=fix) from error

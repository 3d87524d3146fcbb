"""Objects in Python files of the user's own: 'py:FILE.py:NAME' or 'py:MODULE:NAME'."""

import contextlib
import hashlib
import importlib
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from tlflax.utils.errors import UserError, did_you_mean, located, printable
from tlflax.utils.files import expand

_PREFIX = 'py:'

_NOT_THEIRS = (sysconfig.get_path('stdlib'), str(Path(__file__).parents[1]), '<')

_LOADED: dict[tuple[str, str], ModuleType] = {}


class Loaded(NamedTuple):
    """An object of a Python file.

    Attributes:
        value: The object.
        digest: The hex SHA-256 of the file; '' where a module has none.
    """

    value: Any
    digest: str


def is_spec(text: str) -> bool:
    """Returns whether a value of the configuration names an object of a Python file."""
    return text.startswith(_PREFIX)


def place_and_name(spec: str, what: str = 'name') -> tuple[str, str]:
    """Returns the two parts of 'py:PLACE:NAME'.

    Args:
        spec: The whole.
        what: What the name is of, for the message.

    Raises:
        UserError: One of them is missing.
    """
    place, _, name = spec.removeprefix(_PREFIX).rpartition(':')
    if not (place and name):
        raise UserError(f'{spec!r} names no {what}', fix=f'give {_form(what)}')
    return place, name


def load(spec: str, *, where: str = '', what: str = 'name') -> Loaded:
    """Returns the object that a specification names; a file that did not change runs once.

    Args:
        spec: 'py:FILE.py:NAME' or 'py:MODULE:NAME'.
        where: The configuration key, for messages.
        what: What the object is, for messages.

    Raises:
        UserError: The file does not exist or fails, or has no such name.
    """
    with located(where):
        place, name = place_and_name(spec, what)
        module, digest = _module(place, what)
        if not hasattr(module, name):
            public = (n for n in vars(module) if not n.startswith('_'))
            known = [n for n in public if not isinstance(getattr(module, n), ModuleType)]
            raise UserError(f'{place} has no {what} {name!r}', fix=did_you_mean(name, known))
    return Loaded(getattr(module, name), digest)


def _form(what: str) -> str:
    name = what.upper()
    return f"'py:FILE.py:{name}' or 'py:MODULE:{name}'"


def _module(place: str, what: str) -> tuple[ModuleType, str]:
    """Imports the module; returns it with the digest of its file."""
    if not place.endswith('.py'):
        with explaining(place):
            module = importlib.import_module(place)
        file = getattr(module, '__file__', None)
        return module, _digest(Path(file)) if file else ''
    path = Path(expand(place))
    if not path.is_file():
        raise UserError(f'there is no such file: {printable(place)!r}', fix=f'give {_form(what)}')
    with explaining(place):
        return run(path)


def run(path: Path) -> tuple[ModuleType, str]:
    """Runs a Python file and returns its module and its digest; one that did not change runs once.

    Raises:
        BaseException: Whatever the file raises; see `explaining`.
    """
    key = (str(path.absolute()), _digest(path))
    if key not in _LOADED:
        name = f'_tlflax_{hashlib.sha256("".join(key).encode()).hexdigest()}'
        module_spec = importlib.util.spec_from_file_location(name, path)
        assert module_spec is not None
        assert module_spec.loader is not None
        module = importlib.util.module_from_spec(module_spec)
        sys.modules[name] = module
        # Not by the loader: it would take code compiled from a file of the same size and time.
        exec(compile(path.read_bytes(), str(path), 'exec'), vars(module))
        _LOADED[key] = module
    return _LOADED[key], key[1]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextlib.contextmanager
def explaining(what: str) -> Iterator[None]:
    """Turns every exception of the user's code into a sentence that names the line."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        lines = str(error).strip().splitlines() or ['']
        # TensorFlow puts a traceback before the message of what fails inside a map().
        line = lines[-1].strip() if lines[0].startswith('in user code') else lines[0]
        kind = type(error).__name__
        raised = f'{kind}: {line.removeprefix(f"{kind}: ")[:300]}'
        place = place_of(error)
        raised += f' ({place})' if place else ''
        raise UserError(f'{what} fails with {raised}', fix='fix it') from error


def place_of(error: BaseException) -> str:
    """Returns file and line of the user's code that an exception passed last; '' if there is none.

    Code of libraries, and ours, is not the user's.
    """
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        name = frame.filename
        if not (name.startswith(_NOT_THEIRS) or 'site-packages' in name):
            return f'{printable(name)}, line {frame.lineno}'
    return ''

"""Describes the flags and arguments of commands, for the parser and for the help.

They return dataclass fields; their type is Any, so that a field can be annotated with its value's.
"""

import dataclasses
import shutil
import textwrap
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tlflax.config import schema
from tlflax.utils.errors import UserError

if TYPE_CHECKING:  # commands import this module before they handle signals, so it is light
    from ml_collections import ConfigDict

_WIDTH = 100  # most columns of the help


class UsageError(UserError):
    """A command line that lacks something; it is printed with the command's usage and example."""


class ConfigFile(NamedTuple):
    """What `--config=FILE` and its overrides give.

    Attributes:
        name: The file's name without its ending; '' if no file was given.
        values: What its `get_config()` returned, or the defaults; with the overrides.
    """

    name: str
    values: 'ConfigDict'


@dataclasses.dataclass(frozen=True)
class Argument:
    """How one field of a command's dataclass appears on the command line.

    Attributes:
        kind: 'flag', 'config' for the flag `--config`, or 'positional' for all that is not a flag.
        name: Of the field and the flag.
        metavar: Stands for the value in the help.
        doc: What it does.
        default: The value if it is not given.
        needed: It must be given.
        choices: The values it may have; empty if any.
        word: What a message calls a positional argument, such as 'image'.
    """

    kind: Literal['flag', 'config', 'positional']
    metavar: str
    doc: str
    default: object = None
    needed: bool = False
    choices: tuple[str, ...] = ()
    name: str = ''
    word: str = ''

    def __str__(self) -> str:
        if self.kind == 'positional':
            return self.metavar
        return f'--{self.name}={self.metavar}' if self.metavar else f'--{self.name}'

    @property
    def noun(self) -> str:
        """What a message calls it if it is missing."""
        return self.word or f'--{self.name}'


QUIET = Argument('flag', '', 'log nothing but warnings and errors', default=False, name='quiet')
"""What every command takes."""


def optional(default: object, metavar: str, doc: str) -> Any:
    """Describes a flag that need not be given.

    Args:
        default: The value without it; if it is a tuple, the flag's value is split at commas.
        metavar: Stands for the value in the help, such as 'DIR'.
        doc: What the flag does, for the help.
    """
    return _field(Argument('flag', metavar, doc, default=default), default)


def choice(default: str, choices: tuple[str, ...], doc: str) -> Any:
    """Describes a flag whose value is one of `choices`; see `optional`."""
    return _field(Argument('flag', '|'.join(choices), doc, default, choices=choices), default)


def switch(doc: str) -> Any:
    """Describes a flag without a value: `--NAME` is on, `--noNAME` and the default are off."""
    return _field(Argument('flag', '', doc, default=False), False)


def required(metavar: str, doc: str) -> Any:
    """Describes a flag without which the command cannot run; see `optional`."""
    return dataclasses.field(metadata={'argument': Argument('flag', metavar, doc, needed=True)})


def positional(word: str, metavar: str, doc: str, *, needed: bool = True) -> Any:
    """Describes the arguments that are not flags.

    Args:
        word: What a message calls one of them, such as 'image'.
        metavar: Stands for all of them in the help, such as 'IMAGE...'.
        doc: What they are.
        needed: At least one must be given.
    """
    argument = Argument('positional', metavar, doc, (), needed=needed, word=word)
    if needed:
        return dataclasses.field(metadata={'argument': argument})
    return _field(argument, ())


def config_file(*, needed: bool = True) -> Any:
    """Describes `--config=FILE` with its overrides `--config.KEY=VALUE`.

    Args:
        needed: A file must be given; if not, the overrides change the defaults.
    """
    doc = (
        'Python file whose get_config() returns the configuration, such as configs/traffic.py; or '
        'the config.json of a run'
    )
    argument = Argument('config', 'FILE', doc, needed=needed)
    return dataclasses.field(metadata={'argument': argument})


def _field(argument: Argument, default: object) -> Any:
    return dataclasses.field(default=default, metadata={'argument': argument})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Together:
    """The arguments of a command that several processes may run together."""

    coordinator: str | None = optional(
        None, 'HOST:PORT', 'a free port of the machine of process 0, if several run together'
    )
    num_processes: str | None = optional(None, 'N', 'how many processes run together')
    process_id: str | None = optional(None, 'I', 'which of them this is, from 0')


def described(cls: type) -> list[Argument]:
    """Returns the arguments that a command's dataclass describes, in order, and `QUIET`."""
    fields = sorted(dataclasses.fields(cls), key=lambda field: hasattr(Together, field.name))
    own = [dataclasses.replace(field.metadata['argument'], name=field.name) for field in fields]
    return [*own, QUIET]


def usage(command: str, arguments: list[Argument]) -> str:
    """Returns one line: the command with what it needs."""
    needed = [str(a) for a in arguments if a.needed and a.kind != 'positional']
    needed += [str(a) for a in arguments if a.kind == 'positional']
    rest = ['[flags]'] if any(not a.needed or a.kind == 'config' for a in arguments) else []
    return ' '.join([f'usage: python -m {command}', *needed, *rest])


def help_text(command: str, purpose: str, arguments: list[Argument], example: str) -> str:
    """Returns what a command does, all its flags with their defaults, and an example."""
    rows = []
    for argument in arguments:
        rows.append((str(argument), argument.doc + _default(argument)))
        if argument.kind == 'config':
            doc = 'changes a key of the configuration, such as --config.train.epochs=10'
            rows.append(('--config.KEY=VALUE', f'{doc}; {schema.__file__} lists the keys'))
    rows.append(('-h, --help', 'show this help'))
    columns = min(shutil.get_terminal_size().columns, _WIDTH)
    left = max(len(name) for name, _ in rows) + 4
    entries = [
        textwrap.fill(
            doc,
            max(columns, left + 20),
            initial_indent=f'  {name}'.ljust(left),
            subsequent_indent=' ' * left,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for name, doc in rows
    ]
    blocks = [
        usage(command, arguments),
        textwrap.dedent(purpose).strip(),
        '\n'.join(['arguments:', *entries]),
        f'example:\n  python -m {command} {example}',
    ]
    return '\n\n'.join(blocks)


def _default(argument: Argument) -> str:
    """Returns what the help says about the value without the argument."""
    if argument.needed:
        return ' (required)'
    if isinstance(argument.default, bool):
        return f' (default: {"on" if argument.default else "off"})'
    return f' (default: {argument.default})' if argument.default else ''

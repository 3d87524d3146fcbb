"""Parses the command line of a command: its flags, `--config=FILE` and `--config.KEY=VALUE`."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import absl.flags
from ml_collections import ConfigDict, config_flags

from tlflax.config import config_file
from tlflax.config.flags import Argument, ConfigFile, UsageError
from tlflax.config.parse import default_config, takes_words
from tlflax.utils.errors import UserError, did_you_mean, located
from tlflax.utils.files import expand

_PATHS = ('DIR', 'FILE')  # how that begins which stands for a value that is a path


def parse(name: str, described: Sequence[Argument], arguments: Sequence[str]) -> dict[str, object]:
    """Returns the values of a command's arguments; those that are missing may be left out.

    Args:
        name: The command.
        described: Its arguments.
        arguments: The command line.

    Raises:
        UserError: An unknown flag, configuration key or value, or no such config file.
    """
    values: dict[str, object] = {}
    parser, others = _parse(name, described, arguments)
    for argument in described:
        if argument.kind == 'positional':
            values[argument.name], others = others, ()
        elif argument.kind == 'config':
            path = _config_path(arguments)
            if path or not argument.needed:
                values[argument.name] = ConfigFile(_name(path), parser['config'].value)
        else:
            value = parser[argument.name].value
            # A shell leaves the ~ in --workdir=~/runs.
            if value and argument.metavar.startswith(_PATHS):
                with located(f'--{argument.name}'):
                    value = expand(value)
            values[argument.name] = tuple(value) if isinstance(value, list) else value
    if others:
        what = f'unexpected argument {others[0]!r}'
        raise UserError(what, where='command line', fix=f'flags begin with --; {_help(name)}')
    return values


def _name(spec: str) -> str:
    """Returns the name of a configuration; the config.json of a run has that of its folder."""
    path = config_file.split(spec)[0] if spec else Path()
    return path.absolute().parent.name if path.name == 'config.json' else path.stem


def _help(name: str) -> str:
    return f'see python -m {name} --help'


def _parse(
    name: str, described: Sequence[Argument], arguments: Sequence[str]
) -> tuple[absl.flags.FlagValues, tuple[str, ...]]:
    """Returns the flags with their values, and the arguments that are not flags."""
    start = default_config()
    if any(argument.kind == 'config' for argument in described):
        _check_keys(arguments)
        if any(_config_paths(arguments)):  # ml_collections would raise whatever the file does
            start = config_file.read(_config_path(arguments))
            arguments = _without_config(arguments)
        _read_as_text(start, arguments)
    parser = absl.flags.FlagValues()  # not the global one, which has flags of other libraries
    command_line = [name, *arguments]
    try:
        for argument in described:
            _define(argument, parser, command_line, start)
        return parser, tuple(parser(command_line)[1:])
    except absl.flags.UnrecognizedFlagError as error:
        hint = did_you_mean(f'--{error.flagname}', [f'--{known}' for known in (*parser, 'help')])
        raise UserError(
            f'Unknown command line flag {error.flagname!r}',
            where='command line',
            fix=f'{hint} {_help(name)}' if hint.endswith('?') else f'{hint}; {_help(name)}',
        ) from error
    except (absl.flags.Error, ValueError) as error:
        what = str(error).splitlines()[0]
        raise UserError(what, where='command line', fix=_help(name)) from error


def _check_keys(arguments: Sequence[str]) -> None:
    """Checks `--config=FILE` and `--config.KEY=VALUE` before ml_collections fails on them."""
    if not all(_config_paths(arguments)):
        raise UsageError('no file is named', where='--config')
    for argument in arguments:
        name = argument.lstrip('-').partition('=')[0].removeprefix('no')
        if argument.startswith('-') and name.startswith('config.'):
            _check_key(name)


def _read_as_text(start: ConfigDict, arguments: Sequence[str]) -> None:
    """Lets ml_collections, which goes by a value's type, read words for keys that take them."""
    for argument in arguments:
        name, _, key = argument.lstrip('-').partition('=')[0].partition('.')
        if argument.startswith('-') and name == 'config' and takes_words(key):
            section, _, last = key.rpartition('.')
            start[section][last] = str(start[section][last])


def _config_paths(arguments: Sequence[str]) -> Iterator[str]:
    """Yields the value of every `--config=FILE` and `--config FILE`; '' if there is no value."""
    for argument, following in itertools.zip_longest(arguments, arguments[1:], fillvalue=''):
        name, equals, value = argument.partition('=')
        if name in ('--config', '-config'):
            yield value if equals else following


def _config_path(arguments: Sequence[str]) -> str:
    """Returns the value of the last `--config`; '' if there is none."""
    return ''.join(list(_config_paths(arguments))[-1:])


def _without_config(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments but for `--config=FILE` and `--config FILE`."""
    names = ('--config', '-config')
    return [
        argument
        for before, argument in zip(['', *arguments], arguments, strict=False)
        if before not in names and argument.partition('=')[0] not in names
    ]


def _check_key(name: str) -> None:
    """Checks that a flag such as `config.train.epochs` names a configuration key."""
    node: object = default_config()
    done = 'config'
    for key in name.split('.')[1:]:
        choices = list(node) if isinstance(node, ConfigDict) else []
        if not isinstance(node, ConfigDict) or key not in choices:
            raise UserError('no such key', where=f'--{done}.{key}', fix=did_you_mean(key, choices))
        node, done = node[key], f'{done}.{key}'


def _define(
    argument: Argument,
    parser: absl.flags.FlagValues,
    command_line: list[str],
    start: ConfigDict,
) -> None:
    """Defines a flag in `parser`; ml_collections looks for overrides in `command_line`.

    Overrides change `start`.
    """
    name, doc, default = argument.name, argument.doc, argument.default
    if argument.kind == 'config':
        config_flags.DEFINE_config_dict(name, start, doc, flag_values=parser, sys_argv=command_line)
    elif argument.kind == 'flag':
        if isinstance(default, bool):
            absl.flags.DEFINE_bool(name, default, doc, flag_values=parser)
        elif isinstance(default, tuple):
            absl.flags.DEFINE_list(name, list(default), doc, flag_values=parser)
        elif argument.choices:
            absl.flags.DEFINE_enum(name, str(default), argument.choices, doc, flag_values=parser)
        else:
            text = None if default is None else str(default)
            absl.flags.DEFINE_string(name, text, doc, flag_values=parser)

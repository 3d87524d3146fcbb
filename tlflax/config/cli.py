"""What all commands share: parsing, help, quiet libraries, errors as one sentence, exit codes.

A command is a dataclass of its arguments and a function that takes them:

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Arguments:
        workdir: str = flags.required('DIR', 'folder of the run')
        tta: bool = flags.switch('average over mirrored copies')

    def main(arguments: Arguments) -> None: ...

    COMMAND = cli.Command('tlflax.evaluate', __doc__, Arguments, main, '--workdir=runs/traffic')

    if __name__ == '__main__':
        COMMAND.run()

`main` imports what it needs, so that `--help` and mistakes on the command line are answered before
JAX and TensorFlow are loaded.
"""

import dataclasses
import itertools
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import absl.flags
import absl.logging
from ml_collections import ConfigDict, config_flags

from tlflax.config import flags, tensorflow_notices
from tlflax.config.flags import Argument, ConfigFile
from tlflax.config.parse import default_config
from tlflax.utils import assets
from tlflax.utils.errors import EXIT_CODE, UserError, did_you_mean

T = TypeVar('T')

_PACKAGE = str(Path(__file__).parents[1])
_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
_HELP = ('--help', '-help', '-h')


class UsageError(UserError):
    """A command line that lacks something; it is printed with the command's usage and example."""


@dataclasses.dataclass(frozen=True)
class Command(Generic[T]):
    """A command that is run as `python -m NAME`.

    Attributes:
        name: The module that is run.
        purpose: What the command does; the module's docstring.
        arguments: A dataclass whose fields are described by the functions of `flags`.
        main: Carries it out; returns the exit code, or None for 0.
        example: The arguments of a typical call.
    """

    name: str
    purpose: str
    arguments: type[T]
    main: Callable[[T], int | None]
    example: str

    def run(self) -> None:
        """Runs the command with the arguments of this process, and exits.

        Exit code 0: done; 2: something the user can fix, one sentence on stderr; 130: interrupted;
        any other: what `main` returns.
        """
        arguments = sys.argv[1:]
        described = flags.described(self.arguments)
        try:
            if any(a in _HELP for a in itertools.takewhile(lambda a: a != '--', arguments)):
                print(flags.help_text(self.name, self.purpose, described, self.example))
                sys.exit(0)
            setup_logging()
            parsed = self.parse(arguments)
            keep_compiled_programs()
            sys.exit(self.main(parsed))
        except UserError as error:
            if isinstance(error, UsageError):
                error.fix = error.fix or f'for example: python -m {self.name} {self.example}'
                print(flags.usage(self.name, described), file=sys.stderr)
            print(f'error: {error}', file=sys.stderr)
            sys.exit(EXIT_CODE)
        except KeyboardInterrupt as interrupt:
            outcome = (
                str(interrupt) or 'what was computed is kept; run the same command to continue'
            )
            print(f'interrupted: {outcome}', file=sys.stderr)
            sys.exit(_INTERRUPTED)

    def parse(self, arguments: Sequence[str]) -> T:
        """Returns the dataclass of the arguments with the values of a command line.

        Raises:
            UsageError: Something is missing.
            UserError: An unknown flag, configuration key or value, or no such config file.
        """
        described = flags.described(self.arguments)
        values: dict[str, object] = {}
        parser, others = self._parse(described, arguments)
        for argument in described:
            if argument.kind == 'positional':
                values[argument.name], others = others, ()
            elif argument.kind == 'config':
                path = ''.join(list(_config_paths(arguments))[-1:])
                if path or not argument.needed:
                    values[argument.name] = ConfigFile(Path(path).stem, parser['config'].value)
            else:
                value = parser[argument.name].value
                values[argument.name] = tuple(value) if isinstance(value, list) else value
        if others:
            what = f'unexpected argument {others[0]!r}'
            raise UserError(what, where='command line', fix=f'flags begin with --; {self._help}')
        missing = [a for a in described if a.needed and not values.get(a.name)]
        if missing:
            what = ' and '.join(f'no {argument.noun}' for argument in missing)
            raise UsageError(f'{what} is given', where='command line')
        return self.arguments(**values)

    @property
    def _help(self) -> str:
        return f'see python -m {self.name} --help'

    def _parse(
        self, described: list[Argument], arguments: Sequence[str]
    ) -> tuple[absl.flags.FlagValues, tuple[str, ...]]:
        """Returns the flags with their values, and the arguments that are not flags."""
        if any(argument.kind == 'config' for argument in described):
            self._check_config(arguments)
        parser = absl.flags.FlagValues()  # not the global one, which has flags of other libraries
        command_line = [self.name, *arguments]
        try:
            for argument in described:
                _define(argument, parser, command_line)
            return parser, tuple(parser(command_line)[1:])
        except absl.flags.UnrecognizedFlagError as error:
            hint = did_you_mean(f'--{error.flagname}', [f'--{name}' for name in (*parser, 'help')])
            raise UserError(
                f'Unknown command line flag {error.flagname!r}',
                where='command line',
                fix=f'{hint} {self._help}' if hint.endswith('?') else f'{hint}; {self._help}',
            ) from error
        except (absl.flags.Error, ValueError) as error:
            what = str(error).splitlines()[0]
            raise UserError(what, where='command line', fix=self._help) from error

    def _check_config(self, arguments: Sequence[str]) -> None:
        """Checks `--config=FILE` and `--config.KEY=VALUE` before ml_collections fails on them."""
        for path in _config_paths(arguments):
            if not path:
                raise UsageError('no file is named', where='--config')
            if not Path(path.split(':')[0]).is_file():
                raise UserError(
                    'no such config file', where=path, fix='give the path of a .py file'
                )
        for argument in arguments:
            name = argument.lstrip('-').partition('=')[0].removeprefix('no')
            if argument.startswith('-') and name.startswith('config.'):
                _check_key(name)


def _config_paths(arguments: Sequence[str]) -> Iterator[str]:
    """Yields the value of every `--config=FILE` and `--config FILE`; '' if there is no value."""
    for argument, following in itertools.zip_longest(arguments, arguments[1:], fillvalue=''):
        name, equals, value = argument.partition('=')
        if name in ('--config', '-config'):
            yield value if equals else following


def _check_key(name: str) -> None:
    """Checks that a flag such as `config.train.epochs` names a configuration key."""
    node: object = default_config()
    done = 'config'
    for key in name.split('.')[1:]:
        choices = list(node) if isinstance(node, ConfigDict) else []
        if not isinstance(node, ConfigDict) or key not in choices:
            raise UserError('no such key', where=f'--{done}.{key}', fix=did_you_mean(key, choices))
        node, done = node[key], f'{done}.{key}'


def _define(argument: Argument, parser: absl.flags.FlagValues, command_line: list[str]) -> None:
    """Defines a flag in `parser`; ml_collections looks for overrides in `command_line`."""
    name, doc, default = argument.name, argument.doc, argument.default
    if argument.kind == 'config':
        if any(_config_paths(command_line)):
            config_flags.DEFINE_config_file(
                name, None, doc, flag_values=parser, sys_argv=command_line
            )
        else:
            config_flags.DEFINE_config_dict(
                name, default_config(), doc, flag_values=parser, sys_argv=command_line
            )
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


def setup_logging() -> None:
    """Shows our own lines, without prefixes, and only errors of other libraries, all on stderr."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    tensorflow_notices.hold_back()
    warnings.filterwarnings('ignore', module=r'(?!tlflax)')
    absl.flags.FLAGS.mark_as_parsed()  # absl warns when it logs before that
    absl.logging.use_absl_handler()
    absl.logging.set_verbosity(absl.logging.INFO)
    handler = absl.logging.get_absl_handler()
    handler.setFormatter(logging.Formatter('%(message)s'))
    handler.addFilter(_ours_or_error)


def keep_compiled_programs() -> None:
    """Lets JAX keep what it compiles in the user's cache folder, so that a second run starts fast.

    `JAX_COMPILATION_CACHE_DIR` names another folder.
    """
    if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
        import jax  # takes a second, which `--help` and mistakes on the command line are spared

        jax.config.update('jax_compilation_cache_dir', str(assets.cache_folder() / 'programs'))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


def _ours_or_error(record: logging.LogRecord) -> bool:
    return record.pathname.startswith(_PACKAGE) or record.levelno >= logging.ERROR

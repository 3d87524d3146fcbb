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

import atexit
import contextlib
import dataclasses
import gc
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from tlflax.config import flags, output
from tlflax.utils import interrupts
from tlflax.utils.errors import EXIT_CODE, UserError

T = TypeVar('T')

_HELP = ('--help', '-help', '-h')
_NEW_OBJECTS = 50_000  # since the last collection; Python's default is 700


@contextlib.contextmanager
def together(arguments: flags.Together) -> Iterator[None]:
    """Connects this process with the others that run the same command, if there are any.

    Only the primary one says what it does.

    Raises:
        UserError: See `launch.find` and `processes.started`.
    """
    from tlflax.config import libraries
    from tlflax.utils.parallel import launch, processes

    where = launch.find(arguments.coordinator, arguments.num_processes, arguments.process_id)
    if where is not None:
        output.keep_for_python()
    with processes.started(where):
        if not processes.is_primary():
            libraries.log_errors_only()
            output.drop()
        yield


def collect_seldom() -> None:
    """Lets Python look for cyclic garbage less often.

    Libraries make half a million objects when they are imported. By default all that exist so far
    are looked through again and again meanwhile, which takes a quarter of the time and frees
    nothing. When the process ends, all would be looked through several times, for half a second.
    """
    gc.set_threshold(_NEW_OBJECTS, *gc.get_threshold()[1:])
    atexit.register(gc.freeze)


@dataclasses.dataclass(frozen=True)
class Command(Generic[T]):
    """A command that is run as `python -m NAME`.

    Attributes:
        name: The module that is run.
        purpose: What the command does; the module's docstring.
        arguments: A dataclass whose fields are described by the functions of `flags`.
        main: Carries it out; returns the exit code, or None for 0.
        example: The arguments of a typical call.
        runs_tensorflow: Whether TensorFlow computes networks in it, and does not only read images.
    """

    name: str
    purpose: str
    arguments: type[T]
    main: Callable[[T], int | None]
    example: str
    runs_tensorflow: bool = False

    def run(self) -> None:
        """Runs the command with the arguments of this process, and exits.

        Exit code 0: done; 2: something the user can fix, one sentence on stderr; 130: interrupted
        by SIGINT or SIGTERM; 141: nobody reads the output any more; any other: what `main` returns.
        """
        interrupts.raised()
        collect_seldom()
        output.set_up()
        code, sentence = self._outcome()
        interrupts.ignored()
        if sentence:
            output.say(sentence)
        sys.exit(code)

    def _outcome(self) -> tuple[int, str]:
        """Carries the command out; returns the exit code and what is left to say."""
        try:
            code = self._main(sys.argv[1:])
            output.flush()
            return code, ''
        except UserError as error:
            if isinstance(error, flags.UsageError):
                error.fix = error.fix or f'for example: python -m {self.name} {self.example}'
                output.say(flags.usage(self.name, flags.described(self.arguments)))
            return EXIT_CODE, f'error: {error}'
        except KeyboardInterrupt as interrupt:
            return interrupts.EXIT_CODE, f'interrupted: {str(interrupt) or interrupts.GOES_ON}'
        except output.OutputError as error:
            return output.give_up(error)

    def _main(self, arguments: Sequence[str]) -> int:
        if any(a in _HELP for a in itertools.takewhile(lambda a: a != '--', arguments)):
            described = flags.described(self.arguments)
            print(flags.help_text(self.name, self.purpose, described, self.example))
            return 0
        from tlflax.config import libraries  # takes longer than all of this module

        libraries.set_up_logging()
        if not self.runs_tensorflow:
            libraries.only_read_images()
        parsed, quiet = self._parse(arguments)
        if quiet:
            libraries.log_warnings_only()
        libraries.keep_compiled_programs()
        return self.main(parsed) or 0

    def parse(self, arguments: Sequence[str]) -> T:
        """Returns the dataclass of the arguments with the values of a command line.

        Raises:
            UsageError: Something is missing.
            UserError: An unknown flag, configuration key or value, or no such config file.
        """
        return self._parse(arguments)[0]

    def _parse(self, arguments: Sequence[str]) -> tuple[T, bool]:
        """Returns what `parse` does, and whether `--quiet` is given."""
        from tlflax.config import command_line

        described = flags.described(self.arguments)
        values = command_line.parse(self.name, described, arguments)
        missing = [a for a in described if a.needed and not values.get(a.name)]
        if missing:
            what = ' and '.join(f'no {argument.noun}' for argument in missing)
            raise flags.UsageError(f'{what} is given', where='command line')
        quiet = bool(values.pop(flags.QUIET.name))
        return self.arguments(**values), quiet

"""What every entry point shares: quiet libraries, plain log lines, errors as one sentence."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import absl.logging
import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from tlflax.config import tensorflow_notices
from tlflax.config.parse import default_config
from tlflax.utils import assets
from tlflax.utils.errors import EXIT_CODE, UserError, did_you_mean

_PACKAGE = str(Path(__file__).parents[1])
_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def run(main: Callable[[list[str]], Any]) -> None:
    """Parses the flags defined so far, runs `main(arguments)` and exits with its fate.

    Exit code 0: done; 2: something the user can fix, one sentence on stderr; 130: interrupted.
    """
    setup_logging()
    keep_compiled_programs()
    try:
        arguments = parse(sys.argv)
        main(arguments)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(EXIT_CODE)
    except KeyboardInterrupt as interrupt:
        fate = str(interrupt) or 'what was computed is kept, and the same command goes on'
        print(f'interrupted: {fate}', file=sys.stderr)
        sys.exit(_INTERRUPTED)


def parse(argv: Sequence[str]) -> list[str]:
    """Parses flags and returns the arguments that are none.

    Raises:
        UserError: An unknown flag, configuration key or value, or a config file that is missing.
    """
    for argument in argv[1:]:
        _check_override(argument)
    try:
        return flags.FLAGS(argv)[1:]
    except flags.Error as error:
        raise UserError(
            str(error).splitlines()[0], where='command line', fix='see --help'
        ) from error


def config_flag(*, file_needed: bool = True) -> None:
    """Defines `--config=FILE` and its overrides `--config.key=value`.

    Args:
        file_needed: Where it is not, and none is given, the overrides change the defaults.
    """
    words = 'Python file with get_config().'
    given = any(argument.lstrip('-').partition('=')[0] == 'config' for argument in sys.argv[1:])
    if file_needed or given:
        config_flags.DEFINE_config_file('config', None, words)
        return
    with contextlib.suppress(UserError):  # `parse` says what is wrong
        for argument in sys.argv[1:]:
            _check_override(argument)
        config_flags.DEFINE_config_dict('config', default_config(), words)


def _check_override(argument: str) -> None:
    """Checks `--config=FILE` and `--config.key=value` before ml_collections fails on them."""
    name, _, value = argument.lstrip('-').partition('=')
    if name == 'config' and value and not Path(value.split(':')[0]).is_file():
        raise UserError(
            'there is no such config file', where=value, fix='give the path of a .py file'
        )
    node: Any = default_config()
    done = 'config'
    for key in name.split('.')[1:] if name.startswith('config.') else ():
        choices = list(node) if isinstance(node, ConfigDict) else []
        if key not in choices:
            raise UserError('no such key', where=f'--{done}.{key}', fix=did_you_mean(key, choices))
        node, done = node[key], f'{done}.{key}'


def setup_logging() -> None:
    """Shows our own lines, without prefixes, and nothing of other libraries but errors."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    tensorflow_notices.hold_back()
    warnings.filterwarnings('ignore', module=r'(?!tlflax)')
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
        jax.config.update('jax_compilation_cache_dir', str(assets.cache_folder() / 'programs'))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


def _ours_or_error(record: logging.LogRecord) -> bool:
    return record.pathname.startswith(_PACKAGE) or record.levelno >= logging.ERROR

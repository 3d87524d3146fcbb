"""What commands do to the libraries they load: quiet logging, compiled programs that are kept."""

import logging
import os
import sys
import warnings
from pathlib import Path
from types import TracebackType

import absl.flags
import absl.logging

from tlflax.config import tensorflow_notices
from tlflax.utils import assets, interrupts, progress

_RAISED = tuple(f'{os.sep}{name}{os.sep}' for name in ('orbax', 'asyncio'))
_WORTH_KEEPING = 0.02  # seconds that compiling takes; reading a program takes a few milliseconds
_PACKAGE = str(Path(__file__).parents[1])


def set_up_logging() -> None:
    """Shows our own lines, without prefixes, and only errors of other libraries, all on stderr."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    tensorflow_notices.hold_back()
    sys.excepthook = _say_unless_closed
    sys.unraisablehook = _say_ignored_unless_closed
    warnings.filterwarnings('ignore', module=r'(?!tlflax)')
    absl.flags.FLAGS.mark_as_parsed()  # absl warns when it logs before that
    absl.logging.use_absl_handler()
    absl.logging.set_verbosity(absl.logging.INFO)
    handler = absl.logging.get_absl_handler()
    handler.setFormatter(logging.Formatter('%(message)s'))
    handler.addFilter(_ours_or_error)


def read_without_onednn() -> None:
    """Lets TensorFlow read images without oneDNN, unless `TF_ENABLE_ONEDNN_OPTS` says otherwise.

    With it, TensorFlow's memory is one pool for all threads, which gives to one core what another
    has just written. At times that takes two thirds more CPU time. Pixels are the same.
    """
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')


def log_warnings_only() -> None:
    """Leaves out the lines, and the bars of progress, that say that all is well."""
    absl.logging.set_verbosity(absl.logging.WARNING)
    progress.hide()


def log_errors_only() -> None:
    """Leaves out warnings too, in processes whose primary one gives them."""
    absl.logging.set_verbosity(absl.logging.ERROR)
    progress.hide()


def _say_unless_closed(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Leaves out what threads of TensorStore say once Orbax has given up and raised an error."""
    if not (kind is RuntimeError and str(error) == 'Event loop is closed'):
        sys.__excepthook__(kind, error, trace)


def _say_ignored_unless_closed(ignored: 'sys.UnraisableHookArgs') -> None:
    """Does the same where nobody can catch the exception; an interrupt comes again.

    JAX is called at each collection of garbage, where an interrupt would be lost.
    """
    kind, error = ignored.exc_type, ignored.exc_value
    if issubclass(kind, KeyboardInterrupt):
        interrupts.again()
    elif not (kind is RuntimeError and str(error) == 'Event loop is closed'):
        sys.__unraisablehook__(ignored)


def keep_compiled_programs() -> None:
    """Lets JAX keep what it compiles in the user's cache folder, so that a second run starts fast.

    `JAX_COMPILATION_CACHE_DIR` names another folder. JAX itself, which takes a second to import, is
    left to those who need it.
    """
    if 'JAX_COMPILATION_CACHE_DIR' in os.environ:
        return
    settings = {
        'jax_compilation_cache_dir': str(assets.cache_folder() / 'programs'),
        'jax_persistent_cache_min_compile_time_secs': _WORTH_KEEPING,
    }
    if jax := sys.modules.get('jax'):
        for name, value in settings.items():
            jax.config.update(name, value)
    else:
        os.environ |= {name.upper(): str(value) for name, value in settings.items()}


def _ours_or_error(record: logging.LogRecord) -> bool:
    """Leaves out what other libraries log; of some errors too, which are raised as well."""
    if any(folder in record.pathname for folder in _RAISED):
        return False
    return record.pathname.startswith(_PACKAGE) or record.levelno >= logging.ERROR

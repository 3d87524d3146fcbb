"""What commands do to the libraries they load: quiet logging, compiled programs that are kept."""

import ctypes
import logging
import os
import sys
import warnings
from pathlib import Path
from types import TracebackType

import absl.flags
import absl.logging

from tlflax.config import tensorflow_notices
from tlflax.utils import assets, cpu, interrupts, progress

_RAISED = tuple(f'{os.sep}{name}{os.sep}' for name in ('orbax', 'asyncio'))
READING = {'TF_ENABLE_ONEDNN_OPTS': '0', 'TF_NUM_INTRAOP_THREADS': '1'}  # variables
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of malloc.h
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


def only_read_images() -> None:
    """Sets `READING` for a TensorFlow that does nothing else, unless the user has. Pixels stay.

    With oneDNN, TensorFlow's memory is one pool for all threads, which gives to one core what
    another has just written: at times that takes two thirds more CPU time. And as many images are
    in progress as keep all cores busy, so that to share one operation among threads only costs.
    """
    for name, value in READING.items():
        os.environ.setdefault(name, value)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Lets glibc keep 64 MiB a core of what is freed, unless a variable tells it what to do.

    It would give the memory of each batch back to the system and take it again, page by page. As
    threads share fewer arenas, less is lost between what is in use. Other allocators stay.
    """
    told = any(name.startswith('MALLOC_') or name == 'GLIBC_TUNABLES' for name in os.environ)
    if told or not sys.platform.startswith('linux'):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, 'gnu_get_libc_version'):
        library.mallopt(_MMAP_THRESHOLD, 32 << 20)  # the most that glibc would come to by itself
        library.mallopt(_TRIM_THRESHOLD, 64 << 20)
        library.mallopt(_ARENA_MAX, max(2, cpu.cores()))


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

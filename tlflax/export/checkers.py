"""The libraries that exported files are checked with."""

import importlib

from tlflax.utils.errors import UserError


def require(module: str, name: str, where: str) -> None:
    """Checks that a library is installed.

    Args:
        module: What is imported.
        name: The library.
        where: The flag that needs it.

    Raises:
        UserError: It is not.
    """
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f'the file is checked with {name}, which is not installed',
            where=where,
            fix="install it with pip install 'tlflax[export]'",
        ) from error

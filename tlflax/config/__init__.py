"""The configuration: its keys, their values checked, and the command line that sets them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tlflax.config.parse import default_config as default_config
    from tlflax.config.parse import resolve as resolve
    from tlflax.config.schema import Config as Config

__all__ = ['Config', 'default_config', 'resolve']


def __getattr__(name: str) -> Any:
    if name in __all__:  # imported on first use: commands handle signals from the beginning
        from tlflax.config import parse

        return getattr(parse, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

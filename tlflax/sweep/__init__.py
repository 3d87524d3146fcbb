"""Many heads from one feature cache, ranked."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tlflax.sweep.settings import grid as grid

__all__ = ['grid']


def __getattr__(name: str) -> Any:
    if name == 'grid':  # imported on first use, so that a sweep file costs nothing
        from tlflax.sweep.settings import grid

        return grid
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

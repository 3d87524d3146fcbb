"""Pages about one run or several; `write_run` writes that of a run."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tlflax.report.write import write_run as write_run

__all__ = ['write_run']


def __getattr__(name: str) -> Any:
    if name == 'write_run':  # imported on first use
        from tlflax.report.write import write_run

        return write_run
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

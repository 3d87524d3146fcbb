"""Transfer learning from folders of labeled images, in JAX/Flax."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tlflax.inference.restore import load as load

__all__ = ['load']


def __getattr__(name: str) -> Any:
    if name == 'load':  # imported on first use, so that `import tlflax.train.steps` stays fast
        from tlflax.inference.restore import load

        return load
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

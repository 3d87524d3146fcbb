"""Training: from a configuration to a finished workdir."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tlflax.train.run import train_and_evaluate as train_and_evaluate

__all__ = ['train_and_evaluate']


def __getattr__(name: str) -> Any:
    if name == 'train_and_evaluate':  # imported on first use: `tlflax.train.losses` stays light
        from tlflax.train.run import train_and_evaluate

        return train_and_evaluate
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

"""What a logger is: where the progress of a run is shown, beside its own metrics.jsonl."""

import math
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import UInt8

from tlflax.utils.files import JsonObject

Status = Literal['finished', 'interrupted', 'failed']
"""How a process ended its part of a run; an interrupted one is continued by another."""

Pictures = Mapping[str, UInt8[np.ndarray, '_ _ 3']]
"""RGB images by name."""


class Logger(Protocol):
    """Shows one run. Whatever its methods raise ends the logging, and never the run."""

    @property
    def run_id(self) -> str | None:
        """What names the run where it is shown, for a process that continues it; or None."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Shows the metrics of an epoch that ended with a step."""

    def pictures(self, step: int, pictures: Pictures) -> None:
        """Shows pictures of a step."""

    def finish(self, result: JsonObject) -> None:
        """Shows the contents of result.json."""

    def close(self, status: Status) -> None:
        """Lets go of files, processes and threads."""


def flat(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """Returns a configuration by full key, such as 'train.seed'; tuples become lists."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            values |= flat(value, f'{prefix}{key}.')
        else:
            values[f'{prefix}{key}'] = list(value) if isinstance(value, tuple) else value
    return values


def headline(result: JsonObject) -> dict[str, float]:
    """Returns the finite numbers of a result that sum it up.

    Those of a split begin with 'final_' and its name, since epochs have a `val_loss` too.
    """
    parts = {'': result, 'final_val_': result.get('val'), 'final_test_': result.get('test')}
    return {
        f'{prefix}{name}': float(value)
        for prefix, part in parts.items()
        for name, value in (part or {}).items()
        if isinstance(value, int | float) and math.isfinite(value) and name != 'step'
    }

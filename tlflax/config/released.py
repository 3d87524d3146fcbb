"""What the configurations of released versions stand for where their defaults were others."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tlflax.config.schema import Config

BEHAVIOR: dict[tuple[str, str], Any] = {
    ('optim', 'decayed'): ('.*',),
    ('optim', 'statistics'): 'updated',
}
"""Section and key to the value that a saved configuration without the key stands for."""


def filled(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a saved configuration with the keys that its version did not have yet."""
    whole = dict(saved)
    for (section, key), value in BEHAVIOR.items():
        if isinstance(own := whole.get(section, {}), Mapping):
            whole[section] = {key: value, **own}
    return whole


def continued(config: Config, saved: Mapping[str, Any]) -> Config:
    """Returns the configuration with which a run of a released version goes on.

    Args:
        config: What is asked for.
        saved: What the run was started with.

    Returns:
        `config`, which has the behavior of that version where it leaves the default.
    """
    for (section, key), value in BEHAVIOR.items():
        own, default = getattr(config, section), getattr(getattr(Config(), section), key)
        missing = key not in saved.get(section, {})
        if missing and getattr(own, key) == default:
            new = dataclasses.replace(own, **{key: value})
            config = dataclasses.replace(config, **{section: new})
    return config

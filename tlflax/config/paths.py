"""Relative paths in a configuration, seen from another folder than the one they were written in."""

import dataclasses
import os
import re

from tlflax.config.schema import Config
from tlflax.utils import python_file

_ELSEWHERE = re.compile(r'~|/|[a-z0-9]+:')  # absolute, or no path: tfds:, demo:, s3://
_WORDS = ('', 'imagenet', 'random')  # values of weights.source that are no paths


def started_in(config: Config, folder: str) -> Config:
    """Returns a run's configuration with paths that exist in the folder where it was started.

    Those that do not exist there stay as they are, for a run that was moved with its data.

    Args:
        config: The configuration.
        folder: The absolute folder that its relative paths started from; '' if nobody knows.
    """
    if not folder or folder == os.getcwd():
        return config
    data, weights, model = config.data, config.weights, config.model
    named = {name: _from(folder, getattr(data, name)) for name in ('train', 'val', 'test')}
    parts = {name: _from(folder, getattr(model, name)) for name in ('backbone', 'head')}
    return dataclasses.replace(
        config,
        data=dataclasses.replace(data, **named),
        weights=dataclasses.replace(weights, source=_from(folder, weights.source)),
        model=dataclasses.replace(
            model, **{name: value for name, value in parts.items() if python_file.is_spec(value)}
        ),
    )


def _from(folder: str, value: str) -> str:
    if python_file.is_spec(value):
        place, name = python_file.place_and_name(value)
        return f'py:{_from(folder, place)}:{name}'
    if value in _WORDS or _ELSEWHERE.match(value):
        return value
    first = re.split(r'[/{*?\[#]', value)[0]  # of a pattern, the part that is a file's name
    return os.path.join(folder, value) if os.path.exists(os.path.join(folder, first)) else value

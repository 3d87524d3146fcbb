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
    return dataclasses.replace(
        config,
        data=dataclasses.replace(
            data,
            train=_from(folder, data.train),
            val=_from(folder, data.val),
            test=_from(folder, data.test),
        ),
        weights=dataclasses.replace(weights, source=_from(folder, weights.source)),
        model=dataclasses.replace(
            model,
            backbone=_from_spec(folder, model.backbone),
            head=_from_spec(folder, model.head),
        ),
    )


def _from_spec(folder: str, value: str) -> str:
    return _from(folder, value) if python_file.is_spec(value) else value


def _from(folder: str, value: str) -> str:
    if python_file.is_spec(value):
        place, name = python_file.place_and_name(value)
        return f'py:{_from(folder, place)}:{name}'
    if value in _WORDS or _ELSEWHERE.match(value):
        return value
    first = re.split(r'[/{*?\[#]', value)[0]  # of a pattern, the part that is a file's name
    return os.path.join(folder, value) if os.path.exists(os.path.join(folder, first)) else value

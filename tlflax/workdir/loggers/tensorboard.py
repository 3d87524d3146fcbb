"""TensorBoard: event files in the workdir's folder `tensorboard`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tlflax.utils.files import JsonObject, dump_json
from tlflax.workdir.loggers import drawing
from tlflax.workdir.loggers.base import Pictures, Status, flat, headline
from tlflax.workdir.loggers.events import EventFile

FOLDER = 'tensorboard'


class TensorBoard:
    """Shows a run in TensorBoard; see `tlflax.workdir.loggers.base.Logger`.

    Args:
        workdir: Of the run.
        config: The configuration as nested dicts.
        step: Completed steps.
    """

    run_id = None

    def __init__(self, workdir: Path, config: Mapping[str, Any], step: int) -> None:
        self._events = EventFile(workdir / FOLDER, step + 1 if step else 0)
        self._step = step
        if not step:
            rows = ''.join(f'\n| {key} | `{json.dumps(v)}` |' for key, v in flat(config).items())
            self._events.text(0, 'config', f'| key | value |\n| --- | --- |{rows}')

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._step = step
        self._events.scalars(step, values)

    def pictures(self, step: int, pictures: Pictures) -> None:
        for name, pixels in pictures.items():
            height, width, _ = pixels.shape
            self._events.image(step, name, drawing.png(pixels), (height, width))

    def finish(self, result: JsonObject) -> None:
        told = {'result': headline(result), 'per_class': (result.get('val') or {}).get('per_class')}
        text = dump_json(told, indent=2).replace('\n', '\n    ')  # as code
        self._events.text(self._step, 'result', f'    {text}')

    def close(self, status: Status) -> None:
        self._events.close()

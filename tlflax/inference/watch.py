"""Evaluates the checkpoints of a training that is under way, as they come."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import logging

from tlflax.inference.restore import load
from tlflax.inference.trained import Trained
from tlflax.utils.errors import UserError
from tlflax.utils.files import JsonObject
from tlflax.workdir.checkpoints import saved_steps
from tlflax.workdir.files import read_result
from tlflax.workdir.folders import checkpoint_folder
from tlflax.workdir.mirror.read import fetched

PAUSE = 2.0
"""Seconds between two looks at the folder."""


def evaluate_each(
    workdir: str | Path, evaluate: Callable[[Trained], JsonObject], *, pause: float = PAUSE
) -> Iterator[JsonObject]:
    """Yields the evaluation of each checkpoint that appears, until the run is finished.

    Those that are there already come first. A training keeps its latest and its best checkpoints
    alone, so one that follows fast may be deleted before it is read; it is passed over.

    Args:
        workdir: The folder of the run; it may not exist yet.
        evaluate: Returns what is said of a classifier.
        pause: Seconds between two looks.

    Raises:
        UserError: The latest checkpoint cannot be evaluated, a finished run has none, or the
            workdir is that of a cross-validation.
    """
    seen = -1
    logging.info('waiting for checkpoints in %s', workdir)
    while True:
        folder = fetched(workdir, needed=False)
        checkpoints = checkpoint_folder(folder)
        finished = read_result(folder) is not None  # before the look: no step may come between
        for step in [step for step in saved_steps(checkpoints) if step > seen]:
            seen = step
            try:
                yield evaluate(load(folder, str(step)))
            except UserError as error:
                time.sleep(pause)
                if saved_steps(checkpoints)[-1:] == [step]:  # the latest is not deleted
                    raise
                logging.info('step %d is passed over, a later one is there (%s)', step, error)
        if finished and seen < 0:
            load(folder, 'last')  # says what is missing
        if finished:
            return
        time.sleep(pause)

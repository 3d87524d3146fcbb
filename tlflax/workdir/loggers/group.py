"""The loggers of a run behind one object: chosen by `train.loggers`, and never in its way."""

import functools
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from tlflax.utils.errors import UserError, reason
from tlflax.utils.files import JsonObject, write_json
from tlflax.workdir.loggers.base import Logger, Pictures, Status

NAMES = ('tensorboard', 'wandb', 'mlflow')
IDS = 'loggers.json'
_TITLES = {'tensorboard': 'TensorBoard', 'wandb': 'W&B', 'mlflow': 'MLflow'}


def check(names: Sequence[str]) -> None:
    """Checks, before anything is computed, that loggers can be used.

    Raises:
        UserError: A package is not installed, or W&B does not know its user.
    """
    for name in names:
        if name != 'tensorboard' and importlib.util.find_spec(name) is None:
            raise UserError(
                f'{_TITLES[name]} is not installed',
                where='config.train.loggers',
                fix=f"run `pip install 'tlflax[{name}]'`, or leave {name!r} out",
            )
    if 'wandb' in names:
        from tlflax.workdir.loggers import wandb

        wandb.check()


class Loggers:
    """The loggers of one process of a run; one that fails is left out from then on.

    Args:
        workdir: Of the run; has the ids under which it is shown, for processes that continue it.
        names: Some of `NAMES`.
        config: The configuration as nested dicts.
        step: Completed steps.
        shown: The last step of which earlier processes have shown the metrics; -1: none.
    """

    def __init__(
        self,
        workdir: Path,
        names: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        step: int = 0,
        shown: int = -1,
    ) -> None:
        self._loggers: dict[str, Logger] = {}
        self._workdir, self._step, self._shown = workdir, step, shown
        ids = _read_ids(workdir / IDS) if names else {}
        for name in names:
            self._try(name, functools.partial(self._open, name, config or {}, step, ids.get(name)))
        new = {name: one.run_id for name, one in self._loggers.items() if one.run_id}
        if new.items() - ids.items():
            self._try('', lambda: write_json(workdir / IDS, ids | new))

    @property
    def names(self) -> tuple[str, ...]:
        """Those that have not failed."""
        return tuple(self._loggers)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Shows the metrics of an epoch; TensorBoard forgets what comes again, others do not."""
        self._step, again = step, step <= self._shown
        self._each(
            lambda logger: logger.scalars(step, values),
            ('tensorboard',) if again else NAMES,
        )

    def pictures(self, make: Callable[[], Pictures]) -> None:
        """Shows pictures of the last step, which are made where they are shown only."""
        if self._loggers:
            self._try('', lambda: self._show(make()))

    def _show(self, pictures: Pictures) -> None:
        self._each(lambda logger: logger.pictures(self._step, pictures))

    def finish(self, result: JsonObject) -> None:
        """Shows the contents of result.json."""
        self._each(lambda logger: logger.finish(result))

    def close(self, status: Status) -> None:
        """Closes the loggers, which are gone afterwards."""
        self._each(lambda logger: logger.close(status))
        self._loggers = {}

    def _open(self, name: str, config: Mapping[str, Any], step: int, run_id: str | None) -> None:
        if name == 'tensorboard':
            from tlflax.workdir.loggers.tensorboard import TensorBoard

            self._loggers[name] = TensorBoard(self._workdir, config, step)
        elif name == 'wandb':
            from tlflax.workdir.loggers.wandb import WeightsAndBiases

            self._loggers[name] = WeightsAndBiases(self._workdir, config, run_id)
        else:
            from tlflax.workdir.loggers.mlflow import MLflow

            self._loggers[name] = MLflow(self._workdir, config, run_id)

    def _each(self, call: Callable[[Logger], None], names: Sequence[str] = NAMES) -> None:
        for name, logger in list(self._loggers.items()):
            if name in names:
                self._try(name, functools.partial(call, logger))

    def _try(self, name: str, call: Callable[[], None]) -> None:
        """Calls, and leaves a logger out that fails; a run is worth more than its picture."""
        try:
            call()
        except Exception as error:
            logger = self._loggers.pop(name, None)
            what = f'{_TITLES.get(name, "loggers")}: {reason(error)}'
            logging.warning('WARNING: %s; the run goes on without it', what)
            if logger is not None:
                try:
                    logger.close('failed')
                except Exception as second:
                    logging.debug('closing %s: %s', name, reason(second))


def _read_ids(path: Path) -> dict[str, str]:
    """Returns the ids of the run by logger; none where the file is missing or damaged."""
    try:
        found = json.loads(path.read_bytes())
        return {name: value for name, value in found.items() if isinstance(value, str)}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, RecursionError):
        logging.warning('WARNING: %s: is damaged: what is shown elsewhere begins again', path)
        return {}

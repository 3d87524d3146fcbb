"""MLflow, of the extra `mlflow`: its client alone, without its process-wide state."""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from tlflax.utils.errors import reason
from tlflax.utils.files import JsonObject, dump_json
from tlflax.workdir.loggers import drawing
from tlflax.workdir.loggers.base import Pictures, Status, flat, headline

_EXPERIMENT = 'tlflax'
_AT_ONCE = 100  # parameters in a request
_ENVIRONMENT = {  # unless the user has set them
    'MLFLOW_ALLOW_FILE_STORE': 'true',  # the only store on disk without SQLAlchemy
    'MLFLOW_DISABLE_TELEMETRY': 'true',  # leaves a thread behind
    'MLFLOW_HTTP_REQUEST_MAX_RETRIES': '2',  # a server that is gone holds nobody up for minutes
    'MLFLOW_HTTP_REQUEST_TIMEOUT': '15',
}
_STATUS: dict[Status, str] = {'finished': 'FINISHED', 'failed': 'FAILED', 'interrupted': 'KILLED'}


class MLflow:
    """Shows a run in MLflow; see `tlflax.workdir.loggers.base.Logger`.

    Where MLFLOW_TRACKING_URI names nothing, the run is kept in the workdir's folder `mlruns`.
    MLFLOW_EXPERIMENT_NAME and MLFLOW_EXPERIMENT_ID are respected.

    Args:
        workdir: Of the run.
        config: The configuration as nested dicts.
        run_id: That of the run which is continued, or None.
    """

    def __init__(self, workdir: Path, config: Mapping[str, Any], run_id: str | None) -> None:
        uri = os.environ.get('MLFLOW_TRACKING_URI') or (workdir / 'mlruns').as_uri()
        with _environment():
            from mlflow.tracking import MlflowClient

            self._client = MlflowClient(uri)
            self.run_id = self._continued(run_id) or self._created(workdir, config)

    def _continued(self, run_id: str | None) -> str | None:
        """Returns the id of the run that is continued; None where it is not there any more."""
        from mlflow.exceptions import MlflowException

        if run_id is None:
            return None
        try:
            self._client.update_run(run_id, status='RUNNING')
        except MlflowException as error:
            logging.warning('WARNING: MLflow begins a new run: %s', reason(error))
            return None
        return run_id

    def _created(self, workdir: Path, config: Mapping[str, Any]) -> str:
        from mlflow.entities import Param

        run = self._client.create_run(
            os.environ.get('MLFLOW_EXPERIMENT_ID') or self._experiment(),
            run_name=workdir.name,
            tags={'tlflax.workdir': str(workdir)},
        )
        found: str = run.info.run_id
        params = [Param(key, str(value)) for key, value in flat(config).items()]
        for start in range(0, len(params), _AT_ONCE):
            self._client.log_batch(found, params=params[start : start + _AT_ONCE])
        return found

    def _experiment(self) -> str:
        name = os.environ.get('MLFLOW_EXPERIMENT_NAME') or _EXPERIMENT
        known = self._client.get_experiment_by_name(name)
        found: str = known.experiment_id if known else self._client.create_experiment(name)
        return found

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        with _environment():
            self._client.log_batch(self.run_id, metrics=metrics)

    def pictures(self, step: int, pictures: Pictures) -> None:
        with _environment(), tempfile.TemporaryDirectory() as folder:
            for name, pixels in pictures.items():
                path = Path(folder) / f'{name.replace(" ", "_")}.png'
                path.write_bytes(drawing.png(pixels))
                self._client.log_artifact(self.run_id, str(path))

    def finish(self, result: JsonObject) -> None:
        self.scalars(int(result.get('step', 0)), headline(result))
        with _environment():
            self._client.log_text(self.run_id, dump_json(result, indent=2) + '\n', 'result.json')

    def close(self, status: Status) -> None:
        with _environment():
            self._client.set_terminated(self.run_id, status=_STATUS[status])


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Sets what MLflow reads from the environment."""
    added = {name: value for name, value in _ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)

"""Weights & Biases, of the extra `wandb`."""

import contextlib
import os
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import logging
from PIL import Image

from tlflax.utils.errors import UserError
from tlflax.utils.files import JsonObject, dump_json
from tlflax.workdir.loggers.base import Pictures, Status, flat, headline

_PROJECT = 'tlflax'
_SETTINGS: dict[str, Any] = {
    'console': 'off',  # our lines stay where they are
    'silent': True,  # it would write between them
    'init_timeout': 30.0,
    'finish_timeout': 60.0,
    'finish_timeout_raises': True,
}
_EXIT_CODES: dict[Status, int] = {'finished': 0, 'failed': 1, 'interrupted': 130}


def _settings() -> Any:
    """Returns our settings: those that this version of W&B knows and the user has not made."""
    import wandb

    known = {n for n in wandb.Settings.model_fields if f'WANDB_{n.upper()}' not in os.environ}
    return wandb.Settings(**{name: v for name, v in _SETTINGS.items() if name in known})


def check() -> None:
    """Checks that W&B knows its user, or need not; it would ask on the terminal otherwise.

    Raises:
        UserError: It does not.
    """
    import wandb

    alone = wandb.run is None
    with _hooks_kept():
        given = wandb.setup(_settings()).settings  # starts its process
    try:
        known = given.mode in ('offline', 'disabled', 'dryrun') or _login(given.base_url)
    finally:
        if alone:
            _teardown()
    if not known:
        raise UserError(
            'W&B has no API key',
            where='config.train.loggers',
            fix='run `wandb login`, or set WANDB_MODE=offline',
        )


def _login(host: str) -> bool:
    """Returns whether W&B finds a key without asking; or True where it cannot be told."""
    try:
        from wandb.sdk.lib.wbauth import authenticate_session as login

        return login(host=host, source='tlflax', prompt=False, update_session=False) is not None
    except (ImportError, TypeError):  # another version
        return True


def _teardown() -> None:
    """Ends W&B's process and threads."""
    import wandb

    with contextlib.suppress(SystemExit):  # it wants to end us where its process has failed
        wandb.teardown()


class WeightsAndBiases:
    """Shows a run in Weights & Biases; see `tlflax.workdir.loggers.base.Logger`.

    WANDB_PROJECT, WANDB_NAME, WANDB_DIR, WANDB_MODE and the like are respected.

    Args:
        workdir: Of the run.
        config: The configuration as nested dicts.
        run_id: That of the run which is continued, or None.
    """

    def __init__(self, workdir: Path, config: Mapping[str, Any], run_id: str | None) -> None:
        import wandb

        self.run_id = run_id or uuid.uuid4().hex[:8]
        self._wandb, self._workdir = wandb, workdir
        self._alone = wandb.run is None  # else a run of the caller's goes on after ours
        try:
            with _hooks_kept():
                self._run = self._start(config)
        except Exception:
            self._end()
            raise
        if self._run.settings.mode == 'online':
            logging.info('W&B: %s', self._run.url)

    def _start(self, config: Mapping[str, Any]) -> Any:
        return self._wandb.init(
            project=os.environ.get('WANDB_PROJECT') or _PROJECT,
            name=os.environ.get('WANDB_NAME') or self._workdir.name,
            dir=os.environ.get('WANDB_DIR') or str(self._workdir),
            id=self.run_id,
            resume='allow',
            reinit='create_new',
            config=flat(config),
            settings=_settings(),
        )

    def _end(self) -> None:
        if self._alone:
            _teardown()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def pictures(self, step: int, pictures: Pictures) -> None:
        # Without a step they join the last epoch's metrics.
        self._run.log({k: self._wandb.Image(Image.fromarray(v)) for k, v in pictures.items()})

    def finish(self, result: JsonObject) -> None:
        self._run.summary.update(headline(result))
        path = Path(self._run.dir) / 'result.json'
        path.write_text(dump_json(result, indent=2) + '\n')
        self._run.save(str(path), base_path=self._run.dir, policy='now')

    def close(self, status: Status) -> None:
        try:
            self._run.finish(exit_code=_EXIT_CODES[status])
        finally:
            self._end()


@contextlib.contextmanager
def _hooks_kept() -> Iterator[None]:
    """Undoes what W&B does to `sys`, to learn of an end that we tell it ourselves."""
    before = sys.excepthook, sys.exit
    try:
        yield
    finally:
        sys.excepthook, sys.exit = before

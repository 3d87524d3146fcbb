"""What the files of a workdir say for its page."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tlflax.utils.errors import UserError
from tlflax.utils.files import JsonObject
from tlflax.workdir.files import read_json, read_records, read_result


class Files(NamedTuple):
    """The contents of the files.

    Attributes:
        result: `result.json`.
        records: `metrics.jsonl`.
        config: `config.json`.
        environment: The last session of `provenance.json`; empty if there is none.
        tried: The candidates of `auto.json`; empty for a head that was named.
        tried_note: Why one was chosen.
    """

    result: JsonObject
    records: list[JsonObject]
    config: JsonObject
    environment: JsonObject
    tried: Sequence[JsonObject]
    tried_note: str


def read(workdir: str | Path) -> Files:
    """Reads the files of a finished run.

    Raises:
        UserError: It is not finished, or a file that every run has is missing or damaged.
    """
    folder = Path(workdir)
    config, result = read_json(folder / 'config.json'), read_result(folder)
    if result is None:
        raise UserError(
            'the run is not finished',
            where=str(workdir),
            fix='finish it by the command that began it',
        )
    auto = read_json(folder / 'auto.json') if (folder / 'auto.json').exists() else {}
    return Files(
        result=result,
        records=read_records(folder),
        config=config,
        environment=_environment(folder / 'provenance.json'),
        tried=auto.get('candidates', ()),
        tried_note=auto.get('why', ''),
    )


def _environment(path: Path) -> JsonObject:
    """Returns the last session; runs of old versions, and a damaged file, have none."""
    try:
        session = json.loads(path.read_bytes())['sessions'][-1]
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return {}
    return session if isinstance(session, dict) else {}

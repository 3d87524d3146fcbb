"""What the files of a workdir say for its page."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tlflax.utils.errors import UserError, printable
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
        exports: The files that were exported and timed, from `exports.json`.
        notes: What cannot be shown.
    """

    result: JsonObject
    records: list[JsonObject]
    config: JsonObject
    environment: JsonObject
    tried: Sequence[JsonObject]
    tried_note: str
    exports: Sequence[JsonObject]
    notes: Sequence[str]


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
    if not isinstance(result.get('val'), dict):  # one without a digest may have been changed
        raise UserError(
            "it has no result of the validation images, 'val'",
            where=str(folder / 'result.json'),
            fix='delete it and repeat the command that wrote it',
        )
    tried, why, notes = _auto(folder / 'auto.json')
    exports, damaged = _exports(folder / 'exports.json')
    return Files(
        result=result,
        records=read_records(folder),
        config=config,
        environment=_environment(folder / 'provenance.json'),
        tried=tried,
        tried_note=why,
        exports=exports,
        notes=[*notes, *damaged],
    )


def _auto(path: Path) -> tuple[Sequence[JsonObject], str, Sequence[str]]:
    """Returns the candidates, why one was chosen, and what is wrong with the file."""
    try:
        found = json.loads(path.read_bytes())
        tried, why = found['candidates'], found['why']
        if _is_table(tried) and isinstance(why, str):
            return tried, why, ()
    except FileNotFoundError:
        return (), '', ()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    return (), '', [f'{printable(str(path))} is damaged: what was tried is not shown.']


def _exports(path: Path) -> tuple[Sequence[JsonObject], Sequence[str]]:
    """Returns the files that were exported, and what is wrong with their list."""
    try:
        if _is_table(found := json.loads(path.read_bytes())):
            return found, ()
    except FileNotFoundError:
        return (), ()
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        pass
    return (), [f'{printable(str(path))} is damaged: what was exported is not shown.']


def _is_table(rows: list[JsonObject]) -> bool:
    return isinstance(rows, list) and all(row.keys() == rows[0].keys() for row in rows)


def _environment(path: Path) -> JsonObject:
    """Returns the last session; runs of old versions, and a damaged file, have none."""
    try:
        session = json.loads(path.read_bytes())['sessions'][-1]
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return {}
    return session if isinstance(session, dict) else {}

"""What is wrong with the folders of a command, told before any library is imported."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from tlflax.utils.errors import UserError, located
from tlflax.utils.storage.connect import is_url


def require_run(workdir: str) -> None:
    """Checks that a workdir has checkpoints; that of a URL is looked at when it is fetched.

    Raises:
        UserError: It has none, or is no workdir, or one of several runs.
    """
    if not is_url(workdir):
        require_folder(checkpoint_folder(Path(workdir)).resolve())


def checkpoint_folder(workdir: Path) -> Path:
    """Returns where the checkpoints of a workdir are.

    Raises:
        UserError: It is no workdir, or one of several runs.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(
            'this is a file, not a workdir', where=str(workdir), fix='give the folder of a run'
        )
    if (workdir / '_CHECKPOINT_METADATA').exists():
        raise UserError(
            'this is one checkpoint, not a workdir',
            where=str(workdir),
            fix='give the folder two levels up',
        )
    if _is_cross_validation(workdir / 'config.json'):
        raise UserError(
            'this is a cross-validation, which has a classifier for each fold',
            where=str(workdir),
            fix='give the folder of one below it, such as fold0 or repeat0/fold0',
        )
    return workdir / 'checkpoints'


def _is_cross_validation(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_bytes())['data']['fold'] == 'all')
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return False


def require_folder(checkpoints: Path) -> None:
    """Checks that a folder of checkpoints exists.

    Raises:
        UserError: It does not.
    """
    if not checkpoints.is_dir():
        raise UserError(
            'no checkpoint found',
            where=str(checkpoints),
            fix='give a workdir in which `python -m tlflax.train` ran',
        )


def require_images(config: ConfigDict, workdir: str) -> None:
    """Checks that the folders of images of a new run exist.

    What takes longer to look at is not looked at: patterns, URLs, and what is written first. A run
    that has begun says more of itself, and one that is finished needs no images.

    Args:
        config: As a config file's `get_config()` returns it.
        workdir: Of the run.

    Raises:
        UserError: A folder or file does not exist.
    """
    if is_url(workdir) or (Path(workdir) / 'config.json').exists():
        return
    for name in ('train', 'val', 'test'):
        spec = config.data.get(name)
        if isinstance(spec, str) and spec and not _may_exist(spec):
            from tlflax.data.splits.resolve import list_input  # NumPy takes a tenth of a second

            with located(f'config.data.{name}'):
                list_input(spec, split=name)  # says what is wrong


def _may_exist(spec: str) -> bool:
    """Returns whether a split is more than the name of a file or folder, or there is such a one."""
    path = spec.partition('#')[0]
    return any(sign in path for sign in ':*?[{') or Path(path).expanduser().exists()

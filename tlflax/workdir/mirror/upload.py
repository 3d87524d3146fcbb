"""Uploads what is new in a workdir, in an order that keeps the objects a whole, earlier state."""

import dataclasses
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tlflax.utils.files import atomic_write
from tlflax.utils.storage.connect import Store
from tlflax.workdir.mirror import scan
from tlflax.workdir.mirror.places import MARKER
from tlflax.workdir.mirror.scan import Stamp

RESULT = 'result.json'
_EARLY = ('config.json', 'metrics.jsonl', 'provenance.json', '.writing')
_THREADS = 8
_BEGUN = Stamp(-1, -1, -1)  # of a step that is not complete in the store


@dataclasses.dataclass
class Sent:
    """What was uploaded, noted in a file of this machine.

    Attributes:
        path: The file.
        files: The stamps of files outside of checkpoints when they were uploaded.
        steps: The stamp of each step, and its files.
    """

    path: Path
    files: dict[str, Stamp] = dataclasses.field(default_factory=dict)
    steps: dict[str, tuple[Stamp, list[str]]] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> 'Sent':
        """Reads the file; a missing or damaged one says that nothing was."""
        try:
            found = json.loads(path.read_bytes())
            files = {name: Stamp(*stamp) for name, stamp in found['files'].items()}
            steps = {
                name: (Stamp(*stamp), list(names))
                for name, (stamp, names) in found['steps'].items()
            }
            return cls(path, files, steps)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return cls(path)

    @classmethod
    def all_of(cls, path: Path, folder: Path) -> 'Sent':
        """Returns that everything in a folder was."""
        seen = scan.look(folder)
        steps = {step: (stamp, scan.files_of(folder, step)) for step, stamp in seen.steps.items()}
        return cls(path, seen.files, steps)

    def save(self) -> None:
        """Writes the file."""
        atomic_write(self.path, json.dumps({'files': self.files, 'steps': self.steps}))


class Uploads:
    """Uploads of one workdir; one thread uses it at a time.

    Args:
        store: Where to.
        top: The folder in the store.
        folder: The workdir on this machine.
        sent: What was uploaded before.
        allowed: Whether this process may still write there.
    """

    def __init__(
        self, store: Store, top: str, folder: Path, sent: Sent, allowed: Callable[[], bool]
    ) -> None:
        self._store, self._top, self._folder = store, top.rstrip('/'), folder
        self._sent, self._allowed = sent, allowed

    def round(self) -> bool:
        """Uploads what is new; see `tlflax.workdir.mirror`.

        Returns:
            Whether nothing was left over that changed under way.

        Raises:
            Exception: Whatever the store raises; the next round goes on from there.
        """
        files = scan.look(self._folder).files  # what follows is at least as new
        before = scan.contents(self._folder, self._new(files))
        seen = scan.look(self._folder)
        if not self._differs(files, seen):
            return True
        if not self._allowed():
            return True
        self._withdraw(seen.files)
        early = {path: s for path, s in seen.files.items() if _is_early(path)}
        self._send(self._new(early), scan.contents(self._folder, self._new(early)))
        whole = all(self._send_step(step, stamp) for step, stamp in seen.steps.items())
        if whole:
            late = {path: stamp for path, stamp in files.items() if not _is_early(path)}
            self._send(self._new(late), before)
            self._forget(seen)
        self._sent.save()
        return whole

    def _new(self, files: dict[str, Stamp]) -> dict[str, Stamp]:
        """Returns the files that have changed, `result.json` of the uppermost folder last."""
        new = [path for path, stamp in files.items() if self._sent.files.get(path) != stamp]
        return {path: files[path] for path in sorted(new, key=_order)}

    def _differs(self, files: dict[str, Stamp], seen: scan.Seen) -> bool:
        steps = {step: stamp for step, (stamp, _) in self._sent.steps.items()}
        return files != self._sent.files or seen != scan.Seen(self._sent.files, steps)

    def _withdraw(self, files: dict[str, Stamp]) -> None:
        """Deletes results that are not there any more, before what they are about changes."""
        for path, stamp in list(self._sent.files.items()):
            if path.split('/')[-1] == RESULT and files.get(path) != stamp:
                self._delete([path])
                del self._sent.files[path]

    def _send(self, files: dict[str, Stamp], contents: dict[str, bytes]) -> None:
        for path, stamp in files.items():
            if path in contents:
                self._store.pipe_file(self._at(path), contents[path])
            elif (self._folder / path).is_file():
                self._store.put_file(str(self._folder / path), self._at(path))
            else:  # deleted since
                continue
            self._sent.files[path] = stamp

    def _send_step(self, step: str, stamp: Stamp) -> bool:
        """Uploads a step unless that was done; returns False if it was deleted under way."""
        if step in self._sent.steps:
            if self._sent.steps[step][0] == stamp:
                return True
            self._delete_step(step)
        paths = scan.files_of(self._folder, step)
        self._sent.steps[step] = (_BEGUN, paths)  # so that it is deleted if this is cut off
        self._sent.save()
        try:
            self._each(self._put, paths[:-1])
            if whole := bool(paths) and scan.files_of(self._folder, step) == paths:
                self._put(paths[-1])
        except FileNotFoundError:
            if scan.files_of(self._folder, step) == paths:  # the store's, not ours
                raise
            whole = False
        if not whole:
            self._delete_step(step)
            return False
        self._sent.steps[step] = (stamp, paths)
        self._sent.save()
        return True

    def _forget(self, seen: scan.Seen) -> None:
        """Deletes what is not here any more."""
        for step in [step for step in self._sent.steps if step not in seen.steps]:
            self._delete_step(step)
        gone = [path for path in self._sent.files if path not in seen.files]
        self._delete(gone)
        for path in gone:
            del self._sent.files[path]

    def _delete_step(self, step: str) -> None:
        _, paths = self._sent.steps[step]
        self._delete([f'{step}{MARKER}'])
        self._delete([path for path in paths if path != f'{step}{MARKER}'])
        del self._sent.steps[step]

    def _put(self, path: str) -> None:
        self._store.put_file(str(self._folder / path), self._at(path))

    def _delete(self, paths: Iterable[str]) -> None:
        self._each(lambda path: delete(self._store, self._at(path)), paths)

    def _each(self, call: Callable[[str], object], paths: Iterable[str]) -> None:
        """Calls a function for several paths at once; raises what the first one raises."""
        with ThreadPoolExecutor(_THREADS) as pool:
            for _ in pool.map(call, paths):
                pass

    def _at(self, path: str) -> str:
        return f'{self._top}/{path}'


def delete(store: Store, path: str) -> None:
    """Deletes an object, which may be gone already."""
    try:
        store.rm_file(path)
    except FileNotFoundError:
        return


def _is_early(path: str) -> bool:
    return path.split('/')[-1] in _EARLY


def _order(path: str) -> tuple[bool, int, str]:
    """Results last, those of inner folders before those of outer ones."""
    return path.split('/')[-1] == RESULT, -path.count('/'), path

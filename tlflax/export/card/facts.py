"""What a model card says: facts of the run, its images and the check of the exported file.

What is not known, because a file is missing or images cannot be read any more, is None or empty.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int

from tlflax.data.audit import run as auditing
from tlflax.data.inputs.demos import DEMOS
from tlflax.data.inputs.listing import Announced
from tlflax.data.table import ImageTable
from tlflax.inference.splits import NAMES, is_changed, load_split
from tlflax.inference.trained import Trained
from tlflax.models import backbones
from tlflax.models.linear.calibration import cross_entropy
from tlflax.report.gather import files
from tlflax.report.gather.files import Files
from tlflax.train.metrics.summary import summary
from tlflax.utils.errors import UserError
from tlflax.utils.files import JsonObject

UNKNOWN = 'unknown'

T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class Export:
    """An exported file, and what it was made from.

    Attributes:
        workdir: The folder of the run.
        format: The name of the file's format.
        path: The file or folder.
        size: Its bytes.
        trained: The classifier.
        metadata: That of the file; see `tlflax.export.model.describe`.
        exact: Whether the file gives the probabilities of the classifier, but for rounding.
        labels: i[n], the true classes of the images that the file was checked with.
        probabilities: f[n, classes], what it gave for them.
        found: What the check found: `images`, `max_difference`, `labels_differ`, `accuracy` and
            `classifier_accuracy`.
    """

    workdir: str | Path
    format: str
    path: Path
    size: int
    trained: Trained
    metadata: Mapping[str, str]
    exact: bool
    labels: Int[np.ndarray, ' n']
    probabilities: Float[np.ndarray, 'n classes']
    found: JsonObject

    @property
    def workdir_name(self) -> str:
        """The name of the folder of the run."""
        return Path(self.workdir).absolute().name


@dataclasses.dataclass(frozen=True)
class Split:
    """The images of a split.

    Attributes:
        name: 'train', 'validation' or 'test'.
        counts: Images by class; None where they cannot be read any more.
        digest: Of the run's images; '' where it was not recorded.
        changed: Whether the images are others than those of the run.
    """

    name: str
    counts: dict[str, int] | None
    digest: str
    changed: bool = False


@dataclasses.dataclass(frozen=True)
class Problem:
    """A problem that the audit of the data found: its level, and a sentence."""

    level: str
    what: str


@dataclasses.dataclass(frozen=True)
class Source:
    """Where images are from.

    Attributes:
        name: Under which a public catalogue has them; '' where none has.
        what: In words; '' where that is not known.
        license: Their license, and whom to credit; 'unknown'.
    """

    name: str
    what: str
    license: str


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known.

    Attributes:
        export: The file.
        run: What the files of the workdir say; None where the run is not finished.
        is_result: Whether the exported step is the one that `result.json` is about.
        val: Metrics of the validation images, see `tlflax.train.metrics.summary`.
        of_file: Whether `val` is computed from what the file itself gave in its check.
        test: Metrics of the test images, if the run has them.
        splits: The images.
        problems: What the audit found, the worst first; None where the images cannot be read.
        weights: The name of the pretrained weights.
        weights_license: Their license, and whom to credit; 'unknown'.
        source: What the images are.
    """

    export: Export
    run: Files | None
    is_result: bool
    val: JsonObject
    of_file: bool
    test: JsonObject | None
    splits: Sequence[Split]
    problems: Sequence[Problem] | None
    weights: str
    weights_license: str
    source: Source


def gather(export: Export) -> Facts:
    """Gathers what is known; nothing that is missing raises."""
    run = _unless_failing(lambda: files.read(export.workdir))
    is_result = run is not None and run.result.get('step') == export.trained.step
    val, of_file = metrics(export, run.result if run and is_result else None)
    weights, license_ = weights_of(export.trained, run.result if run else {})
    return Facts(
        export=export,
        run=run,
        is_result=is_result,
        val=val,
        of_file=of_file,
        test=run.result.get('test') if run and is_result and not of_file else None,
        splits=splits(export.trained),
        problems=_unless_failing(lambda: problems(export.trained)),
        weights=weights,
        weights_license=license_,
        source=source_of(export.trained.config.data.train),
    )


def metrics(export: Export, result: JsonObject | None) -> tuple[JsonObject, bool]:
    """Returns metrics of the validation images, and whether those are the file's own.

    They are those of `result.json` where the file computes the same, and otherwise of what the file
    gave in its check.
    """
    calibrated = export.metadata['calibrated'] == 'true'
    if result is not None and export.exact and not calibrated:
        return result['val'], False
    labels, found = export.labels, export.probabilities.astype(np.float64)
    found = found / found.sum(1, keepdims=True)
    return {
        'accuracy': export.found['accuracy'],
        'loss': cross_entropy(labels, found),
        'num_examples': len(labels),
        **summary(labels, found, export.trained.class_names),
    }, True


def splits(trained: Trained) -> list[Split]:
    """Returns what each split of the run holds now."""
    recorded = trained.split_digests
    names = [name for name in NAMES if name != 'test' or 'test' in recorded]
    return [_split(trained, name) for name in names]


def _split(trained: Trained, name: str) -> Split:
    digest = trained.split_digests.get(NAMES[name], '')
    table = _unless_failing(lambda: load_split(trained, name, Announced(everything=True)))
    if table is None:
        return Split(name, None, digest)
    return Split(name, _counts(table), digest, is_changed(trained, name, table))


def _counts(table: ImageTable) -> dict[str, int]:
    counts = np.bincount(table.labels, minlength=len(table.class_names)).tolist()
    return dict(zip(table.class_names, counts, strict=True))


def problems(trained: Trained) -> list[Problem]:
    """Returns what the audit finds in the run's images, without the folders they are in.

    Raises:
        UserError: They cannot be read.
    """
    found = auditing.run(trained.config.data, Announced(everything=True))
    roots = sorted({part['root'] for part in found.summary.values() if part.get('root')}, key=len)
    inside = re.compile('|'.join(re.escape(root) for root in reversed(roots)) or '(?!)')
    return [Problem(one.level, inside.sub('...', one.what)) for one in found.problems]


def weights_of(trained: Trained, result: JsonObject) -> tuple[str, str]:
    """Returns the name of the pretrained weights, and their license."""
    source = trained.config.weights.source
    if source == 'random':
        return 'random', UNKNOWN
    backbone = backbones.find(trained.config.model.backbone)
    digest = result.get('weights_digest', trained.weights_digest)
    if known := backbone.known.get(digest):
        return known.name, known.license
    if source == 'imagenet' and backbone.imagenet is not None:
        return 'imagenet', backbone.imagenet.license
    return 'custom', UNKNOWN


def source_of(spec: str) -> Source:
    """Returns what is known of images by the name that a configuration gives them.

    Args:
        spec: See `tlflax.data.splits.resolve.list_input`.
    """
    kind, _, rest = spec.partition(':')
    if kind == 'demo' and (demo := DEMOS.get(rest.partition('/')[0])):
        return Source('', f'the demo of tlflax, {demo.what}', demo.license)
    if kind == 'tfds' and rest and rest[0] not in '/~.':
        name = re.split('[/:]', rest)[0]
        from tlflax.data.ingest import tfds  # imports TensorFlow

        said = _unless_failing(lambda: tfds.license_of(spec))
        return Source(name, f'{name} of TensorFlow Datasets', said or UNKNOWN)
    return Source('', '', UNKNOWN)


def _unless_failing(part: Callable[[], T]) -> T | None:
    """Returns what a function returns; None where files cannot be read."""
    try:
        return part()
    except UserError:
        return None

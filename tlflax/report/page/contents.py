"""What a page shows, as plain values: gathered elsewhere, and written as HTML by `render`."""

import dataclasses
from collections.abc import Mapping, Sequence

from tlflax.report.page.pictures import Picture
from tlflax.utils.files import JsonObject


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neighbor:
    """A training image beside an image that was classified.

    Attributes:
        path: Of the training image, relative to its folder.
        label: Its class.
        similarity: Cosine of the angle between both images' features.
        picture: None where the budget of pictures is spent.
    """

    path: str
    label: str
    similarity: float
    picture: Picture | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """An image of the validation split, and what the classifier says of it.

    Attributes:
        number: Its row in the split: the page's name for it.
        path: Relative to the split's folder.
        true: Its class.
        predicted: The class of the highest probability.
        probability: Of the predicted class.
        true_probability: Of the true class.
        picture: None where the budget of pictures is spent.
        heat: The same picture under a map of what spoke for the predicted class, or None.
        neighbors: The nearest training images, the nearest first.
    """

    number: int
    path: str
    true: str
    predicted: str
    probability: float
    true_probability: float
    picture: Picture | None
    heat: Picture | None = None
    neighbors: Sequence[Neighbor] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bin:
    """The images of a bin of the reliability diagram.

    Attributes:
        low: The lower end of the predicted class's probability.
        high: The upper end.
        count: Number of images.
        confidence: The mean probability; NaN without images.
        accuracy: The share of right predictions; NaN without images.
        interval: The 95 % interval of that share (Wilson), or None.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float
    interval: tuple[float, float] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """An image on the map of the features.

    Attributes:
        x: 0..1.
        y: 0..1.
        label: The number of its class.
        split: 'train' or 'validation'.
        path: Relative to the split's folder.
        wrong: Whether it is a validation image that was classified wrongly.
    """

    x: float
    y: float
    label: int
    split: str
    path: str
    wrong: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShownItem:
    """What a finding of the audit is about.

    Attributes:
        text: What it is.
        pictures: Of its files.
    """

    text: str
    pictures: Sequence[Picture]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One finding of the data audit.

    Attributes:
        level: 'error', 'warning' or 'note'.
        what: A sentence.
        fix: What to do; may be empty.
        count: Number of items.
        items: Some of them, the worst first.
    """

    level: str
    what: str
    fix: str
    count: int
    items: Sequence[ShownItem]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit:
    """The audit of the data.

    Attributes:
        splits: Lines that say what each split holds.
        counts: For each split, the number of images of each class.
        findings: The worst first.
    """

    splits: Sequence[str]
    counts: Mapping[str, Mapping[str, int]]
    findings: Sequence[Finding]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmented:
    """A training image and what epochs make of it.

    Attributes:
        label: Its class.
        path: Relative to its folder.
        original: As evaluation sees it.
        epochs: As the first epochs see it.
    """

    label: str
    path: str
    original: Picture
    epochs: Sequence[Picture]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunPage:
    """Everything the page of one run shows; what is None or empty leaves its section out.

    Attributes:
        name: The workdir as the user names it.
        result: The contents of `result.json`; of a cross-validation `val`, `calibration` and
            `wall_seconds`.
        records: The lines of `metrics.jsonl`.
        class_names: In the order of the confusion matrix.
        confusion: `[true][predicted]`, numbers of images.
        examples: Examples by number: all that a section refers to.
        cells: (true, predicted) class numbers to numbers of examples, the most confident first; a
            cell may hold fewer examples than images.
        mistakes: Numbers of the most confident mistakes, the most confident first.
        uncertain: Numbers of the images of lowest probability, the lowest first.
        reliability: Bins in order.
        points: The map of the features.
        map_note: How the map was made, in a sentence.
        heat_note: How the heat maps were made, in a sentence.
        augmented: Samples of the augmentation.
        audit: Of the data.
        tried: The table of candidates of `model.head='auto'`, as rows of equal keys.
        tried_note: Why the choice was made.
        folds: The runs of a cross-validation, as rows of equal keys.
        exports: Exported files with size, latency and accuracy, as rows of equal keys.
        config: The contents of `config.json`.
        environment: The last session of `provenance.json`.
        notes: Sentences about what is not shown, and why.
    """

    name: str
    result: JsonObject
    records: Sequence[JsonObject]
    class_names: Sequence[str]
    confusion: Sequence[Sequence[int]]
    examples: Mapping[int, Example]
    cells: Mapping[tuple[int, int], Sequence[int]]
    mistakes: Sequence[int]
    uncertain: Sequence[int]
    reliability: Sequence[Bin]
    points: Sequence[Point] = ()
    map_note: str = ''
    heat_note: str = ''
    augmented: Sequence[Augmented] = ()
    audit: Audit | None = None
    tried: Sequence[JsonObject] = ()
    tried_note: str = ''
    folds: Sequence[JsonObject] = ()
    exports: Sequence[JsonObject] = ()
    config: JsonObject
    environment: JsonObject
    notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Differing:
    """A validation image for which runs that are compared predict different classes.

    Attributes:
        path: Relative to the split's folder.
        true: Its class.
        picture: None where the budget of pictures is spent.
        predicted: The class that each run predicts, in order.
        true_probabilities: The probability that each run gives the true class.
    """

    path: str
    true: str
    picture: Picture | None
    predicted: Sequence[str]
    true_probabilities: Sequence[float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonPage:
    """Everything the page of several runs shows.

    Attributes:
        names: Of the runs, as the user names them.
        comparison: What `tlflax.report.comparison.compare.compare` returns.
        records: The lines of each run's `metrics.jsonl`; empty where there are none.
        best_epochs: The epoch of each run that counts, or None.
        differing: Images for which the runs differ, the most different first.
        num_differing: How many there are.
    """

    names: Sequence[str]
    comparison: JsonObject
    records: Sequence[Sequence[JsonObject]]
    best_epochs: Sequence[int | None]
    differing: Sequence[Differing]
    num_differing: int

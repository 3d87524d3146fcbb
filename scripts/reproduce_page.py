"""The text of docs/results.md around the figures that reproduce.py measures."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from image_sets import CREDITS, DEMO, HEADS
from reproduce_methods import AUTO, KERAS, PROBE, RECIPE, RIGHT, TORCH, WRONG, Effort, Measured
from study_stopping import MANY, interval

from tlflax.utils.files import JsonObject


class Figures(NamedTuple):
    """All figures of one set.

    Attributes:
        name: What the tables call the set.
        train, val, classes: Numbers of images and classes.
        side: Height and width of the images.
        methods: By preprocessing and method.
        shots: What `reproduce_methods.shots` returns, by preprocessing.
    """

    name: str
    train: int
    val: int
    classes: int
    side: int
    methods: dict[str, dict[str, Measured]]
    shots: dict[str, list[JsonObject]]


class Circumstances(NamedTuple):
    """Where and how the figures were measured.

    Attributes:
        command: That wrote the page.
        machine: Processor and versions.
        date: Of the measurement.
        effort: How much was measured.
    """

    command: str
    machine: str
    date: str
    effort: Effort


WORDS = {
    AUTO: "`configs/images.py` (`model.head='auto'`)",
    PROBE: '`python -m tlflax.probe`',
    **{head: f'`configs/images.py`, `model.head={head!r}`' for head in HEADS},
    RECIPE: '`configs/traffic.py` *',
    KERAS: 'the same head, Keras *',
    TORCH: 'the same head, PyTorch *',
}
NAMES = {RIGHT: '', WRONG: ', rescale'}
"""What tables add to the name of a set."""

TOP = """# Results

Every figure on this page was measured by one command, which also wrote the page:

```bash
{command}
```

{machine}, {date}{quick}.

All methods train on features of one frozen ImageNet VGG16. Accuracies are those of the validation
images, in %. What is trained by steps has {seeds}; the interval in parentheses is the 95 % interval
of the mean over seeds (Student's t).

{sets}

The validation images are a sample themselves: on as many others of the same kind, an accuracy of
90 % would differ by up to the last column, in points (95 %, binomial).{leak}
"""

LEAK = """ Of the traffic lights, 26
validation photographs show a light that training shows a moment earlier or later, which flatters
every method."""

METHODS = """## Methods

The accuracy of every method, and what it costs in seconds once the features are in the cache:
compilation, training and evaluation in a process that has started. A star marks methods that kept
the epoch with the lowest loss of the validation images. As these chose, such a figure is flattered,
unless the loss chose badly; all other methods used the training images alone.

{table}

Keras and PyTorch train the head of `configs/traffic.py` with their own first parameters, order of
images and loop, on the same features of images and mirror images (`scripts/head_peers.py`).
"""

PREPROCESSING = """## Preprocessing

Accuracy with the preprocessing that the weights were trained with, and with another one, of
`weights.preprocess='rescale'`, of which tlflax warns. It need not be worse on every set. With a
star, the validation images chose the epoch, as above.

{table}
"""

SHOTS = """## Few images

Accuracy from so many training images of each class (`python -m tlflax.probe --shots`): the mean of
{draws} random draws and its 95 % interval, which is about the draws. The last column is the probe
above. Validation images choose nothing.

{table}
"""

STOPPING = """## Which epoch to keep

What each rule loses beside the best epoch in hindsight, in points, over all heads trained by
steps, all sets and {seeds} (one for more than {many:,} training images); and its mean accuracy. A
rule sees one half of the validation images and is measured on the other, both ways, so no choice
flatters a rule. Choice flatters hindsight, so even the best rule loses something. The constant rate
is that of `configs/traffic.py`, the one that falls to zero that of `configs/images.py`, which keeps
the last epoch; they also differ in batch size and highest rate. `scripts/study_stopping.py` prints
this table alone.

{table}
"""


def page(found: Sequence[Figures], stopping: str, where: Circumstances) -> str:
    """Returns the whole page."""
    seeds = f'{where.effort.seeds} seeds' if where.effort.seeds > 1 else 'one seed'
    parts = [
        TOP.format(
            command=where.command,
            machine=where.machine,
            date=where.date,
            quick='; a quick run, whose figures mean nothing' if '--quick' in where.command else '',
            seeds=seeds,
            sets=_sets(found),
            leak=LEAK if any(one.name == DEMO.name for one in found) else '',
        ),
        METHODS.format(table=_methods(found)),
        PREPROCESSING.format(table=_preprocessing(found)),
        SHOTS.format(draws=where.effort.draws, table=_shots(found)),
        STOPPING.format(seeds=seeds, many=MANY, table=stopping),
    ]
    return '\n'.join(parts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [f'| {" | ".join(head)} |', f'|{" --- |" * len(head)}']
    return '\n'.join([*lines, *(f'| {" | ".join(row)} |' for row in rows)])


def accuracy(values: Sequence[float]) -> str:
    """Shows the mean of accuracies and its interval, which ends at 0 and 100."""
    mean, low, high = interval(values)
    if math.isnan(low):
        return f'{mean:.1f}'
    return f'{mean:.1f} ({max(low, 0):.1f} to {min(high, 100):.1f})'


def _sets(found: Sequence[Figures]) -> str:
    rows = [
        [
            f'{one.name} ({CREDITS[one.name]})' if one.name in CREDITS else one.name,
            *(f'{number:,}' for number in (one.classes, one.train, one.val, one.side)),
            f'{100 * 1.96 * math.sqrt(0.09 / one.val):.1f}',
        ]
        for one in found
    ]
    return table(['set', 'classes', 'training', 'validation', 'side', '±'], rows)


def _methods(found: Sequence[Figures]) -> str:
    head = ['method', *(part for one in found for part in (one.name, 'seconds'))]
    rows = []
    for method, words in WORDS.items():
        own = [one.methods[RIGHT].get(method) for one in found]
        if any(own):
            cells = [
                text
                for m in own
                for text in ((accuracy(m.accuracies), _seconds(m.seconds)) if m else ('', ''))
            ]
            rows.append([words, *cells])
    return table(head, rows)


def _seconds(values: Sequence[float]) -> str:
    return f'{sum(values) / len(values):.3g}'


def _preprocessing(found: Sequence[Figures]) -> str:
    columns = [(one, kind) for one in found for kind in _kinds(one)]
    head = ['method', *(one.name + NAMES[kind] for one, kind in columns)]
    rows = [
        [
            WORDS[method],
            *(accuracy(one.methods[kind][method].accuracies) for one, kind in columns),
        ]
        for method in (AUTO, PROBE, RECIPE)
    ]
    return table(head, rows)


def _shots(found: Sequence[Figures]) -> str:
    counts = [str(row['shots']) for row in found[0].shots[RIGHT]]
    rows = []
    for one in found:
        for preprocess in _kinds(one):
            cells = [_drawn(row) for row in one.shots[preprocess]]
            full = accuracy(one.methods[preprocess][PROBE].accuracies)
            rows.append([one.name + NAMES[preprocess], *cells, full])
    return table(['images of each class', *counts, 'all'], rows)


def _kinds(one: Figures) -> list[str]:
    return [kind for kind in NAMES if kind in one.methods]


def _drawn(row: JsonObject) -> str:
    mean, low, high = (100 * row[key] for key in ('mean_accuracy', 'low', 'high'))
    return f'{mean:.1f} ({low:.1f} to {high:.1f})'

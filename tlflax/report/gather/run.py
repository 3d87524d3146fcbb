"""What the page of one run shows, from its workdir, its images and their cached features."""

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from tlflax.data.audit import run as auditing
from tlflax.data.inputs.listing import Announced
from tlflax.data.table import ImageTable
from tlflax.inference import embeddings
from tlflax.inference.restore import load
from tlflax.inference.splits import is_changed, load_split
from tlflax.inference.trained import Trained
from tlflax.report.gather import audit, cards, files, samples
from tlflax.report.gather.choice import Choice, choose, confusion, places
from tlflax.report.gather.feature_map import Images, feature_map
from tlflax.report.gather.reliability import reliability
from tlflax.report.page.contents import Audit, Augmented, Neighbor, RunPage
from tlflax.report.page.pictures import Thumbnails
from tlflax.utils.errors import UserError, printable

_AUDIT_BYTES = 2_000_000  # of the pictures of the audit
_MOST_COMPUTED = 2000  # training images whose features are computed for the page
_MOST_BYTES = 1 << 30  # of features of training images

T = TypeVar('T')


def gather(workdir: str | Path, announced: Announced | None = None) -> RunPage:
    """Gathers the page of a finished run.

    Args:
        workdir: Its folder.
        announced: Of which images the log need not tell again.

    Raises:
        UserError: The run is not finished, or it cannot be restored, or its validation images have
            changed. What else cannot be shown is left out and said in the page's notes.
    """
    announced = announced or Announced()
    found = files.read(workdir)
    trained = load(workdir)
    table, probabilities = trained.predict_val(announced)
    labels, predicted = np.asarray(table.labels), probabilities.argmax(1)
    page = RunPage(
        name=printable(str(workdir)),
        **found._asdict(),
        class_names=[printable(name) for name in table.class_names],
        confusion=confusion(labels, predicted, len(table.class_names)),
        reliability=reliability(labels, probabilities),
        examples={},
        cells={},
        mistakes=(),
        uncertain=(),
    )
    chosen = choose(labels, probabilities)
    return _with_images(page, trained, table, probabilities, chosen, announced)


def _with_images(
    page: RunPage,
    trained: Trained,
    table: ImageTable,
    probabilities: Float[np.ndarray, 'n classes'],
    chosen: Choice,
    announced: Announced,
) -> RunPage:
    """Returns a page with everything that shows images."""
    notes = list(page.notes)
    data = trained.config.data
    thumbnails = Thumbnails.as_read(data)
    train = _unless_failing(lambda: load_split(trained, 'train', announced), notes)
    if train is not None and is_changed(trained, 'train', train):
        notes.append('The training images are not those of the run any more.')
    near: dict[int, list[Neighbor]] = {}
    with ThreadPoolExecutor(1) as pool:  # the map takes as long as all that follows
        if train is not None:
            part = _comparable(trained, train, notes)
            vectors, others = (embeddings.of_table(trained, one) for one in (table, part))
            wrong = probabilities.argmax(1) != table.labels
            splits = [Images('train', part, others), Images('validation', table, vectors, wrong)]
            mapped = pool.submit(feature_map, splits)
            of_cards = vectors[np.array(chosen.cards, np.int64)]
            near = cards.neighbors(of_cards, chosen.cards, part, others, thumbnails)
            augmented = _unless_failing(lambda: _samples(trained, train), notes) or ()
            page = dataclasses.replace(page, augmented=augmented)
        heats, heat_note = cards.heat_pictures(trained, table, chosen.cards)
        page = dataclasses.replace(
            page,
            examples=cards.examples(
                table, probabilities, chosen, thumbnails, heats=heats, near=near
            ),
            cells=chosen.cells,
            mistakes=chosen.mistakes,
            uncertain=chosen.uncertain,
            heat_note=heat_note,
            audit=_unless_failing(lambda: _audit(trained, announced), notes),
            notes=list(dict.fromkeys(notes)),
        )
        if train is not None:
            points, map_note = mapped.result()
            page = dataclasses.replace(page, points=points, map_note=map_note)
    return page


def _comparable(trained: Trained, train: ImageTable, notes: list[str]) -> ImageTable:
    """Returns the training images that others are compared with.

    All of them, unless their features have to be computed or would fill the memory.
    """
    most = _MOST_BYTES // (4 * embeddings.dimension(trained))
    ready = trained.classifier.cut == trained.classifier.layer
    if not (ready and trained.sources.kept(train).all()):
        most = min(most, _MOST_COMPUTED)
    if len(train) <= most:
        return train
    notes.append(
        f'The map and the nearest images are of {most:,} of the {len(train):,} training images.'
    )
    order = np.argsort(places(train.labels, train.digests), kind='stable')
    return train.select(np.sort(order[:most]))


def _samples(trained: Trained, train: ImageTable) -> list[Augmented]:
    config, image_format = trained.config, trained.sources.image_format
    return samples.samples(train, image_format, config.augment, config.train.seed)


def _audit(trained: Trained, announced: Announced) -> Audit:
    """Returns the audit of the run's images."""
    data = trained.config.data
    found = auditing.run(data, announced)
    thumbnails = Thumbnails.as_read(data, budget=_AUDIT_BYTES)
    return audit.gather(found.problems, found.summary, thumbnails)


def _unless_failing(part: Callable[[], T], notes: list[str]) -> T | None:
    """Returns a part of the page; None, and a note, where images cannot be read any more."""
    try:
        return part()
    except UserError as error:
        notes.append(printable(str(error)))
        return None

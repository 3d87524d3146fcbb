"""Accuracy of `model.head='auto'` on folders of images, beside scikit-learn and the recipe.

    python scripts/bench_accuracy.py FOLDER[@SIDE]... [--resplits=10] [--group=PATTERN] [--quick]

A FOLDER holds `train/` and `val/` of class folders; SIDE is the image size, 224 by default. All its
images are divided several times, stratified and in the given proportion; images that look alike or
that PATTERN says belong together stay on one side. For each division, on the same frozen VGG16:

- auto: the settings of `configs/images.py`;
- recipe: the head of `configs/traffic.py`, stopped by the loss on the test side, which flatters it;
- best_linear: scikit-learn's logistic regression on the last pool, pooled, standardized, flattened
  or with rows of unit norm, with its C, whichever is best by 5-fold cross-validation on the
  training side; hindsight: whichever of the four is best on the test side.

Wide features are first rotated into the space that the training rows span, which changes nothing
but the time. Prints each division and the paired differences with their 95 % interval (Student's t
over the divisions, which overlap, so it is too narrow); the last line is JSON. Takes about 2
minutes for a division of 500 images.
"""

import argparse
import csv
import math
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from ml_collections import ConfigDict
from scipy import stats
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from tlflax.config import default_config
from tlflax.data.audit import near_duplicates
from tlflax.data.splits.load import load_table
from tlflax.data.table import ImageTable
from tlflax.features import on_host
from tlflax.sweep import auto
from tlflax.train import setup, train_and_evaluate
from tlflax.utils.files import dump_json

Figures = dict[str, Any]  # a JSON object
Rows = np.ndarray

STRENGTHS = np.logspace(-4, 4, 9)  # C of rows with a mean square norm of one
LAYER = 'block5_pool'


class Image(NamedTuple):
    """An image of a set; images of one group stay on one side of a division."""

    path: str
    label: str
    group: str


def read_set(folder: Path, pattern: str) -> tuple[list[Image], float]:
    """Returns every image, one for each content, and train's share of them.

    Images that look alike, and those in whose paths the pattern finds the same text, are a group.
    """
    tables: list[ImageTable] = []
    config = default_config()
    config.data.group = pattern
    for split in ('train', 'val'):
        names = tables[0].class_names if tables else None
        data = setup.configure(config).data
        tables.append(load_table(str(folder / split), data=data, class_names=names))
    found: dict[str, tuple[str, str, str, np.ndarray]] = {}
    for table in tables:
        assert table.perceptual_hashes is not None, 'files have been scanned'
        for row, digest in enumerate(table.digests):
            group = '' if table.groups is None else table.groups[row]
            label = table.class_names[table.labels[row]]
            image = (str(table.paths[row]), label, group, table.perceptual_hashes[row])
            found.setdefault(digest, image)
    paths, labels, groups, looks = zip(*(found[digest] for digest in sorted(found)), strict=True)
    named: dict[str, int] = {}
    for number, group in enumerate(groups):
        named.setdefault(group, number)
    same = [(named[group], number) for number, group in enumerate(groups) if group]
    same += near_duplicates.find(np.stack(looks)).pairs.tolist()
    one, other = np.array(same, np.int64).reshape(-1, 2).T
    graph = csr_array((np.ones(len(one)), (one, other)), shape=(len(paths), len(paths)))
    group_of = [str(number) for number in connected_components(graph, directed=False)[1]]
    return list(map(Image, paths, labels, group_of)), len(tables[0]) / sum(map(len, tables))


def divide(images: Sequence[Image], share: float, number: int, path: Path) -> None:
    """Writes a manifest that divides the images into train and val.

    Groups go to train in a random order while the classes of their images need more.
    """
    members: dict[str, list[Image]] = {}
    for image in images:
        members.setdefault(image.group, []).append(image)
    wanted = Counter(image.label for image in images)
    room = {label: round(share * count) for label, count in wanted.items()}
    inside = set()
    names = sorted(members)
    for name in np.random.default_rng(number).permutation(names).tolist():
        needed = Counter(image.label for image in members[name])
        if all(room[label] >= count for label, count in needed.items()):
            inside.add(name)
            room = {label: left - needed[label] for label, left in room.items()}
    with path.open('w', newline='') as file:
        lines = csv.writer(file)
        lines.writerow(['path', 'label', 'group', 'split'])
        for image in images:
            split = 'train' if image.group in inside else 'val'
            lines.writerow([image.path, image.label, image.group, split])


def configured(manifest: Path, side: int, **changes: str) -> ConfigDict:
    """Returns the configuration of one division."""
    config = default_config()
    config.data.train, config.data.val = f'{manifest}#train', f'{manifest}#val'
    config.data.image_size = (side, side)
    for key, value in changes.items():
        section, name = key.split('__')
        config[section][name] = value
    return config


def linear(
    train: Rows, label: np.ndarray, group: np.ndarray, test: Rows
) -> tuple[float, np.ndarray]:
    """Fits logistic regression, C by cross-validation; returns its score and its predictions."""
    scale = math.sqrt(float((train.astype(np.float64) ** 2).sum(1).mean())) or 1.0
    train, test = train / scale, test / scale
    if train.shape[1] > len(train):
        _, _, axes = np.linalg.svd(train, full_matrices=False)
        train, test = train @ axes.T, test @ axes.T
    splitter = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    folds = list(splitter.split(train, label, group))
    scores = []
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength * len(train) / 100, max_iter=300)
        right = 0
        for inside, outside in folds:
            model.fit(train[inside], label[inside])
            right += int((model.predict(train[outside]) == label[outside]).sum())
        scores.append(right / len(label))
    best = STRENGTHS[int(np.argmax(scores))]
    final = LogisticRegression(C=best * len(train) / 100, max_iter=3000).fit(train, label)
    return max(scores), final.predict(test)


def linear_models(
    features: dict[str, Rows], labels: dict[str, np.ndarray], group: np.ndarray
) -> tuple[float, float]:
    """Returns the accuracy of the best by cross-validation, and of the best in hindsight."""
    found = []
    for kind in ('pooled', 'standardized', 'flattened', 'unit rows'):
        rows = {split: represented(kind, features, split) for split in ('train', 'val')}
        score, predicted = linear(rows['train'], labels['train'], group, rows['val'])
        found.append((score, float((predicted == labels['val']).mean())))
    return max(found, key=lambda one: one[0])[1], max(accuracy for _, accuracy in found)


def represented(kind: str, features: dict[str, Rows], split: str) -> Rows:
    """Returns the rows of a split in one representation of feature maps [n, h, w, c]."""
    maps = features[split]
    flat = maps.reshape(len(maps), -1)
    if kind == 'pooled':
        return maps.mean((1, 2))
    if kind == 'unit rows':
        return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    if kind == 'standardized':
        train = features['train'].reshape(len(features['train']), -1)
        deviation = train.std(0)
        return (flat - train.mean(0)) / np.where(deviation > 0, deviation, 1)
    return flat


def measure(manifest: Path, side: int, work: Path, *, recipe: bool) -> Figures:
    """Returns the accuracies on one division, in %."""
    began = time.perf_counter()
    config = configured(manifest, side, model__head='auto', data__resize='auto')
    result, _ = auto.choose_and_evaluate(config, work / 'auto')
    seconds = time.perf_counter() - began
    flat = configured(manifest, side, model__head='flatten_linear')
    flat.augment.horizontal_flip = False
    resolved = setup.configure(flat)
    run = setup.build(resolved, setup.load(resolved))
    features, labels = {}, {}
    for split, table in run.splits.by_name.items():
        features[split], labels[split] = on_host.read(run.sources.eval(table, split))
    group = run.splits.train.groups
    assert group is not None, 'the manifest names groups'
    best, hindsight = linear_models(features, labels, group)
    found = {'auto': result['val']['accuracy'], 'best_linear': best, 'hindsight': hindsight}
    if recipe:
        trained = train_and_evaluate(configured(manifest, side), work / 'recipe')
        found['recipe'] = trained['val']['accuracy']
    images = sum(map(len, labels.values()))
    return {**{name: 100 * value for name, value in found.items()},
            'seconds': seconds, 'images': images}  # fmt: skip


def interval(values: Sequence[float]) -> list[float]:
    """Returns the mean and the 95 % interval of Student's t."""
    array = np.array(values)
    if len(array) < 2:
        return [float(array.mean()), math.nan, math.nan]
    half = stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array))
    return [float(array.mean()), float(array.mean() - half), float(array.mean() + half)]


def summarize(found: dict[str, list[Figures]]) -> Figures:
    """Returns the last line: means by set, and paired differences between auto and best_linear."""
    sets: dict[str, Figures] = {}
    for name, rows in found.items():
        keys = [key for key in rows[0] if key != 'images']
        sets[name] = {key: float(np.mean([row[key] for row in rows])) for key in keys}
        gains = [row['auto'] - row['best_linear'] for row in rows]
        sets[name]['gain'] = interval(gains)
        sets[name]['seconds_per_1000'] = float(
            np.mean([1000 * row['seconds'] / row['images'] for row in rows])
        )
    every = [row['auto'] - row['best_linear'] for rows in found.values() for row in rows]
    return {'sets': sets, 'gain': interval(every)}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folders', nargs='+', metavar='FOLDER[@SIDE]')
    parser.add_argument('--resplits', type=int, default=10)
    parser.add_argument('--group', default='', help='pattern of paths whose images are related')
    parser.add_argument('--no-recipe', action='store_true', help='leave the recipe out')
    parser.add_argument('--quick', action='store_true', help='one division')
    options = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    found: dict[str, list[Figures]] = {}
    for text in options.folders:
        folder, _, size = text.partition('@')
        name, side = Path(folder).name, int(size or 224)
        images, share = read_set(Path(folder), options.group)
        for number in range(1 if options.quick else options.resplits):
            with tempfile.TemporaryDirectory(prefix='bench_accuracy-') as scratch:
                manifest = Path(scratch) / 'images.csv'
                divide(images, share, number, manifest)
                row = measure(manifest, side, Path(scratch), recipe=not options.no_recipe)
            found.setdefault(name, []).append(row)
            shown = '  '.join(f'{key} {value:6.2f}' for key, value in row.items())
            print(f'{name} {number}:  {shown}', flush=True)
    print(dump_json(summarize(found)))


if __name__ == '__main__':
    main()

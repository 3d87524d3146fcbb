"""Pages of made-up values: small, huge, hostile, and with nothing that may be left out."""

import math

import numpy as np

from tlflax.report.page.contents import (
    Audit,
    Augmented,
    Bin,
    ComparisonPage,
    Differing,
    Example,
    Finding,
    Neighbor,
    Point,
    RunPage,
    ShownItem,
)  # fmt: skip
from tlflax.report.page.pictures import picture
from tlflax.train.metrics.proportions import wilson_interval
from tlflax.train.metrics.summary import summary

HOSTILE = (
    '<script>alert(1)</script>', '"quoted" \'name\' & co', '</style></template>--><!--',
    '\u202eright to left \u05d0\u05d1', 'bytes \udcff\udcfe and \x00', 'red', 'a' * 200,
)  # fmt: skip


def image(seed, size=(72, 96), noise=14):
    """A picture of smooth color, 96 pixels wide, different for each seed."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(30, 230, (2, 2, 3)).astype(float)
    down, across = (np.linspace(0, 1, n) for n in size)
    rows = corners[0][None] * (1 - down)[:, None, None] + corners[1][None] * down[:, None, None]
    mixed = rows[:, :1] * (1 - across)[None, :, None] + rows[:, 1:] * across[None, :, None]
    noisy = mixed + rng.normal(0, noise, (*size, 3))
    return picture(np.clip(noisy, 0, 255).astype(np.uint8), 96)


def predictions(names, count, seed=0):
    """Labels and probabilities of a classifier that is right most of the time."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(names), count)
    logits = rng.normal(0, 1, (count, len(names)))
    logits[np.arange(count), labels] += rng.choice([1.0, 4.0], count, p=[0.25, 0.75])
    shares = np.exp(2 * logits)
    return labels, shares / shares.sum(1, keepdims=True)


def bins_of(labels, probabilities, number=10):
    """The bins of a reliability diagram."""
    top, right = probabilities.max(1), probabilities.argmax(1) == labels
    found = []
    for k in range(number):
        inside = (np.minimum((top * number).astype(int), number - 1)) == k
        count, good = int(inside.sum()), int(right[inside].sum())
        found.append(
            Bin(
                low=k / number,
                high=(k + 1) / number,
                count=count,
                confidence=float(top[inside].mean()) if count else math.nan,
                accuracy=good / count if count else math.nan,
                interval=tuple(wilson_interval(good, count)) if count else None,
            )
        )
    return found


def records(epochs, seed=0, gap=3):
    """Lines of `metrics.jsonl`; the validation loss of one epoch is not known."""
    rng = np.random.default_rng(seed)
    return [
        {
            'epoch': e,
            'step': 10 * e,
            'train_loss': 2.2 * math.exp(-e / 6) + 0.02,
            'train_accuracy': 1 - 0.9 * math.exp(-e / 5),
            'val_loss': None if e == gap else 2.1 * math.exp(-e / 7) + 0.2 + rng.normal(0, 0.03),
            'val_accuracy': min(1.0, 0.93 - 0.8 * math.exp(-e / 5) + rng.normal(0, 0.01)),
            'learning_rate': 1e-3,
            'epoch_seconds': 0.6,
            'images_per_second': math.nan if e == 1 else 6000.0,
        }
        for e in range(1, epochs + 1)
    ]


def example(number, names, labels, probabilities, shown, pictures):
    """What the page shows of a row of the predictions."""
    true, predicted = int(labels[number]), int(probabilities[number].argmax())
    near = ()
    if shown:
        near = tuple(
            Neighbor(
                path=f'{names[c]}/{i}.jpg',
                label=names[c],
                similarity=0.93 - 0.04 * i,
                picture=pictures[(3 * number + i) % len(pictures)],
            )
            for i, c in enumerate([predicted, predicted, true, predicted, true])
        )
    return Example(
        number=number,
        path=f'{names[true]}/image {number:05}.jpg',
        true=names[true],
        predicted=names[predicted],
        probability=float(probabilities[number, predicted]),
        true_probability=float(probabilities[number, true]),
        picture=pictures[number % len(pictures)] if number % 11 else None,
        heat=pictures[(number + 5) % len(pictures)] if shown else None,
        neighbors=near,
    )


def run_page(
    names, count=200, epochs=26, points=150, own_pictures=24, per_cell=24, seed=0, noise=14
):
    """The page of a run with every section."""
    labels, probabilities = predictions(names, count, seed)
    pictures = [image(k, noise=noise) for k in range(own_pictures)]
    predicted, top = probabilities.argmax(1), probabilities.max(1)
    order = np.argsort(-top, kind='stable')
    cells = {}
    for row in order.tolist():
        cells.setdefault((int(labels[row]), int(predicted[row])), []).append(row)
    cells = {key: tuple(rows[:per_cell]) for key, rows in cells.items()}
    mistakes = [row for row in order.tolist() if predicted[row] != labels[row]][:24]
    uncertain = order[::-1][:24].tolist()
    numbers = {*mistakes, *uncertain, *(row for rows in cells.values() for row in rows)}
    val = summary(labels, probabilities, names)
    own = probabilities[np.arange(count), labels]
    val |= {'accuracy': float((predicted == labels).mean()), 'num_examples': count}
    val['loss'] = float(-np.log(own).mean())
    rng = np.random.default_rng(seed)
    spots = rng.random((len(names), 2)) * 0.8 + 0.1
    test = {**val, 'num_examples': 120}
    return RunPage(
        name='runs/signs',
        result={
            'best_epoch': min(23, epochs), 'epochs_run': epochs, 'wall_seconds': 254.7,
            'peak_memory_bytes': 1_420_000_000, 'val': val, 'test': test,
            'calibration': {
                'temperature': 1.217,
                'expected_calibration_error': {'before': 0.0466, 'after': 0.012},
                'loss': {'before': 0.2326, 'after': None},
            },
        },
        records=records(epochs),
        class_names=names,
        confusion=val['confusion_matrix'],
        examples={
            k: example(
                k, names, labels, probabilities, k in mistakes or k in uncertain, pictures
            )
            for k in numbers
        },
        cells=cells,
        mistakes=mistakes,
        uncertain=uncertain,
        reliability=bins_of(labels, probabilities),
        points=[
            Point(
                x=float(np.clip(spots[c, 0] + rng.normal(0, 0.04), 0, 1)),
                y=float(np.clip(spots[c, 1] + rng.normal(0, 0.04), 0, 1)),
                label=int(c),
                split='train' if k % 2 else 'validation',
                path=f'{names[c]}/{k}.jpg',
                wrong=k % 14 == 0,
            )
            for k, c in enumerate(rng.integers(0, len(names), points))
        ],
        map_note='Two dimensions of the features of the last layer, by t-SNE.',
        heat_note='Heat maps show what spoke for the predicted class, by Grad-CAM.',
        augmented=[
            Augmented(
                label=names[k % len(names)], path=f'{names[k % len(names)]}/{k}.jpg',
                original=pictures[k], epochs=pictures[k + 1 : k + 7],
            )
            for k in range(4)
        ],
        audit=audit(names, pictures),
        tried=[
            {
                'candidate': f'ridge, block{k}_pool', 'weight': 0.25 * (k == 3),
                'cv_accuracy': 0.7 + 0.03 * k, 'cv_loss': None if k == 2 else 0.9 - 0.1 * k,
                'setting': f'strength 1e-{k}', 'seconds': 2.5 * k,
            }
            for k in range(1, 6)
        ],
        tried_note='The mean of 2 of 5 candidates has the lowest cross-validated loss.',
        exports=[
            {
                'format': name, 'precision': 'float32', 'bytes': 59_000_000, 'latency_ms_1': 90.5,
                'accuracy': 0.99,
            }
            for name in ('onnx', 'tflite')
        ],
        config={
            'data': {'train': 'photos/Train', 'image_size': [128, 128], 'group': ''},
            'optim': {'labels': [['backbone/.*', 'frozen']], 'learning_rate': 1e-3},
            'train': {'epochs': 50, 'seed': 0, 'phases': []},
        },
        environment={
            'began': '2026-11-29T21:14:39+00:00', 'command': ['tlflax/train/__main__.py'],
            'git': {'commit': '77f9d3ab', 'changed': []}, 'versions': {'jax': '0.10.2'},
            'devices': ['cpu cpu'], 'environment': {},
        },
        notes=['Heat maps are left out: the backbone has no map of features.'],
    )  # fmt: skip


def audit(names, pictures):
    """An audit with a finding of each level."""
    counts = {'train': {name: 40 + k for k, name in enumerate(names)}, 'val': {names[0]: 20}}
    items = [
        ShownItem(
            text=f'train {names[0]}/{k}.jpg = val {names[-1]}/{k}.jpg', pictures=pictures[k : k + 2]
        )
        for k in range(9)
    ]
    return Audit(
        splits=['train: 420 images in 10 classes, 12.1 MB in photos/Train', '  formats: 420 JPEG'],
        counts=counts,
        findings=[
            Finding(
                level='error',
                what='9 images are in two splits',
                fix='delete one of each',
                count=340,
                items=items,
            ),
            Finding(level='warning', what='3 images look alike', fix='', count=3, items=items[:3]),
            Finding(
                level='note',
                what='1 file is hidden',
                fix='',
                count=1,
                items=[ShownItem(text='train .x', pictures=())],
            ),
        ],
    )


def small():
    return run_page(('mushroom', 'oak', 'stop sign', 'yield', 'way', 'zebra crossing'))


def hostile():
    return run_page(HOSTILE, count=90, epochs=5)


def huge():
    """100 classes, 10,000 validation images, 2,000 points, and as many pictures as are allowed."""
    names = tuple(f'class {k:03}' for k in range(100))
    return run_page(names, 10_000, 200, points=2000, own_pictures=1450, per_cell=12, noise=60)


def bare():
    """What a page can lack is lacking."""
    val = {
        'accuracy': 0.5, 'loss': math.nan, 'num_examples': 2, 'macro_auroc': None, 'intervals': {},
    }  # fmt: skip
    return RunPage(
        name='bare', result={'val': val, 'best_epoch': None, 'epochs_run': 0}, records=(),
        class_names=('a', 'b'), confusion=(), examples={}, cells={}, mistakes=(), uncertain=(),
        reliability=(), config={}, environment={},
    )  # fmt: skip


def comparison(names=('runs/a', 'runs/b', 'runs/a much longer name of a run'), known=True):
    """Three runs; the epochs of the last are not known."""
    runs = [
        {
            'run': name, 'accuracy': 0.88 + 0.02 * k, 'loss': 0.4 - 0.05 * k,
            'macro_f1': 0.87 + 0.02 * k, 'expected_calibration_error': 0.04,
            'intervals': {
                'accuracy': [0.84 + 0.02 * k, 0.92 + 0.02 * k],
                'loss': [0.3 - 0.05 * k, 0.5 - 0.05 * k],
                'macro_f1': [0.83, 0.93], 'expected_calibration_error': None,
            },
            'own_images': 200, 'wall_seconds': 27.0 * 10**k if known else None,
            'parameters': 5130 if known else None, 'epochs': 26 if k < 2 and known else None,
        }
        for k, name in enumerate(names)
    ]  # fmt: skip
    pairs = [
        {
            'first': names[0], 'second': other, 'accuracy_difference': 0.02,
            'accuracy_interval': [-0.01, 0.05], 'loss_difference': -0.05,
            'loss_interval': [-0.08, -0.02], 'only_first_right': 4, 'only_second_right': 8,
            'p_value': 0.3,
            'verdict': f'no difference in accuracy can be shown between {names[0]} and {other}: '
            '+2.0 points (-1.0 to 5.0), p = 0.3 (Holm, 3 pairs)',
        }
        for other in names[1:]
    ]  # fmt: skip
    lines = [records(26, seed=k) for k in range(2)] if known else [(), ()]
    return ComparisonPage(
        names=names,
        comparison={'num_images': 200, 'runs': runs, 'best': names[-1], 'pairs': pairs},
        records=[*lines, *[() for _ in names[2:]]],
        best_epochs=[23, 26, *[None for _ in names[2:]]] if known else [None for _ in names],
        differing=[
            Differing(
                path=f'oak/{k}.jpg', true='oak', picture=image(k) if k % 3 else None,
                predicted=['oak' if (k + j) % 2 else 'mushroom' for j in range(len(names))],
                true_probabilities=[0.1 + 0.2 * j for j in range(len(names))],
            )
            for k in range(9)
        ],
        num_differing=31,
    )  # fmt: skip

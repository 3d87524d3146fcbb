"""One side of scripts/bench_input.py, in a process of its own.

    python scripts/bench_input_worker.py {tlflax,stages,cores,keras,torch,augmentations} [CORES]

For each line on stdin, a folder of class folders of JPEGs, it goes through the images once and
answers with a line of JSON: images a second by name. A folder's first epoch does not count. CORES
says how many cores the process may use. `cores` also answers with CPU milliseconds an image.
`augmentations` is for use by hand: tlflax's whole pipeline with each augmentation by itself, and
each as a stage fed from memory.
"""

import functools
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE, BATCH = (224, 224), 32
STAGE_IMAGES = 256  # kept in memory, decoded and resized, to time a stage alone
CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
Settings = dict[str, Any]  # the fields of an `AugmentConfig` that differ from its defaults
FULL: Settings = {  # every geometric and color augmentation
    'rotation_range': 15.0,
    'width_shift_range': 0.1,
    'height_shift_range': 0.1,
    'shear_range': 5.0,
    'zoom_range': 0.1,
    'brightness_range': (0.8, 1.2),
    'channel_shift_range': 10.0,
}
AUGMENTATIONS: dict[str, Settings] = {
    'none': {'horizontal_flip': False},
    'flips': {'vertical_flip': True},
    'right angles': {'right_angles': True},
    'ten crops': {'crops': 'ten'},
    'random resized crop': {'random_resized_crop': True},
    'geometry, brightness': FULL,
    'color jitter': {
        'jitter_brightness': 0.4,
        'jitter_contrast': 0.4,
        'jitter_saturation': 0.4,
        'jitter_hue': 0.1,
    },
    'randaugment': {'policy': 'randaugment'},
    'trivialaugment': {'policy': 'trivialaugment'},
    'erasing': {'erasing': 1.0},
    'mixup': {'mixup': 1.0},
    'cutmix': {'cutmix': 1.0},
}

Epoch = Callable[[], int]  # goes through the images once and returns their number


def tlflax_epochs(folder: Path) -> dict[str, Epoch]:
    """Returns tlflax's pipelines."""
    return {
        'tlflax': tlflax_epoch(folder),
        'tlflax_no_antialias': tlflax_epoch(folder, antialias=False),
        'tlflax_no_augmentation': tlflax_epoch(folder, horizontal_flip=False),
        'tlflax_full_augmentation': tlflax_epoch(folder, **FULL),
    }


def core_epochs(folder: Path) -> dict[str, Epoch]:
    """Returns the pipelines whose need of cores is asked for."""
    return {'flips': tlflax_epoch(folder), 'full augmentation': tlflax_epoch(folder, **FULL)}


def tlflax_epoch(folder: Path, *, antialias: bool = True, **augment: Any) -> Epoch:
    """Returns tlflax's training epoch; `augment` is added to the default flips."""
    from tlflax.config.schema import AugmentConfig, DataConfig
    from tlflax.data.images.format import ImageFormat
    from tlflax.data.pipeline import tf_data
    from tlflax.data.splits.load import load_table

    table, numbers = load_table(str(folder), data=DataConfig()), iter(range(10**9))

    def epoch() -> int:
        batches = tf_data.train_epoch(
            table,
            augment=AugmentConfig(**augment),
            seed=0,
            epoch=next(numbers),
            image_format=ImageFormat(SIZE, antialias=antialias),
            batch_size=BATCH,
        )
        return sum(int(batch['mask'].sum()) for batch in batches)

    return epoch


def augmentation_epochs(folder: Path) -> dict[str, Epoch]:
    """Returns tlflax's pipeline with each augmentation, and each as a stage of its own."""
    # What changes how a file is read, and mixing, are no stages by themselves.
    alone = {'right angles', 'color jitter', 'randaugment', 'trivialaugment', 'erasing'}
    return {
        **{name: tlflax_epoch(folder, **settings) for name, settings in AUGMENTATIONS.items()},
        **stage_epochs(folder, {name: AUGMENTATIONS[name] for name in sorted(alone)}),
    }


def keras_epochs(folder: Path) -> dict[str, Epoch]:
    """Returns an epoch of Keras's own pipeline."""
    import keras
    import tensorflow as tf

    flip = keras.layers.RandomFlip('horizontal')
    images = keras.utils.image_dataset_from_directory(
        folder, image_size=SIZE, batch_size=BATCH, verbose=False
    )
    images = images.map(
        lambda image, label: (flip(image, training=True), label),
        num_parallel_calls=tf.data.AUTOTUNE,
    ).prefetch(tf.data.AUTOTUNE)
    return {'keras': lambda: sum(len(label) for _, label in images)}


def torch_epochs(folder: Path) -> dict[str, Epoch]:
    """Returns an epoch of a PyTorch DataLoader over Pillow."""
    import torch

    files = [
        (path, label)
        for label, name in enumerate(sorted(folder.iterdir()))
        for path in sorted(name.iterdir())
    ]

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
            path, label = files[row]
            with Image.open(path) as file:
                image = file.convert('RGB').resize(SIZE[::-1], Image.Resampling.BILINEAR)
            if torch.rand(()) < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            return torch.from_numpy(np.array(image)), label

    loader = torch.utils.data.DataLoader(
        Images(), BATCH, shuffle=True, num_workers=CORES, persistent_workers=True
    )
    return {'torch': lambda: sum(len(label) for _, label in loader)}


def stage_epochs(
    folder: Path, augmentations: Mapping[str, Settings] | None = None
) -> dict[str, Epoch]:
    """Returns each stage of tlflax's pipeline alone, fed from memory."""
    augmentations = augmentations or {'full augmentation': FULL}
    import tensorflow as tf

    from tlflax.config.schema import AugmentConfig, DataConfig
    from tlflax.data.augment import apply as augmentation
    from tlflax.data.augment import sampling
    from tlflax.data.images.decode import read_image
    from tlflax.data.pipeline import tf_data, tf_decode
    from tlflax.data.pipeline.resize import resize_image
    from tlflax.data.splits.load import load_table

    table = load_table(str(folder), data=DataConfig())
    table = table.select(np.random.default_rng(0).permutation(len(table))[:STAGE_IMAGES])

    def each(dataset: Any, function: Any) -> Any:
        function = tf.autograph.experimental.do_not_convert(function)
        return dataset.map(function, tf_data.in_flight())

    def augmented(images: Any, config: AugmentConfig) -> Any:
        drawn = sampling.draw(config, 0, 0, len(table))
        parameters = augmentation.parameters(drawn, SIZE, config)
        pairs = tf.data.Dataset.zip(images, tf.data.Dataset.from_tensor_slices(parameters))
        return each(pairs, functools.partial(augmentation.apply, augment=config))

    def count(dataset: Any) -> int:
        return int(dataset.with_options(tf_data.options()).reduce(0, lambda number, _: number + 1))

    resize = functools.partial(resize_image, size=SIZE, mode='stretch', antialias=True)
    files = tf.data.Dataset.from_tensor_slices((table.paths.astype(str), table.plain_jpeg))
    # The function that the pipeline itself uses.
    decode = each(files, functools.partial(tf_decode.decode_file, by_pillow=read_image))
    decoded = decode.cache()
    resized = each(decoded, resize).cache()
    stages = {
        'read + decode': decode,
        'resize': each(decoded, resize),
        'flip': augmented(resized, AugmentConfig()),
        **{
            name: augmented(resized, AugmentConfig(**settings))
            for name, settings in augmentations.items()
        },
    }
    return {f'stage: {name}': functools.partial(count, stage) for name, stage in stages.items()}


SIDES: dict[str, Callable[[Path], dict[str, Epoch]]] = {
    'tlflax': tlflax_epochs,
    'stages': stage_epochs,
    'cores': core_epochs,
    'keras': keras_epochs,
    'torch': torch_epochs,
    'augmentations': augmentation_epochs,
}
PEERS = ('keras', 'torch')


def main(side: str, cores: str = '') -> None:
    """Answers until stdin ends."""
    if cores:  # before a library counts them
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(cores)])
    if side not in PEERS:
        from tlflax.config import libraries

        libraries.only_read_images()  # as commands do
    # Libraries print where they like; the answers keep the real standard output.
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    known: dict[str, dict[str, Epoch]] = {}
    for line in sys.stdin:
        folder = line.rstrip('\n')
        if folder not in known:
            known[folder] = SIDES[side](Path(folder))
            for epoch in known[folder].values():
                epoch()
        answer: dict[str, float] = {}
        for name, epoch in known[folder].items():
            answer[name], milliseconds = measure(epoch)
            if side == 'cores':
                answer[f'{name}, CPU ms'] = milliseconds
        print(json.dumps(answer), file=answers, flush=True)


def measure(epoch: Epoch) -> tuple[float, float]:
    """Runs an epoch and returns images a second, and milliseconds of CPU time an image."""
    began, spent = time.perf_counter(), cpu_seconds()
    count = epoch()
    return count / (time.perf_counter() - began), 1000 * (cpu_seconds() - spent) / count


def cpu_seconds() -> float:
    """Returns the CPU time of all threads of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == '__main__':
    main(*sys.argv[1:])

"""Fine-tuning VGG16's last block as Keras or PyTorch do: the peers of scripts/bench_finetune.py.

    python scripts/finetune_peers.py keras|torch IMAGES WEIGHTS.npz [--epochs=4] [--once]

IMAGES holds Train/ and Test/ with class folders, WEIGHTS the arrays `block1_conv1/kernel`, .... The
images are decoded once and stay in memory. Every epoch flips them at random, runs the frozen blocks
1 to 4 without gradients, and trains block 5 and the head of `configs/traffic.py` with Adam. A line
of JSON is printed after each epoch's validation: its number, seconds and accuracy. With `--once`
the outputs of block 4 for each image and its mirror image are computed once and trained from: the
same training in less time, for accuracies only. Nothing of tlflax is imported.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

BATCH = 32
MEAN = (103.939, 116.779, 123.68)  # of blue, green and red
DEPTHS = (2, 2, 3, 3, 3)


def read(folder: Path, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images of class folders, u8[n, size, size, 3], and their labels, i64[n]."""
    images, labels = [], []
    for label, name in enumerate(sorted(path.name for path in folder.iterdir() if path.is_dir())):
        for file in sorted((folder / name).iterdir()):
            with Image.open(file) as image:
                images.append(image.convert('RGB').resize((size, size), Image.Resampling.BILINEAR))
            labels.append(label)
    return np.stack([np.asarray(image) for image in images]), np.array(labels, np.int64)


def train_keras(options: argparse.Namespace, arrays: dict[str, np.ndarray]) -> None:
    """Trains with `fit`; batches come from tf.data."""
    os.environ['KERAS_BACKEND'] = 'tensorflow'
    import keras
    import tensorflow as tf
    from keras import layers
    from keras.applications import vgg16
    from keras_recipe import Stamps

    keras.utils.set_random_seed(options.seed)
    size = options.image_size
    (x, y), (val, val_y) = (read(options.images / split, size) for split in ('Train', 'Test'))
    base = vgg16.VGG16(weights=None, include_top=False, input_shape=(size, size, 3))
    for part in base.layers:
        part.trainable = part.name.startswith('block5')
        if part.weights:
            part.set_weights([arrays[f'{part.name}/kernel'], arrays[f'{part.name}/bias']])
    cut = base.get_layer('block4_pool').output

    def prepared(images: Any) -> Any:
        return vgg16.preprocess_input(tf.cast(images, tf.float32))

    def batches(*sides: np.ndarray) -> Any:
        with tf.device('CPU'):
            return tf.data.Dataset.from_tensor_slices(sides)

    if options.once:
        frozen = keras.Model(base.input, cut)

        def features(images: np.ndarray) -> np.ndarray:
            data = batches(images).batch(BATCH).map(prepared)
            return frozen.predict(data, verbose=0)

        def one_view(one: Any, other: Any, label: Any) -> Any:
            return tf.where(tf.random.uniform(()) < 0.5, one, other), label

        train = batches(features(x), features(x[:, :, ::-1]), y).shuffle(len(y)).map(one_view)
        val = features(val)
        inputs = z = keras.Input(cut.shape[1:])
    else:
        train = batches(x, y).shuffle(len(y))
        inputs = keras.Input((size, size, 3))
        z = layers.RandomFlip('horizontal')(inputs)  # in training only
        z = keras.Model(base.input, cut)(vgg16.preprocess_input(z), training=False)
    for part in base.layers[base.layers.index(base.get_layer('block4_pool')) + 1 :]:
        z = part(z)
    for width in (32, 64):
        z = layers.Conv2D(width, 3, padding='same', activation='relu')(z)
        z = layers.MaxPooling2D()(z)
    z = layers.Dense(64, activation='relu')(layers.Flatten()(z))
    z = layers.Dense(int(y.max()) + 1, activation='softmax')(layers.Dropout(0.5)(z))
    model = keras.Model(inputs, z)
    loss = 'sparse_categorical_crossentropy'
    model.compile(keras.optimizers.Adam(options.rate), loss=loss, metrics=['accuracy'])
    model.fit(
        train.batch(BATCH).prefetch(tf.data.AUTOTUNE),
        validation_data=batches(val, val_y).batch(BATCH).prefetch(tf.data.AUTOTUNE),
        epochs=options.epochs,
        callbacks=[Stamps()],
        verbose=0,
    )


def train_torch(options: argparse.Namespace, arrays: dict[str, np.ndarray]) -> None:
    """Trains with a loop as in PyTorch's tutorials, in the memory format channels_last."""
    import torch

    torch.manual_seed(options.seed)
    size = options.image_size
    (x, y), (val, val_y) = (read(options.images / split, size) for split in ('Train', 'Test'))
    frozen, tail = torch_network(arrays, classes=int(y.max()) + 1, grid=size // 32)
    optimizer = torch.optim.Adam(tail.parameters(), options.rate)
    loss_of = torch.nn.CrossEntropyLoss()
    mean = torch.tensor(MEAN).reshape(3, 1, 1)
    label, val_label = torch.from_numpy(y), torch.from_numpy(val_y)

    @torch.no_grad()
    def below(images: Any, flipped: Any = None) -> Any:
        z = torch.from_numpy(images).permute(0, 3, 1, 2).flip(1).float() - mean
        if flipped is not None:
            z = torch.where(flipped[:, None, None, None], z.flip(3), z)
        return frozen(z.contiguous(memory_format=torch.channels_last))

    def once(images: np.ndarray, mirrored: bool) -> Any:
        parts = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
        return torch.cat([below(part, torch.full((len(part),), mirrored)) for part in parts])

    views = [once(x, mirrored) for mirrored in (False, True)] if options.once else []
    kept = once(val, False) if options.once else None

    def train_input(rows: Any) -> Any:
        flipped = torch.rand(len(rows)) < 0.5
        if views:
            return torch.where(flipped[:, None, None, None], views[1][rows], views[0][rows])
        return below(x[rows.numpy()], flipped)

    for epoch in range(options.epochs):
        began, right = time.perf_counter(), 0
        tail.train()
        for rows in torch.randperm(len(y)).split(BATCH):
            optimizer.zero_grad()
            loss_of(tail(train_input(rows)), label[rows]).backward()
            optimizer.step()
        tail.eval()
        with torch.no_grad():
            for rows in torch.arange(len(val_y)).split(BATCH):
                z = below(val[rows.numpy()]) if kept is None else kept[rows]
                right += int((tail(z).argmax(1) == val_label[rows]).sum())
        stamp = {'epoch': epoch + 1, 'seconds': time.perf_counter() - began}
        print(json.dumps(stamp | {'val_accuracy': right / len(val_y)}), flush=True)


def torch_network(arrays: dict[str, np.ndarray], *, classes: int, grid: int) -> tuple[Any, Any]:
    """Returns blocks 1 to 4 and the rest; `grid` is the height and width of block5_pool."""
    import torch

    nn = torch.nn
    blocks = []
    for block, depth in enumerate(DEPTHS, start=1):
        layers: list[Any] = []
        for name in (f'block{block}_conv{i}' for i in range(1, depth + 1)):
            kernel = torch.tensor(arrays[f'{name}/kernel']).permute(3, 2, 0, 1)
            conv = nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, padding=1)
            conv.weight = nn.Parameter(kernel.contiguous())
            conv.bias = nn.Parameter(torch.tensor(arrays[f'{name}/bias']))
            layers += [conv, nn.ReLU()]
        blocks.append(nn.Sequential(*layers, nn.MaxPool2d(2)))
    head = nn.Sequential(
        *(nn.Conv2d(512, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(64 * (grid // 4) ** 2, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, classes)),
    )
    parts = nn.Sequential(*blocks[:4]).requires_grad_(False).eval(), nn.Sequential(blocks[4], head)
    return tuple(part.to(memory_format=torch.channels_last) for part in parts)  # type: ignore


PEERS: dict[str, Callable[[argparse.Namespace, dict[str, np.ndarray]], None]] = {
    'keras': train_keras,
    'torch': train_torch,
}


def main() -> None:
    """Trains."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('peer', choices=PEERS)
    parser.add_argument('images', type=Path)
    parser.add_argument('weights', type=Path)
    parser.add_argument('--epochs', type=int, default=4)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--rate', type=float, default=1e-4)
    parser.add_argument('--image-size', type=int, default=224)
    parser.add_argument('--once', action='store_true', help='run the frozen blocks once')
    options = parser.parse_args()
    with np.load(options.weights) as arrays:
        PEERS[options.peer](options, dict(arrays))


if __name__ == '__main__':
    main()

"""The recipe's head as Keras or PyTorch train it, on features that tlflax has computed.

    python scripts/head_peers.py keras|torch FEATURES.npz [--seed=0] [--epochs=50]

FEATURES.npz holds `views` f32[2, n, h, w, c] (each training image and its mirror image), `label`,
`val` and `val_label`. Each epoch takes one of both views of each image at random. Head, optimizer
and early stopping are those of `configs/traffic.py`, all else is each library's own: first
parameters, order, program. Prints one line of JSON: the accuracy and epoch with the lowest
validation loss, epochs run, and the seconds from building the model to the end of training. Nothing
of tlflax is imported.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

BATCH, RATE, PATIENCE, MIN_DELTA = 32, 1e-3, 3, 1e-4
Figures = dict[str, Any]  # a JSON object


class Examples:
    """Batches of an epoch: shuffled, one of both views of each image.

    Args:
        arrays: What FEATURES.npz holds.
        seed: Of order and views.
    """

    def __init__(self, arrays: dict[str, np.ndarray], seed: int) -> None:
        self.views, self.label = arrays['views'], arrays['label']
        self._random = np.random.default_rng(seed)

    def epoch(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns pairs (features, labels)."""
        n = len(self.label)
        order, view = self._random.permutation(n), self._random.integers(0, 2, n)
        parts = [order[start : start + BATCH] for start in range(0, n, BATCH)]
        return [(self.views[view[part], part], self.label[part]) for part in parts]


def train_keras(arrays: dict[str, np.ndarray], seed: int, epochs: int) -> Figures:
    """Trains with `fit` and Keras's own early stopping."""
    import keras
    from keras import layers

    class Sequence(keras.utils.PyDataset):
        """The same batches, for `fit`."""

        def __init__(self) -> None:
            super().__init__()
            self._examples = Examples(arrays, seed)
            self._batches = self._examples.epoch()

        def __len__(self) -> int:
            return len(self._batches)

        def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
            return self._batches[number]

        def on_epoch_end(self) -> None:
            self._batches = self._examples.epoch()

    keras.utils.set_random_seed(seed)
    began = time.perf_counter()
    model = keras.Sequential(
        [
            keras.Input(arrays['val'].shape[1:]),
            layers.Conv2D(32, 3, padding='same', activation='relu'),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, padding='same', activation='relu'),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(64, activation='relu'),
            layers.Dropout(0.5),
            layers.Dense(int(arrays['label'].max()) + 1, activation='softmax'),
        ]
    )
    loss = 'sparse_categorical_crossentropy'
    model.compile(keras.optimizers.Adam(RATE), loss=loss, metrics=['accuracy'])
    stopping = keras.callbacks.EarlyStopping(
        monitor='val_loss', patience=PATIENCE, min_delta=MIN_DELTA, restore_best_weights=True
    )
    history = model.fit(
        Sequence(),
        validation_data=(arrays['val'], arrays['val_label']),
        epochs=epochs,
        callbacks=[stopping],
        shuffle=False,
        verbose=0,
    ).history
    seconds = time.perf_counter() - began
    accuracy = history['val_accuracy'][stopping.best_epoch]
    return _figures(accuracy, stopping.best_epoch, len(history['val_loss']), seconds)


def train_torch(arrays: dict[str, np.ndarray], seed: int, epochs: int) -> Figures:
    """Trains with a loop as in PyTorch's tutorials, channels first."""
    import torch

    nn = torch.nn
    torch.manual_seed(seed)
    began = time.perf_counter()
    height, width, channels = arrays['val'].shape[1:]
    network = nn.Sequential(
        *(nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(64 * (height // 4) * (width // 4), 64), nn.ReLU(), nn.Dropout(0.5)),
        nn.Linear(64, int(arrays['label'].max()) + 1),
    )
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    loss_of = nn.CrossEntropyLoss()
    examples = Examples({**arrays, 'views': np.moveaxis(arrays['views'], -1, 2)}, seed)
    val = torch.from_numpy(np.ascontiguousarray(np.moveaxis(arrays['val'], -1, 1)))
    val_label = torch.from_numpy(arrays['val_label'].astype(np.int64))
    best, accuracy, best_epoch, wait = np.inf, 0.0, 0, 0
    for epoch in range(epochs):
        network.train()
        for x, y in examples.epoch():
            optimizer.zero_grad()
            loss = loss_of(network(torch.from_numpy(x)), torch.from_numpy(y.astype(np.int64)))
            loss.backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            logits = network(val)
        value, wait = float(loss_of(logits, val_label)), wait + 1
        if value < best - MIN_DELTA:
            best, best_epoch, wait = value, epoch, 0
            accuracy = float((logits.argmax(1) == val_label).float().mean())
        if wait >= PATIENCE:
            break
    return _figures(accuracy, best_epoch, epoch + 1, time.perf_counter() - began)


def _figures(accuracy: float, best_epoch: int, epochs: int, seconds: float) -> Figures:
    return {
        'accuracy': float(accuracy),
        'best_epoch': best_epoch + 1,
        'epochs': epochs,
        'seconds': seconds,
    }


PEERS = {'keras': train_keras, 'torch': train_torch}


def main() -> None:
    """Trains."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('peer', choices=PEERS)
    parser.add_argument('features', type=Path)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--epochs', type=int, default=50)
    options = parser.parse_args()
    with np.load(options.features) as arrays:
        found = PEERS[options.peer](dict(arrays), options.seed, options.epochs)
    print(json.dumps(found))


if __name__ == '__main__':
    main()

"""The traffic recipe as a Keras user would write it: the peer of scripts/bench_training.py.

    KERAS_BACKEND=tensorflow python scripts/keras_recipe.py IMAGES WEIGHTS.npz [--epochs=2]

IMAGES holds Train/ and Test/ with class folders, WEIGHTS the arrays `block1_conv1/kernel`, ....
Prints a line of JSON after each epoch's validation: its number, seconds and metrics. Nothing of
tlflax is imported, which would switch off TensorFlow's oneDNN and slow Keras down.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers
from keras.applications import vgg16


class Stamps(keras.callbacks.Callback):
    """Prints when each epoch ended."""

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Starts the clock."""
        del logs
        self.began = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Prints one line; Keras calls this after validation."""
        now = time.perf_counter()
        stamp = {'epoch': epoch + 1, 'seconds': now - self.began, **(logs or {})}
        print(json.dumps(stamp), flush=True)
        self.began = now


def load_images(folder: Path, size: int, *, shuffle: bool) -> Any:
    """Returns batches of 32 images, resized bilinearly, and their labels."""
    return keras.utils.image_dataset_from_directory(
        folder, image_size=(size, size), batch_size=32, shuffle=shuffle
    )


def build(size: int, layer: str, num_classes: int, weights: Path) -> keras.Model:
    """Returns the compiled model: flips, frozen VGG16 up to `layer`, and the head of the recipe."""
    base = vgg16.VGG16(weights=None, include_top=False, input_shape=(size, size, 3))
    with np.load(weights) as arrays:
        for part in base.layers:
            if part.weights:
                part.set_weights([arrays[f'{part.name}/kernel'], arrays[f'{part.name}/bias']])
    base = keras.Model(base.input, base.get_layer(layer).output)
    base.trainable = False

    inputs = keras.Input((size, size, 3))
    x = layers.RandomFlip('horizontal')(inputs)  # in training only
    x = vgg16.preprocess_input(x)
    x = base(x, training=False)
    x = layers.Conv2D(32, 3, padding='same', activation='relu')(x)
    x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(64, 3, padding='same', activation='relu')(x)
    x = layers.MaxPooling2D()(x)
    x = layers.Flatten()(x)
    x = layers.Dense(64, activation='relu')(x)
    x = layers.Dropout(0.5)(x)
    model = keras.Model(inputs, layers.Dense(num_classes, activation='softmax')(x))
    model.compile(
        keras.optimizers.Adam(1e-3), loss='sparse_categorical_crossentropy', metrics=['accuracy']
    )
    return model


def main() -> None:
    """Trains."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('images', type=Path)
    parser.add_argument('weights', type=Path)
    parser.add_argument('--epochs', type=int, default=2)
    parser.add_argument('--image-size', type=int, default=224)
    parser.add_argument('--layer', default='block5_pool')
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    train = load_images(options.images / 'Train', options.image_size, shuffle=True)
    val = load_images(options.images / 'Test', options.image_size, shuffle=False)
    model = build(options.image_size, options.layer, len(train.class_names), options.weights)
    model.fit(train, validation_data=val, epochs=options.epochs, callbacks=[Stamps()], verbose=0)


if __name__ == '__main__':
    main()

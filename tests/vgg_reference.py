"""VGG16 as Keras and PyTorch compute it, given the same arrays: the references."""

import keras
import numpy as np
import torch

POOLS = tuple(f'block{block}_pool' for block in range(1, 6))
WIDTHS = (64, 128, 256, 512, 512)
DEPTHS = (2, 2, 3, 3, 3)


def random_arrays(seed, *, widths=WIDTHS, top=False, units=4096, num_classes=1000):
    """Canonical parameters whose activations keep their size, biases included."""
    rng = np.random.default_rng(seed)
    params, channels = {}, 3

    def layer(*shape):
        scale = np.float32(np.sqrt(2 / np.prod(shape[:-1])))
        kernel = rng.standard_normal(shape, np.float32) * scale
        return {'kernel': kernel, 'bias': rng.standard_normal(shape[-1], np.float32) * 0.1}

    for block, (depth, width) in enumerate(zip(DEPTHS, widths, strict=True), start=1):
        for i in range(1, depth + 1):
            params[f'block{block}_conv{i}'] = layer(3, 3, channels, width)
            channels = width
    if top:
        params['fc1'] = layer(49 * channels, units)
        params['fc2'] = layer(units, units)
        params['predictions'] = layer(units, num_classes)
    return params


def keras_network(widths=WIDTHS, *, top=False, units=4096, num_classes=1000):
    """Keras's own VGG16, or a narrow one with the same layers and names."""
    if widths == WIDTHS:
        shape = (224, 224, 3) if top else (None, None, 3)
        return keras.applications.VGG16(
            weights=None, include_top=top, input_shape=shape, classes=num_classes
        )
    x = inputs = keras.Input((224, 224, 3))
    for block, (depth, width) in enumerate(zip(DEPTHS, widths, strict=True), start=1):
        for i in range(1, depth + 1):
            name = f'block{block}_conv{i}'
            x = keras.layers.Conv2D(width, 3, padding='same', activation='relu', name=name)(x)
        x = keras.layers.MaxPooling2D(2, name=f'block{block}_pool')(x)
    if top:
        x = keras.layers.Flatten(name='flatten')(x)
        x = keras.layers.Dense(units, activation='relu', name='fc1')(x)
        x = keras.layers.Dense(units, activation='relu', name='fc2')(x)
        x = keras.layers.Dense(num_classes, activation='softmax', name='predictions')(x)
    return keras.Model(inputs, x, name='vgg16')


def keras_set(model, params):
    """Puts canonical parameters into a Keras model by layer name."""
    for name, arrays in params.items():
        model.get_layer(name).set_weights([arrays['kernel'], arrays['bias']])


def keras_blocks(model, images):
    """The outputs of the five pools for preprocessed images."""
    taps = keras.Model(model.input, [model.get_layer(name).output for name in POOLS])
    return dict(zip(POOLS, map(np.asarray, taps(images)), strict=True))


class TorchVGG16(torch.nn.Module):
    """The network of torchvision, with its layer names."""

    def __init__(self, widths=WIDTHS, *, top=False, units=4096, num_classes=1000):
        super().__init__()
        layers, channels = [], 3
        for depth, width in zip(DEPTHS, widths, strict=True):
            for _ in range(depth):
                layers += [torch.nn.Conv2d(channels, width, 3, padding=1), torch.nn.ReLU()]
                channels = width
            layers.append(torch.nn.MaxPool2d(2, 2))
        self.features = torch.nn.Sequential(*layers)
        if top:
            self.classifier = torch.nn.Sequential(
                torch.nn.Linear(channels * 49, units),
                torch.nn.ReLU(),
                torch.nn.Dropout(),
                torch.nn.Linear(units, units),
                torch.nn.ReLU(),
                torch.nn.Dropout(),
                torch.nn.Linear(units, num_classes),
            )
        self.eval()

    @torch.no_grad()
    def set_convolutions(self, params):
        """Puts canonical convolutions in, in order."""
        arrays = [params[name] for name in sorted(params) if name.startswith('block')]
        convolutions = [m for m in self.features if isinstance(m, torch.nn.Conv2d)]
        for module, array in zip(convolutions, arrays, strict=True):
            module.weight.copy_(torch.tensor(array['kernel']).permute(3, 2, 0, 1))
            module.bias.copy_(torch.tensor(array['bias']))

    @torch.no_grad()
    def randomize(self, seed):
        """He-normal kernels and small biases, so that activations keep their size."""
        torch.manual_seed(seed)
        for module in self.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                torch.nn.init.kaiming_normal_(module.weight)
                torch.nn.init.normal_(module.bias, std=0.1)

    @torch.no_grad()
    def blocks(self, images):
        """The outputs of the five pools, [b, h, w, c], for preprocessed images."""
        x, found = torch.tensor(images).permute(0, 3, 1, 2), []
        for module in self.features:
            x = module(x)
            if isinstance(module, torch.nn.MaxPool2d):
                found.append(x.permute(0, 2, 3, 1).numpy())
        return dict(zip(POOLS, found, strict=True))

    @torch.no_grad()
    def probabilities(self, images):
        """The softmax of the full network for preprocessed images."""
        x = self.features(torch.tensor(images).permute(0, 3, 1, 2))
        return self.classifier(x.flatten(1)).softmax(-1).numpy()

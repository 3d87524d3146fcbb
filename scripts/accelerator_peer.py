"""PyTorch on an accelerator, for bench_accelerator.py: the same work as tlflax, with VGGs."""

import collections
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from accelerator_sides import AHEAD, CLASSES, RATE, Images, Repeat, is_vgg, noise

from tlflax.models.base.backbone import Backbone
from tlflax.models.vgg import network as vgg


class Peer:
    """PyTorch with the same VGG in bfloat16, compiled where it runs on an accelerator.

    Args:
        params: The convolutions.
        on_cpu: Whether to run on the CPU, where nothing is compiled.
    """

    def __init__(self, params: vgg.Params, *, on_cpu: bool) -> None:
        import torch

        self.device = torch.device('cpu' if on_cpu else 'cuda')
        self.network = self._blocks(params, vgg.BLOCKS).to(torch.bfloat16)
        self.tail = self._blocks(params, vgg.BLOCKS[-1:])  # float32, as tlflax trains it
        self.mean = torch.tensor([103.939, 116.779, 123.68], device=self.device)
        self._forward = self._compiled(self._features)

    def _compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        import torch

        if self.device.type != 'cuda':
            return function
        torch.backends.cudnn.benchmark = True  # XLA measures its convolutions, too
        return torch.compile(function, dynamic=False)  # a program for each batch size

    def _blocks(self, params: vgg.Params, blocks: range) -> Any:
        import torch

        layers: list[torch.nn.Module] = []
        depths = vgg.depths_of(params)
        for block in blocks:
            for name in vgg.conv_names(block, depths[block - 1]):
                kernel = torch.tensor(np.asarray(params[name]['kernel'])).permute(3, 2, 0, 1)
                conv = torch.nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, padding=1)
                conv.weight = torch.nn.Parameter(kernel.contiguous())
                conv.bias = torch.nn.Parameter(torch.tensor(np.asarray(params[name]['bias'])))
                layers += [conv, torch.nn.ReLU(inplace=True)]
            layers.append(torch.nn.MaxPool2d(2))
        network = torch.nn.Sequential(*layers).to(self.device)
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _features(self, image: Any) -> Any:
        import torch

        x = image.float().flip(-1) - self.mean
        return self.network(x.to(torch.bfloat16).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def _wait(self) -> None:
        import torch

        if self.device.type == 'cuda':
            torch.cuda.synchronize()

    def extract(self, batches: list[Images]) -> Iterator[np.ndarray]:
        """Yields features in host memory."""
        import torch

        waiting: collections.deque[torch.Tensor] = collections.deque()
        with torch.inference_mode():
            for batch in batches:
                image = torch.from_numpy(batch)
                if self.device.type == 'cuda':
                    image = image.pin_memory()
                waiting.append(self._forward(image.to(self.device, non_blocking=True)))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().float().cpu().numpy()
            while waiting:
                yield waiting.popleft().float().cpu().numpy()

    def extract_on_device(self, batches: list[Images]) -> Repeat:
        """Returns what computes features of images on the device, and leaves them there."""
        import torch

        images = [torch.from_numpy(batch).to(self.device) for batch in batches]

        def repeat() -> None:
            with torch.inference_mode():
                for image in images:
                    self._forward(image)
            self._wait()

        return repeat

    def train(
        self, shape: tuple[int, ...], rows: int, batch: int, passes: int, *, tail: bool
    ) -> Repeat:
        """Returns what takes Adam's steps with bfloat16 by autocast, as tlflax's compute type.

        Args:
            shape: That of one example's features, [h, w, c].
            rows: Examples, whose features are on the device.
            batch: Examples a step.
            passes: Over all examples.
            tail: Whether the last block is trained with the head.
        """
        import torch

        values, label = noise(rows, shape)
        x = torch.from_numpy(values).to(self.device).permute(0, 3, 1, 2)
        y = torch.from_numpy(label.astype(np.int64)).to(self.device)
        head = torch.nn.Linear(vgg.WIDTHS[-1], CLASSES).to(self.device)
        trained = [*head.parameters(), *(self.tail.parameters() if tail else ())]
        optimizer = torch.optim.Adam(trained, RATE)

        def loss_of(x: Any, y: Any) -> Any:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=tail):
                features = self.tail(x) if tail else x
            logits = head(features.float().mean((2, 3)))
            return torch.nn.functional.cross_entropy(logits, y)

        compiled = self._compiled(loss_of)

        def repeat() -> None:
            for start in [*range(0, rows // batch * batch, batch)] * passes:
                optimizer.zero_grad()
                compiled(x[start : start + batch], y[start : start + batch]).backward()
                optimizer.step()
            self._wait()

        return repeat


def peer(backbone: Backbone, params: vgg.Params, *, on_cpu: bool) -> Peer | None:
    """Returns PyTorch's side, or None and says why where it cannot run."""
    try:
        import torch
    except ImportError:
        print('PyTorch is not installed: left out')
        return None
    if not (torch.cuda.is_available() or on_cpu):
        print('PyTorch finds no accelerator: left out')
        return None
    if not is_vgg(backbone):
        print(f'{backbone.name} has no counterpart in PyTorch here: left out')
        return None
    return Peer(params, on_cpu=not torch.cuda.is_available())

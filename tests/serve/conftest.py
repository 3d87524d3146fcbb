"""A finished run, and services of it as processes of their own."""

import contextlib
import io
import signal
import socket
import time

import httpx
import numpy as np
import pytest
from fork_server import server
from helpers import make_folders, picture, toy_config
from PIL import Image

from tlflax.train import train_and_evaluate

SECONDS = 60  # until a service must be ready, or must have stopped


@pytest.fixture(scope='session')
def workdir(tmp_path_factory):
    """A run of the toy backbone on 32x32 pixels."""
    root = tmp_path_factory.mktemp('serve')
    make_folders(root / 'Train', 6, seed=1, noise=200.0)
    make_folders(root / 'Test', 4, seed=2, noise=200.0)
    config = toy_config(root, model__head='conv', optim__learning_rate=0.01, train__report=False)
    train_and_evaluate(config, root / 'w')
    return root / 'w'


class Service:
    """A process that serves a run.

    Attributes:
        url: Where it listens, without the last slash.
        process: The process.
    """

    def __init__(self, folder, workdir, flags):
        self._out, self._err = folder / 'out', folder / 'err'
        arguments = [f'--workdir={workdir}', '--port=0', *flags]
        with open(self._out, 'w') as out, open(self._err, 'w') as err:
            self.process = server().start(
                'module', 'tlflax.serve', *arguments, stdout=out, stderr=err
            )
        until = time.monotonic() + SECONDS
        while 'listening at' not in self._out.read_text():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < until, self.said
            time.sleep(0.02)
        self.url = self._out.read_text().split()[-1].rstrip('/')
        self.port = int(self.url.rpartition(':')[2])

    @property
    def said(self):
        """What it wrote on stderr."""
        return self._err.read_text()

    def wait_until_ready(self):
        until = time.monotonic() + SECONDS
        while httpx.get(f'{self.url}/health').status_code != 200:
            assert time.monotonic() < until, self.said
            time.sleep(0.02)
        return self

    def stop(self, number=signal.SIGTERM):
        """Sends a signal; returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(SECONDS)

    def connect(self):
        """Returns an open connection."""
        return socket.create_connection(('127.0.0.1', self.port), timeout=SECONDS)

    def post(self, path, data, **options):
        return httpx.post(f'{self.url}{path}', content=data, timeout=SECONDS, **options)


@pytest.fixture(scope='module')
def start(tmp_path_factory, workdir):
    """Starts services, and stops those that still run."""
    started = []

    def go(*flags, workdir=workdir):
        service = Service(tmp_path_factory.mktemp('service'), workdir, flags)
        started.append(service)
        return service.wait_until_ready()

    yield go
    for service in started:
        with contextlib.suppress(ProcessLookupError):
            service.process.send_signal(signal.SIGTERM)
    for service in started:
        service.process.wait(SECONDS)


def encoded(pixels, form='JPEG', **options):
    """Returns an image file."""
    stream = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(stream, form, **options)
    return stream.getvalue()


def jpeg(seed=0):
    return encoded(picture((40, 56), seed), quality=95)


@pytest.fixture(scope='session')
def images():
    """Image files of several kinds, by name."""
    color, exif = picture((40, 56)), Image.Exif()
    exif[0x0112] = 6
    alpha = np.linspace(0, 255, 40 * 56).reshape(40, 56, 1).astype(np.uint8)
    return {
        'plain.jpg': jpeg(),
        'turned.jpg': encoded(color, quality=95, exif=exif),
        'alpha.png': encoded(np.concatenate([color, alpha], -1), 'PNG'),
        'gray.png': encoded(color[..., 0], 'PNG'),
        'photo.webp': encoded(color, 'WEBP'),
        'scan.tiff': encoded(color, 'TIFF'),
    }

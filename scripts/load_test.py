"""Sends images from many clients at once to the service of a run, and prints what came back.

    python scripts/load_test.py WORKDIR [--clients=N] [--seconds=S] [--images=DIR] [--queue=N]

Starts `python -m tlflax.serve` with the workdir, waits until it is ready, and lets each client send
one image after another over its own connection. Beside them, some clients send a body byte by byte,
and some hang up in the middle of one. A client that is refused for now (503 with Retry-After) asks
again after a tenth of a second. Without `--images`, images are generated. The last line is JSON:
requests_per_second (those answered with 200), p50_seconds and p95_seconds of these, statuses,
rss_mib before and after, and rss_growth_mib. The exit code is 1 where an answer was neither 200 nor
503 with Retry-After, or where the service did not stop well.
"""

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import io
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

_AGAIN = 0.1  # seconds after which a refused client asks again
_READY = 600.0  # seconds for loading and compiling
_SLOW, _RUDE = 3, 3  # clients that send byte by byte, and that hang up


@dataclasses.dataclass
class Tally:
    """What came back.

    Attributes:
        statuses: How many answers there were of each kind.
        seconds: Of each answer with status 200.
    """

    statuses: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    seconds: list[float] = dataclasses.field(default_factory=list)


def generated(count: int) -> list[bytes]:
    """Returns JPEG files of different sizes."""
    rng, found = np.random.default_rng(0), []
    for number in range(count):
        pixels = rng.integers(0, 256, (4, 4, 3), np.uint8)
        size = (96 + 32 * (number % 5), 96 + 32 * (number % 3))
        stream = io.BytesIO()
        Image.fromarray(pixels).resize(size).save(stream, 'JPEG', quality=90)
        found.append(stream.getvalue())
    return found


def head(port: int, length: int) -> bytes:
    """Returns the first lines of a request."""
    lines = ['POST /predict HTTP/1.1', f'host: 127.0.0.1:{port}', f'content-length: {length}']
    return '\r\n'.join([*lines, '', '']).encode()


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Reads one answer; returns its status and its headers."""
    lines = (await reader.readuntil(b'\r\n\r\n')).decode('latin-1').split('\r\n')
    headers = dict(line.lower().split(': ', 1) for line in lines[1:] if line)
    await reader.readexactly(int(headers['content-length']))
    return int(lines[0].split()[1]), headers


async def client(port: int, images: Sequence[bytes], until: float, tally: Tally) -> None:
    """Sends one image after another."""
    reader, writer = await asyncio.open_connection('127.0.0.1', port)
    number = 0
    while time.monotonic() < until:
        file = images[number % len(images)]
        began = time.monotonic()
        try:
            writer.write(head(port, len(file)) + file)
            status, headers = await answer(reader)
        except (OSError, asyncio.IncompleteReadError) as error:
            tally.statuses[type(error).__name__] += 1
            return
        if status == 200:
            tally.statuses['200'] += 1
            tally.seconds.append(time.monotonic() - began)
            number += 1
        elif status == 503 and headers.get('retry-after', '').isdecimal():
            tally.statuses['503'] += 1
            await asyncio.sleep(_AGAIN)
        else:
            tally.statuses[f'{status} without retry-after' if status == 503 else str(status)] += 1
    writer.close()


async def slow(port: int, until: float) -> None:
    """Sends a body byte by byte."""
    while time.monotonic() < until:
        _, writer = await asyncio.open_connection('127.0.0.1', port)
        writer.write(head(port, 100_000))
        with contextlib.suppress(OSError):
            while time.monotonic() < until:
                writer.write(b'\xff')
                await writer.drain()
                await asyncio.sleep(0.05)
        writer.transport.abort()


async def rude(port: int, until: float) -> None:
    """Hangs up in the middle of a body."""
    while time.monotonic() < until:
        _, writer = await asyncio.open_connection('127.0.0.1', port)
        writer.write(head(port, 100_000) + 50_000 * b'\xff')
        await asyncio.sleep(0.02)
        writer.transport.abort()
        await asyncio.sleep(0.02)


async def load(port: int, images: list[bytes], clients: int, seconds: float) -> Tally:
    """Lets all clients send for some seconds; returns what came back."""
    tally, until = Tally(), time.monotonic() + seconds
    each = [images[k % len(images) :] + images[: k % len(images)] for k in range(clients)]
    await asyncio.gather(
        *(client(port, own, until, tally) for own in each),
        *(slow(port, until) for _ in range(_SLOW)),
        *(rude(port, until) for _ in range(_RUDE)),
    )
    return tally


@contextlib.contextmanager
def served(workdir: str, *flags: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Yields the process of a service that is ready, and its port; stops it in the end."""
    command = [sys.executable, '-m', 'tlflax.serve', f'--workdir={workdir}', '--port=0', *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            sys.exit(process.wait())
        port = int(line.rstrip('/\n').rpartition(':')[2])
        until = time.monotonic() + _READY
        while not ready(port):
            if time.monotonic() > until or process.poll() is not None:
                sys.exit('the service did not become ready')
            time.sleep(0.2)
        yield process, port
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    finally:
        process.kill()


def ready(port: int) -> bool:
    """Returns whether a service answers images."""
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(f'http://127.0.0.1:{port}/health', timeout=10).status == 200
    return False


def rss_mib(pid: int) -> float:
    """Returns the memory of a process that is in use, in MiB."""
    for line in Path(f'/proc/{pid}/status').read_text().splitlines():
        if line.startswith('VmRSS:'):
            return int(line.split()[1]) / 1024
    return 0.0


def main() -> int:
    """Runs the test; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('workdir')
    parser.add_argument('--clients', type=int, default=200)
    parser.add_argument('--seconds', type=float, default=60)
    parser.add_argument('--images', help='folder of image files')
    parser.add_argument('--queue', type=int, default=64)
    given = parser.parse_args()
    images = generated(50)
    if given.images:
        files = sorted(path for path in Path(given.images).rglob('*') if path.is_file())
        images = [path.read_bytes() for path in files]
    with served(given.workdir, f'--queue={given.queue}') as (process, port):
        asyncio.run(load(port, images, given.clients, given.seconds / 4))  # fills what is kept
        before = rss_mib(process.pid)
        began = time.monotonic()
        tally = asyncio.run(load(port, images, given.clients, given.seconds))
        spent = time.monotonic() - began
        after = rss_mib(process.pid)
    p50, p95 = np.quantile(tally.seconds or [np.inf], (0.5, 0.95))
    found = {
        'clients': given.clients,
        'requests_per_second': round(len(tally.seconds) / spent, 2),
        'p50_seconds': round(p50, 4),
        'p95_seconds': round(p95, 4),
        'statuses': dict(tally.statuses),
        'rss_mib': [round(before), round(after)],
        'rss_growth_mib': round(after - before, 1),
        'exit_code': process.returncode,
    }
    print(json.dumps(found))
    good = set(tally.statuses) <= {'200', '503'} and tally.seconds and not process.returncode
    return 0 if good else 1


if __name__ == '__main__':
    sys.exit(main())

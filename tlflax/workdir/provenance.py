"""What it takes to repeat a run, apart from its configuration: `provenance.json`."""

import contextlib
import datetime
import hashlib
import importlib.metadata
import os
import platform
import resource
import socket
import subprocess
import sys
from pathlib import Path

import jax

from tlflax.utils.files import JsonObject

_PACKAGES = ('tlflax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'pillow',
             'tensorflow-cpu')  # fmt: skip
_GIT_SECONDS = 10.0
_SHOWN = 100  # changed files that are named


def versions() -> dict[str, str]:
    """Returns the versions of the packages that decide a result."""
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def session(digests: JsonObject, seed: int) -> JsonObject:
    """Describes this process and where it was started.

    Args:
        digests: Of images, weights and code.
        seed: `config.train.seed`.
    """
    return {
        'began': datetime.datetime.now().astimezone().isoformat(timespec='seconds'),
        'host': socket.gethostname(),
        'process': os.getpid(),
        'command': sys.argv,
        'folder': os.getcwd(),
        'git': git_state(Path.cwd()),
        'seed': seed,
        'digests': digests,
        'versions': versions(),
        'python': platform.python_version(),
        'platform': platform.platform(),
        'devices': [f'{device.platform} {device.device_kind}' for device in jax.devices()],
        'environment': {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(('XLA_', 'JAX_'))
        },
    }


def peak_memory() -> dict[str, int]:
    """Returns the most memory, in bytes, that this process has had so far.

    Returns:
        `peak_memory_bytes`, of the machine; and `peak_device_memory_bytes`, the most of any
        accelerator, where there is one that counts it.
    """
    unit = 1 if sys.platform == 'darwin' else 1024
    found = {'peak_memory_bytes': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    counted = [
        (device.memory_stats() or {}).get('peak_bytes_in_use') for device in jax.local_devices()
    ]
    if known := [value for value in counted if value is not None]:
        found['peak_device_memory_bytes'] = max(known)
    return found


def git_state(folder: Path) -> JsonObject | None:
    """Returns the commit of a project and what differs from it; None outside of git."""
    commit = _git(folder, 'rev-parse', 'HEAD')
    changed = _git(folder, 'status', '--porcelain')
    if commit is None or changed is None:
        return None
    lines = changed.splitlines()
    difference = _git(folder, 'diff', 'HEAD') or ''
    return {
        'commit': commit.strip(),
        'changed': lines[:_SHOWN],
        'num_changed': len(lines),
        'diff_sha256': hashlib.sha256(difference.encode()).hexdigest() if lines else None,
    }


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ['git', '-C', str(folder), *arguments],
            capture_output=True,
            text=True,
            errors='replace',
            timeout=_GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None

"""The connection of this process with the others of its run."""

import contextlib
import functools
import socket
from collections.abc import Iterator
from typing import cast

from tlflax.utils.errors import UserError
from tlflax.utils.parallel.launch import Launch
from tlflax.utils.parallel.watch import Client

_TOGETHER = 300  # seconds that processes wait for each other at the beginning
_HEARTBEAT = 100  # seconds after which JAX itself takes a process for lost; `Watch` is faster


def connect(launch: Launch) -> Client | None:
    """Starts JAX's runtime, and returns the client of its coordination service.

    Returns:
        None where the environment describes one process.

    Raises:
        UserError: The others cannot be reached.
    """
    import jax
    from jax._src import distributed  # the public interface has no key-value store

    # It would take SIGTERM for itself; `tlflax.utils.interrupts` handles it.
    jax.config.update('jax_enable_preemption_service', False)
    given = {
        'coordinator_address': launch.coordinator,
        'num_processes': launch.num_processes,
        'process_id': launch.process_id,
        'cluster_detection_method': 'deactivate',
    }
    found = {'cluster_detection_method': launch.method or None}
    try:
        jax.distributed.initialize(
            **(given if launch.coordinator else found),
            initialization_timeout=_TOGETHER,
            heartbeat_timeout_seconds=_HEARTBEAT,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f'the processes of this run cannot reach each other ({str(error).splitlines()[0]})',
            where=launch.coordinator or launch.method or 'jax.distributed',
            fix='check that all were started, and that all reach this host and port',
        ) from error
    with _reached_at(_own_address(str(distributed.global_state.coordinator_address))):
        several = jax.process_count() > 1
    return cast(Client, distributed.global_state.client) if several else None


def _own_address(coordinator: str) -> str | None:
    """Returns the address of this machine on the way to the coordinator; None: not known."""
    host, _, port = coordinator.rpartition(':')
    try:
        found = socket.getaddrinfo(host.strip('[]'), int(port), type=socket.SOCK_DGRAM)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as link:
            link.connect(address)  # sends nothing
            return str(link.getsockname()[0])
    except OSError:
        return None


@contextlib.contextmanager
def _reached_at(address: str | None) -> Iterator[None]:
    """Lets Gloo, which connects CPUs, be reached at an address while JAX starts.

    It would take the one of the host's name, which on many machines is that of the loopback.
    """
    from jax._src.lib import _jax

    make = _jax.make_gloo_tcp_collectives
    _jax.make_gloo_tcp_collectives = functools.partial(make, hostname=address)
    try:
        yield
    finally:
        _jax.make_gloo_tcp_collectives = make

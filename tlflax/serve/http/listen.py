"""The address that a service listens at, and what it needs to be installed."""

import contextlib
import errno
import importlib.util
import socket
from collections.abc import Iterator

from tlflax.serve.settings import whole_number
from tlflax.utils.errors import UserError, printable, reason

_FIXES = {
    errno.EADDRINUSE: 'stop what listens there, or give another port (--port=0: one that is free)',
    errno.EACCES: 'give a port from 1024 on',
    errno.EADDRNOTAVAIL: 'give an address of this machine, such as 127.0.0.1, or 0.0.0.0 for all',
}


def require() -> None:
    """Checks that the libraries of the service are installed.

    Raises:
        UserError: One is not.
    """
    for name in ('fastapi', 'uvicorn'):
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f'the service needs {name}, which is not installed',
                where='tlflax.serve',
                fix="install it with pip install 'tlflax[serve]'",
            )


def parse_port(text: str) -> int:
    """Returns the port that a command line names; 0 stands for one that is free.

    Raises:
        UserError: It is no port.
    """
    return whole_number(text, '--port', first=0, most=65535)


@contextlib.contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """Binds a socket to an address; it does not listen yet.

    Raises:
        UserError: The host is not one of this machine, or something else listens there.
    """
    where = f'--host={printable(host)} --port={port}'
    try:
        if not host:
            raise socket.gaierror('no address')
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        what = 'there is no such host'
        raise UserError(what, where=where, fix=_FIXES[errno.EADDRNOTAVAIL]) from error
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            opened.bind(address)
            # Of two that are bound to one address, the second fails where it begins to listen.
            opened.listen(1024)
        except OSError as error:
            fix = _FIXES.get(error.errno or 0, 'give another address')
            what = f'cannot listen there: {reason(error)}'
            raise UserError(what, where=where, fix=fix) from error
        yield opened


def address(opened: socket.socket) -> str:
    """Returns the address of a bound socket, as a browser takes it."""
    host, port = opened.getsockname()[:2]
    return (
        f'http://[{host}]:{port}/' if opened.family == socket.AF_INET6 else f'http://{host}:{port}/'
    )

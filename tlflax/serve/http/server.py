"""Runs the service until a signal says to stop."""

import contextlib
import logging
import socket
from collections.abc import Iterator

import uvicorn

from tlflax.config import output
from tlflax.inference.trained import Trained
from tlflax.serve import app
from tlflax.serve.app import Service
from tlflax.serve.classifier import Classifier
from tlflax.serve.http import listen
from tlflax.serve.http.protocol import limited
from tlflax.serve.settings import Settings
from tlflax.utils import interrupts


class Server(uvicorn.Server):
    """A server that leaves signals to its caller.

    Args:
        service: What it serves.
        opened: The socket.
    """

    def __init__(self, service: Service, opened: socket.socket) -> None:
        settings = service.settings
        config = uvicorn.Config(
            app.create(service),
            loop='asyncio',
            http=limited(settings),
            ws='none',
            lifespan='on',
            interface='asgi3',
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=round(settings.grace),
            backlog=1024,
        )
        super().__init__(config)
        self._service, self._opened = service, opened

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens, and says where."""
        await super().startup(sockets)
        print(f'listening at {listen.address(self._opened)}', flush=True)

    async def on_tick(self, counter: int) -> bool:
        """Returns whether to stop: by a signal, or as the classifier cannot be compiled."""
        return await super().on_tick(counter) or self._service.failure is not None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers what is in flight, and nothing else."""
        self._service.batcher.stopping = True
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals alone."""
        yield


def serve(trained: Trained, opened: socket.socket, settings: Settings) -> None:
    """Serves a classifier until a signal says to stop.

    Raises:
        UserError: No temperature is known, and one is asked for; or the classifier fails.
        KeyboardInterrupt: A second signal came.
    """
    service = Service(Classifier(trained, calibrated=settings.calibrated), settings)
    server = Server(service, opened)

    def stop(name: str) -> None:
        server.should_exit = True
        # It would tell of every task that a stop cuts short.
        logging.getLogger('uvicorn.error').setLevel(logging.CRITICAL)
        output.say(f'{name}: stopping; what is in flight is answered')

    with interrupts.deferred(stop):
        server.run([opened])
    if service.failure is not None:
        raise service.failure

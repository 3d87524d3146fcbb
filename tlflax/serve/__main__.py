"""Serves a trained classifier over HTTP, with a page to try it in a browser.

POST /predict takes an image file as the body and gives class probabilities as JSON, POST /heat_map
gives a picture of what in the image speaks for the predicted class. GET /model, /health, /metrics
and /openapi.json tell the rest; GET / is the page. There is no authentication: it listens to this
machine alone unless --host says otherwise.

Ctrl-C or SIGTERM stops it: what is in flight is answered, and the exit code is 0.
"""

import dataclasses

from tlflax.config import cli, flags


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The arguments of the command."""

    workdir: str = flags.required('DIR', 'folder of the training run')
    host: str = flags.optional('127.0.0.1', 'ADDRESS', 'address of this machine to listen at')
    port: str = flags.optional('8000', 'PORT', 'port to listen at; 0: one that is free')
    step: str | None = flags.optional(
        None,
        'STEP',
        "checkpoint: 'best', 'last' or a step's number; by default the one in result.json",
    )
    calibrated: bool = flags.switch('apply the temperature that fits the validation images')
    max_bytes: str = flags.optional('20000000', 'N', 'most bytes of an image file')
    queue: str = flags.optional('64', 'N', 'most images that wait; more are answered with 503')
    timeout: str = flags.optional('30', 'SECONDS', 'how long an image file may take to arrive')


def main(arguments: Arguments) -> None:
    """Serves until a signal says to stop."""
    from tlflax.serve.http import listen
    from tlflax.serve.settings import Settings
    from tlflax.workdir.folders import require_run

    settings = Settings.parse(
        arguments.max_bytes, arguments.queue, arguments.timeout, arguments.calibrated
    )
    port = listen.parse_port(arguments.port)
    listen.require()
    require_run(arguments.workdir)
    with listen.bound(arguments.host, port) as socket:
        from tlflax.inference.restore import load
        from tlflax.serve.http.server import serve

        serve(load(arguments.workdir, arguments.step), socket, settings)


COMMAND = cli.Command('tlflax.serve', __doc__, Arguments, main, '--workdir=runs/traffic')

if __name__ == '__main__':
    COMMAND.run()

"""Runs the web application until the process is asked to end."""

import socket

import uvicorn

from ovi_ray.serving.app import LiveConfig, report_app
from ovi_ray.storage.paths import Location

_GRACE_S = 3  # for answers that are being sent


def run_server(output_dir: Location, listener: socket.socket, *, token: str) -> None:
    """Serve an output folder on a socket that listens, until Ctrl-C or SIGTERM. Pages that are open do not hold it up."""
    server_of(output_dir, token=token).run(sockets=[listener])


def server_of(output_dir: Location, *, token: str, live: LiveConfig | None = None) -> uvicorn.Server:
    """The server of an output folder; it ends once its `should_exit` is set."""

    def is_closing() -> bool:
        return server.should_exit

    config = uvicorn.Config(
        report_app(output_dir, token=token, live=live or LiveConfig(), is_closing=is_closing),
        log_level="warning",
        access_log=False,  # addresses may hold the token
        server_header=False,
        timeout_graceful_shutdown=_GRACE_S,
    )
    server = uvicorn.Server(config)
    return server

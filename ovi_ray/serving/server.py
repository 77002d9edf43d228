"""Runs the web application until the process is asked to end."""

import socket

import uvicorn

from ovi_ray.serving.app import report_app
from ovi_ray.storage.paths import Location


def run_server(output_dir: Location, listener: socket.socket, *, token: str) -> None:
    """Serve an output folder on a socket that listens, until Ctrl-C or SIGTERM. Pages that are open do not hold it up."""
    config = uvicorn.Config(
        report_app(output_dir, token=token),
        log_level="warning",
        access_log=False,  # addresses may hold the token
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    uvicorn.Server(config).run(sockets=[listener])

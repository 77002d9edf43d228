"""The server of `ovi-ray serve`, in a thread of this process."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ovi_ray.serving.app import LiveConfig
from ovi_ray.serving.server import server_of
from ovi_ray.storage.paths import Location
from tests.support.waiting import PATIENCE_S, wait_until

OFTEN = LiveConfig(look_s=0.05)


@contextmanager
def running_server(output_dir: Location, *, token: str = "") -> Iterator[str]:
    """The address of a server of a folder, on loopback."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = server_of(output_dir, token=token, live=OFTEN)
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]), daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started, give_up=lambda: "" if thread.is_alive() else "the server does not start")
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        listener.close()

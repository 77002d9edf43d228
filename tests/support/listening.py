"""A server that is not the one that is meant."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def listening(answer: bytes | None = None) -> Iterator[int]:
    """The port of a server that accepts connections, and gives them one answer or keeps silent."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    connection.recv(65_536)  # what is not read resets the connection when it is closed
                    connection.sendall(answer or b"")
                    connection.close()

        if answer is not None:
            threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]

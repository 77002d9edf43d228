"""A server that is not the one that is meant."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


def answer_of(content: object, status: str = "200 OK", **headers: str) -> bytes:
    """A whole answer over HTTP, of bytes or of what JSON can hold."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    lines = [f"HTTP/1.1 {status}", "Connection: close", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


@contextmanager
def listening(answer: bytes | None = None) -> Iterator[int]:
    """The port of a server that accepts connections, and gives each one answer or keeps silent."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        if answer is not None:
            threading.Thread(target=_serve, args=(server, answer), daemon=True).start()
        yield server.getsockname()[1]


def _serve(server: socket.socket, answer: bytes) -> None:
    with suppress(OSError):
        while True:
            connection, _ = server.accept()
            threading.Thread(target=_answer, args=(connection, answer), daemon=True).start()


def _answer(connection: socket.socket, answer: bytes) -> None:
    with suppress(OSError), connection:
        connection.recv(1)
        connection.sendall(answer)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65_536):  # what is not read resets the connection when it is closed
            pass

"""A cluster that is not there is told from one that is, soon and in plain words."""

import contextlib
import logging
import socket
import threading

import pytest

from ovi_ray.errors import ClusterError
from ovi_ray.runtime.cluster_probe import check_cluster, check_joinable


def refusal(address, **limits):
    with pytest.raises(ClusterError) as refused:
        check_cluster(address, **limits)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@contextlib.contextmanager
def listening(answer=None):
    """The port of a server that accepts connections, and answers them or keeps silent."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    if answer is not None:
                        connection.sendall(answer)
                        connection.close()

        if answer is not None:
            threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


@pytest.fixture
def another_grpc_server():
    """The port of a server that speaks HTTP/2, as all gRPC does, and knows no method."""
    settings, not_found = b"\0\0\0\4\0\0\0\0\0", b"\0\0\1\1\5\0\0\0\1\x8d"

    def serve(connection):
        with contextlib.suppress(OSError), connection:
            connection.sendall(settings)
            received = b""
            while b"Gcs" not in received and (more := connection.recv(65_536)):  # part of the name of every method
                received += more
            connection.sendall(not_found)
            while connection.recv(65_536):
                pass

    def accept(server):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()

    with socket.create_server(("", 0)) as server:
        threading.Thread(target=accept, args=(server,), daemon=True).start()
        yield server.getsockname()[1]


def test_another_grpc_server_is_told_from_ray_and_asked_once(another_grpc_server):
    assert "404" in refusal(f"127.0.0.1:{another_grpc_server}")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_port_at_which_nothing_listens(scheme):
    port = free_port()
    assert refusal(f"{scheme}127.0.0.1:{port}") == f"no connection to 127.0.0.1 at port {port} (Connection refused)"


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_name_that_does_not_resolve(scheme):
    assert refusal(f"{scheme}no-such-host.invalid:6379").startswith("the name no-such-host.invalid does not resolve")


@pytest.mark.parametrize(
    "answer", [None, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"], ids=["silent", "another protocol"]
)
def test_a_port_that_accepts_but_is_not_ray(answer):
    with listening(answer) as port:
        assert "does not answer as a Ray cluster" in refusal(f"127.0.0.1:{port}", answer_s=1)


@pytest.mark.parametrize(
    "address", ["head", "head:", ":6379", "head:http", "http://head:8265", "127.0.0.1:99999", "ray://head:10001/path"]
)
def test_an_address_of_another_form(address):
    assert "host:port" in refusal(address)


def test_the_address_of_the_environment_is_used_for_auto_and_told(monkeypatch, caplog):
    monkeypatch.setenv("RAY_ADDRESS", "no-such-host.invalid:6379")
    with (
        caplog.at_level(logging.WARNING, logger="ovi_ray"),
        pytest.raises(
            ClusterError, match=r"at no-such-host\.invalid:6379 cannot be joined: the name .* does not resolve"
        ),
    ):
        check_joinable("auto")
    assert "RAY_ADDRESS" in caplog.text

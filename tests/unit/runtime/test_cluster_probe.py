"""A cluster that is not there is told from one that is, soon and in plain words."""

import contextlib
import logging
import socket
import threading

import pytest

from ovi_ray.errors import ClusterError
from ovi_ray.runtime.cluster_probe import check_answer, check_cluster, check_joinable
from tests.support.listening import listening


def refusal(address, check=check_answer, **limits):
    with pytest.raises(ClusterError) as refused:
        check(address, **limits)
    assert "\n" not in str(refused.value)
    return str(refused.value)


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
    address = f"127.0.0.1:{another_grpc_server}"
    check_answer(address)
    assert "404" in refusal(address, check_cluster)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_port_at_which_nothing_listens(scheme):
    port = free_port()
    assert f"no connection to 127.0.0.1 at port {port} (Connection refused)" in refusal(f"{scheme}127.0.0.1:{port}")


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_name_that_does_not_resolve(scheme):
    assert "the name no-such-host.invalid does not resolve" in refusal(f"{scheme}no-such-host.invalid:6379")


@pytest.mark.parametrize(
    "answer", [None, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"], ids=["silent", "another protocol"]
)
@pytest.mark.parametrize(("scheme", "usual"), [("", "6379"), ("ray://", "10001")])
def test_a_port_that_accepts_but_is_not_ray(answer, scheme, usual):
    with listening(answer) as port:
        told = refusal(f"{scheme}127.0.0.1:{port}", answer_s=1)
    assert "does not answer as a Ray cluster" in told
    assert usual in told


def test_no_address_is_asked_where_none_is_named(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    check_answer("auto")


@pytest.mark.parametrize(
    "address", ["head", "head:", ":6379", "head:http", "http://head:8265", "127.0.0.1:99999", "ray://head:10001/path"]
)
def test_an_address_of_another_form(address):
    assert "host:port" in refusal(address)


@pytest.mark.parametrize(
    ("environment", "is_told"),
    [({}, True), ({"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}, False)],
    ids=["of the user", "of a job that Ray runs"],
)
def test_the_address_of_the_environment_is_used_for_auto_and_told_if_it_is_the_users(
    monkeypatch, caplog, environment, is_told
):
    port = free_port()
    for name, value in {"RAY_ADDRESS": f"127.0.0.1:{port}", **environment}.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.WARNING, logger="ovi_ray"):
        assert f"at 127.0.0.1:{port} cannot be joined: no connection" in refusal("auto", check_joinable)
    assert ("RAY_ADDRESS" in caplog.text) == is_told

"""A cluster that is not there is told from one that is, soon and in plain words."""

import contextlib
import os
import re
import socket
import sys
import threading

import pytest

from ovi_ray.errors import ClusterError
from ovi_ray.runtime.cluster_probe import check_answer, check_cluster, check_joinable, users_cluster
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
            while not re.search(b"Gcs|Raylet", received) and (
                more := connection.recv(65_536)
            ):  # in every method's name
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


@pytest.mark.parametrize(("scheme", "usual"), [("", "6379"), ("ray://", "10001")])
def test_another_grpc_server_is_told_from_ray_and_asked_once(scheme, usual, another_grpc_server):
    address = f"{scheme}127.0.0.1:{another_grpc_server}"
    check_answer(address)
    told = refusal(address, check_cluster)
    assert "404" in told
    assert usual in told


def test_a_server_of_clients_that_accepts_calls_and_keeps_silent_is_given_up():
    with listening() as port:
        told = refusal(f"ray://127.0.0.1:{port}", check_cluster, answer_s=1)
    assert "within 1 s" in told
    assert "10001" in told


def test_clients_need_a_package_of_their_own(monkeypatch, tmp_path):
    (tmp_path / "grpc.py").write_text("raise ImportError\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    assert "ray[client]" in refusal("ray://127.0.0.1:1", check_cluster)


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
    ("answer", "reason"),
    [
        (None, "within 1 s"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "another protocol"),
        (b"", "another protocol"),
    ],
    ids=["silent", "web server", "closed at once"],
)
@pytest.mark.parametrize(("scheme", "usual"), [("", "6379"), ("ray://", "10001")])
def test_a_port_that_accepts_but_is_not_ray(answer, reason, scheme, usual):
    with listening(answer) as port:
        told = refusal(f"{scheme}127.0.0.1:{port}", answer_s=1)
    assert "does not answer as a Ray cluster" in told
    assert reason in told
    assert usual in told


def test_no_address_is_asked_where_none_is_named(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    check_answer("auto")


@pytest.mark.parametrize(
    "address", ["head", "head:", ":6379", "head:http", "http://head:8265", "127.0.0.1:99999", "ray://head:10001/path"]
)
def test_an_address_of_another_form(address):
    assert "host:port" in refusal(address)


def test_the_address_of_the_environment_is_used_for_auto_and_told(monkeypatch):
    port = free_port()
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    assert f"at 127.0.0.1:{port}, which RAY_ADDRESS names, cannot be joined: no connection" in refusal(
        "auto", check_joinable
    )


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, "head:6379"), ({"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}, "")],
    ids=["of the user", "of a job that Ray runs"],
)
def test_the_address_of_the_environment_is_told_if_it_is_the_users(monkeypatch, environment, expected):
    for name, value in {"RAY_ADDRESS": "head:6379", **environment}.items():
        monkeypatch.setenv(name, value)
    assert (users_cluster("auto"), users_cluster("other:6379")) == (expected, "")

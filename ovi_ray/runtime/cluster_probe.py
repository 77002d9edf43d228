"""Finds out within half a minute whether a Ray cluster answers at an address.

Ray itself tries for minutes, in C++ that no signal interrupts, and writes its own log to standard error. So a connection is
made first, with nothing but the standard library (`check_answer`): loading Ray takes longer than that on a busy machine. Then
Ray is asked in a process of its own, `python -m ovi_ray.runtime.cluster_probe ADDRESS`, which an alarm ends.
"""

import functools
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time

from ovi_ray.errors import ClusterError

CONNECT_S = 10
"""Seconds for the name to resolve and the port to accept."""
ANSWER_S = 10
"""Seconds for what listens there to answer; the time that Ray itself takes to load is not limited."""
CLIENT = "ray://"
_ANY = "auto"
_OF_A_RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""In the environment of a job that was submitted to Ray, beside a RAY_ADDRESS that is Ray's own and not the user's."""
_PORT = "expected the port that `ray start --head` names, 6379 unless another was chosen"
_CLIENT_PORT = "expected the port of the Ray client server, 10001 unless another was chosen"
_REFUSED = "it asks for a token, and was given none or another"
_MAX_PORT = 65_535
_ADDRESS = "expected host:port, ray://host:port or auto"
_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""First bytes of a gRPC client: the HTTP/2 preface and an empty settings frame."""
_FRAME_HEADER, _SETTINGS = 9, 4
_SHORTEST_S = 0.001
"""A time limit of zero would make a socket non-blocking."""


def named_cluster(address: str) -> str:
    """The address of the cluster that is meant: "auto" is the one that RAY_ADDRESS names, where it names one."""
    return os.environ.get("RAY_ADDRESS") or address if address == _ANY else address


def users_cluster(address: str) -> str:
    """The cluster that the user's RAY_ADDRESS names for "auto"; empty where Ray set it, in a job that it runs."""
    named = named_cluster(address)
    return "" if named == address or _OF_A_RAY_JOB in os.environ else named


def cannot_join(address: str, reason: object) -> ClusterError:
    """The error of a cluster that a job cannot join, with what to look at."""
    named = named_cluster(address)
    origin = "" if named == address else ", which RAY_ADDRESS names,"
    # Ray reads the token file on its own only for the address "auto"
    hint = "is it up? if it asks for a token, share its ~/.ray/auth_token and set RAY_AUTH_MODE=token"
    return ClusterError(f"the Ray cluster at {named}{origin} cannot be joined: {reason}; {hint}")


def check_joinable(address: str) -> None:
    """Check, before Ray and torch are loaded, that a job can join the cluster at an address. Raises ClusterError."""
    check_answer(address)
    try:
        check_cluster(named_cluster(address))
    except ClusterError as error:
        raise cannot_join(address, error) from error


def check_answer(address: str, *, connect_s: float = CONNECT_S, answer_s: float = ANSWER_S) -> None:
    """Check, without loading Ray, that a gRPC server answers at an address. Raises ClusterError as `cannot_join` words it.

    Only Ray knows what "auto" alone stands for.
    """
    found = named_cluster(address)
    if found == _ANY:
        return
    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    # a name that does not resolve may take minutes, which no signal and no time limit interrupts
    threading.Thread(target=lambda: answers.put(_answer(found, connect_s, answer_s)), daemon=True).start()
    try:
        problem = answers.get(timeout=connect_s + answer_s + 1)
    except queue.Empty:
        problem = f"no answer within {connect_s} s"
    if problem is not None:
        raise cannot_join(address, problem)


@functools.cache
def check_cluster(address: str, *, answer_s: int = ANSWER_S) -> None:
    """Check that a Ray cluster answers at an address at which something answers; one that has answered is not asked again.

    Raises ClusterError with the reason.
    """
    command = [sys.executable, "-m", __spec__.name, address, str(answer_s)]
    probe = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603
    *_, last = ["", *probe.stdout.splitlines()]
    if probe.returncode == -signal.SIGALRM:
        raise ClusterError(f"{last} {_silent(answer_s)}; {_expected(address)}")
    if probe.returncode == 1:
        raise ClusterError(last)


def main(address: str, answer_s: int) -> int:
    """Ask Ray. Prints the endpoint, and with the exit code 1 why it cannot be used. 0: it can."""
    ask = _ask_client_server if address.startswith(CLIENT) else _ask_head
    if problem := ask(address, answer_s):
        print(problem)
    return 1 if problem else 0


def _ask_head(address: str, answer_s: int) -> str:
    """Why no cluster's head answers at an address; empty if one does, or another version of Ray must find that out itself."""
    try:
        from ray._private.services import canonicalize_bootstrap_address
        from ray._raylet import GcsClient  # type: ignore[attr-defined]
    except ImportError:
        return ""
    try:
        found = canonicalize_bootstrap_address(address)
    except (OSError, ValueError) as error:
        return _one_line(str(error))
    print(found, flush=True)
    signal.alarm(answer_s)
    try:
        GcsClient(address=found)
    except Exception as error:  # any of Ray's
        if type(error).__name__ == "AuthenticationError":
            return "" if address == _ANY else _REFUSED  # `ray.init` looks for a token itself then
        return _not_ray(found, _one_line(str(error)) or type(error).__name__, address)
    return ""


def _ask_client_server(address: str, answer_s: int) -> str:
    """Why no server of Ray's clients answers at an address; empty as for `_ask_head`."""
    try:
        import grpc  # type: ignore[import-untyped]
    except ImportError:
        return "Ray's client is not installed: pip install 'ray[client]'"
    try:
        from ray._private.grpc_utils import init_grpc_channel
        from ray.core.generated import ray_client_pb2, ray_client_pb2_grpc
    except ImportError:
        return ""
    found = address.removeprefix(CLIENT)
    print(found, flush=True)
    signal.alarm(answer_s)
    ping = ray_client_pb2.ClusterInfoRequest(type=ray_client_pb2.ClusterInfoType.PING)
    try:
        ray_client_pb2_grpc.RayletDriverStub(init_grpc_channel(found)).ClusterInfo(ping)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            return _REFUSED
        return _not_ray(found, f"{error.code().name}: {_one_line(error.details())}".rstrip(": "), address)
    return ""


def _not_ray(found: str, reason: str, address: str) -> str:
    return f"{found} accepts connections, but does not answer as a Ray cluster ({reason}); {_expected(address)}"


def _expected(address: str) -> str:
    return _CLIENT_PORT if address.startswith(CLIENT) else _PORT


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _answer(address: str, connect_s: float, answer_s: float) -> str | None:
    """Why no gRPC server answers at an address; None if one does, or may do with TLS."""
    host, separator, port = address.removeprefix(CLIENT).rpartition(":")
    host = host.strip("[]")
    if not separator or not host or "/" in host or not (port.isdecimal() and 0 < int(port) <= _MAX_PORT):
        return _ADDRESS
    try:
        connection = socket.create_connection((host, int(port)), timeout=connect_s)
    except socket.gaierror as error:
        return f"the name {host} does not resolve ({error.strerror})"
    except OSError as error:
        return f"no connection to {host} at port {port} ({error.strerror or error})"
    with connection:
        if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
            return None
        try:
            if _greets(connection, time.monotonic() + answer_s):
                return None
        except TimeoutError:
            return f"{host}:{port} {_silent(answer_s)}; {_expected(address)}"
        except OSError:  # it has closed the connection
            pass
    return _not_ray(f"{host}:{port}", "it speaks another protocol", address)


def _greets(connection: socket.socket, deadline: float) -> bool:
    """Whether a server of HTTP/2, which every gRPC server is, answers: its first frame has its settings. Raises OSError."""
    received = b""
    connection.sendall(_HTTP2_GREETING)
    while len(received) < _FRAME_HEADER:
        connection.settimeout(max(deadline - time.monotonic(), _SHORTEST_S))
        if not (more := connection.recv(_FRAME_HEADER - len(received))):
            return False
        received += more
    return received[3] == _SETTINGS


def _silent(seconds: float) -> str:
    return f"accepts connections, but does not answer as a Ray cluster within {seconds} s"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))

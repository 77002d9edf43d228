"""Finds out within half a minute whether a Ray cluster answers at an address.

Ray itself tries for minutes, in C++ that no signal interrupts, and writes its own log to standard error. So a connection is
made first, with nothing but the standard library (`check_answer`): loading Ray takes longer than that on a busy machine. Then
Ray is asked in a process of its own, `python -m ovi_ray.runtime.cluster_probe ADDRESS`, which an alarm ends.
"""

import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time

from ovi_ray.errors import ClusterError

logger = logging.getLogger(__name__)
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
_MAX_PORT = 65_535
_ADDRESS = "expected host:port, ray://host:port or auto"
_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""First bytes of a gRPC client: the HTTP/2 preface and an empty settings frame."""
_FRAME_HEADER, _SETTINGS = 9, 4


def named_cluster(address: str) -> str:
    """The address of the cluster that is meant: "auto" is the one that RAY_ADDRESS names, where it names one."""
    return os.environ.get("RAY_ADDRESS") or address if address == _ANY else address


def cannot_join(address: str, reason: object) -> ClusterError:
    """The error of a cluster that a job cannot join, with what to look at."""
    # Ray reads the token file on its own only for the address "auto"
    hint = "is it up? if it asks for a token, share its ~/.ray/auth_token and set RAY_AUTH_MODE=token"
    return ClusterError(f"the Ray cluster at {address} cannot be joined: {reason}; {hint}")


def check_joinable(address: str) -> None:
    """Check, before Ray and torch are loaded, that a job can join the cluster at an address. Raises ClusterError."""
    named = named_cluster(address)
    if named != address and _OF_A_RAY_JOB not in os.environ:
        logger.warning("joining the Ray cluster at %s, which RAY_ADDRESS names", named)
    check_answer(named)
    try:
        check_cluster(named)
    except ClusterError as error:
        raise cannot_join(named, error) from error


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
        raise cannot_join(found, problem)


def check_cluster(address: str, *, answer_s: int = ANSWER_S) -> None:
    """Check that a Ray cluster answers at an address at which something answers. Raises ClusterError with the reason."""
    if address.startswith(CLIENT):
        return  # Ray's client has a time limit of its own
    command = [sys.executable, "-m", __spec__.name, address, str(answer_s)]
    probe = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603
    *_, last = ["", *probe.stdout.splitlines()]
    if probe.returncode == -signal.SIGALRM:
        raise ClusterError(f"{last} {_silent(answer_s)}; {_PORT}")
    if probe.returncode == 1:
        raise ClusterError(last)


def main(address: str, answer_s: int) -> int:
    """Ask Ray. Prints the endpoint, and with the exit code 1 why it cannot be used. 0: it can."""
    try:
        from ray._private.services import canonicalize_bootstrap_address
        from ray._raylet import GcsClient  # type: ignore[attr-defined]
    except ImportError:  # another version of Ray, whose own check must do
        return 0
    try:
        found = canonicalize_bootstrap_address(address)
    except (OSError, ValueError) as error:
        print(_one_line(error))
        return 1
    print(found, flush=True)
    signal.alarm(answer_s)
    try:
        GcsClient(address=found)
    except Exception as error:  # any of Ray's
        is_token = type(error).__name__ == "AuthenticationError"
        if is_token and address == _ANY:
            return 0  # `ray.init` looks for a token itself then
        no_ray = f"{found} accepts connections, but does not answer as a Ray cluster ({_one_line(error)}); {_PORT}"
        print("it asks for a token, and was given none or another" if is_token else no_ray)
        return 1
    return 0


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


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
        if os.environ.get("RAY_USE_TLS", "0") not in ("", "0") or _greets(connection, time.monotonic() + answer_s):
            return None
    expected = _CLIENT_PORT if address.startswith(CLIENT) else _PORT
    return f"{host}:{port} {_silent(answer_s)}; {expected}"


def _greets(connection: socket.socket, deadline: float) -> bool:
    """Whether a server of HTTP/2, which every gRPC server is, answers: its first frame has its settings."""
    received = b""
    try:
        connection.sendall(_HTTP2_GREETING)
        while len(received) < _FRAME_HEADER and (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            if not (more := connection.recv(_FRAME_HEADER - len(received))):
                break
            received += more
    except OSError:
        return False
    return len(received) == _FRAME_HEADER and received[3] == _SETTINGS


def _silent(seconds: float) -> str:
    return f"accepts connections, but does not answer as a Ray cluster within {seconds} s"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))

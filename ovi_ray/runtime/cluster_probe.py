"""Finds out within half a minute whether a Ray cluster answers at an address.

Ray itself tries for minutes, in C++ that no signal interrupts, and writes its own log to standard error. So it is asked in a
process of its own, `python -m ovi_ray.runtime.cluster_probe ADDRESS`, which alarms end.
"""

import logging
import os
import signal
import socket
import subprocess
import sys

from ovi_ray.errors import ClusterError

logger = logging.getLogger(__name__)
CONNECT_S = 10
"""Seconds for the name to resolve and the port to accept."""
ANSWER_S = 12
"""Seconds for Ray to answer, once it is loaded in this process; that depends on this machine and is not limited."""
CLIENT = "ray://"
_PORT = "expected the port that `ray start --head` names, 6379 unless another was chosen"
_MAX_PORT = 65_535
_ADDRESS = "expected host:port, ray://host:port or auto"


def named_cluster(address: str) -> str:
    """The address of the cluster that is meant: "auto" is the one that RAY_ADDRESS names, where it names one."""
    named = os.environ.get("RAY_ADDRESS")
    return named if address == "auto" and named else address


def check_joinable(address: str) -> None:
    """Check, before Ray and torch are loaded, that a job can join the cluster at an address. Raises ClusterError."""
    named = named_cluster(address)
    if named != address:
        logger.warning("joining the Ray cluster at %s, which RAY_ADDRESS names", named)
    try:
        check_cluster(named)
    except ClusterError as error:
        raise cannot_join(named, error) from error


def cannot_join(address: str, reason: Exception) -> ClusterError:
    """The error of a cluster that a job cannot join, with what to look at."""
    # Ray reads the token file on its own only for the address "auto"
    hint = "is it up? if it asks for a token, share its ~/.ray/auth_token and set RAY_AUTH_MODE=token"
    return ClusterError(f"the Ray cluster at {address} cannot be joined: {reason}; {hint}")


def check_cluster(address: str, *, connect_s: int = CONNECT_S, answer_s: int = ANSWER_S) -> None:
    """Check that a Ray cluster answers at an address that `ray.init` takes. Raises ClusterError with the reason."""
    command = [sys.executable, "-m", __spec__.name, address, str(connect_s), str(answer_s)]
    probe = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603
    *_, last = ["", *probe.stdout.splitlines()]
    if probe.returncode == -signal.SIGALRM:
        raise ClusterError(
            f"{last} accepts connections, but does not answer as a Ray cluster within {answer_s} s; {_PORT}"
            if last
            else f"no answer within {connect_s} s"
        )
    if probe.returncode == 1:
        raise ClusterError(last)


def main(address: str, connect_s: int, answer_s: int) -> int:
    """Print the endpoint once it accepts a connection, and with the exit code 1 why it cannot be used. 0: it can."""
    signal.alarm(connect_s)
    if (problem := _connect(address)) is not None:
        print(problem)
        return 1
    signal.alarm(0)
    if address.startswith(CLIENT):
        return 0  # Ray's client has a time limit of its own
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
        if is_token and address == "auto":
            return 0  # `ray.init` looks for a token itself then
        no_ray = f"{found} accepts connections, but does not answer as a Ray cluster ({_one_line(error)}); {_PORT}"
        print("it asks for a token, and was given none or another" if is_token else no_ray)
        return 1
    return 0


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _connect(address: str) -> str | None:
    """Why no connection to an address can be made; None if it can, or if only Ray knows the endpoint ("auto")."""
    if address == "auto":
        return None
    host, separator, port = address.removeprefix(CLIENT).rpartition(":")
    host = host.strip("[]")
    if not separator or not host or "/" in host or not (port.isdecimal() and 0 < int(port) <= _MAX_PORT):
        return _ADDRESS
    try:
        socket.create_connection((host, int(port))).close()
    except socket.gaierror as error:
        return f"the name {host} does not resolve ({error.strerror})"
    except OSError as error:
        return f"no connection to {host} at port {port} ({error.strerror or error})"
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))

"""Ray's Jobs API over HTTP (Ray 2.60), with `requests` alone.

What a caller must know: a used submission id answers 500 for as long as the head lives; uploads end at 100 MiB; logs are read
with /api/v0/logs, which passes any bytes, because /api/jobs/ID/logs answers 500 once a log holds bytes that are not UTF-8.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import requests

from ovi_ray.errors import ClusterError

TIMEOUT_S = (5.0, 20.0)  # to connect, and between two pieces of an answer
_LINES_OF_ALL = -1
_NO_AGENT = "No available agent"  # the head's own agent, which starts jobs, comes up after the dashboard
_LOOK_S = 1.0
_WHERE_TOKENS_ARE = (
    "Ray looks for it in RAY_AUTH_TOKEN, then in the file that RAY_AUTH_TOKEN_PATH names, then in ~/.ray/auth_token:"
    " copy the token of the cluster's head there"
)


class RayClient:
    """Calls to one head. Raises ClusterError when it cannot be reached or refuses."""

    def __init__(self, address: str, *, token_path: Path | None = None, agent_wait_s: float = 20.0) -> None:
        self.address = (address if "://" in address else f"http://{address}").rstrip("/")
        self._session = requests.Session()
        self._session.trust_env = (
            "://" in address
        )  # a proxy would not know the hosts of a cluster that is named without http://
        self._token_path = token_path
        self._agent_wait_s = agent_wait_s
        self._is_open = False

    # -- the cluster -----------------------------------------------------------------------------------------------

    def version(self) -> str:
        """The version of Ray there."""
        return str(self._json("GET", "/api/version")["ray_version"])

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes that are alive: `resources_total`, `labels`, `node_ip`, ..."""
        answer = self._json("GET", "/api/v0/nodes", params={"detail": "1", "limit": "10000"})
        return [node for node in answer["data"]["result"]["result"] if node["state"] == "ALIVE"]

    # -- jobs ------------------------------------------------------------------------------------------------------

    def upload(self, name: str, content: bytes) -> None:
        """Store a package, unless it is there already."""
        path = f"/api/packages/gcs/{name}"
        if self._call("GET", path, accept=(200, 404)).status_code == 404:
            self._call("PUT", path, data=content)

    def submit(self, job: Mapping[str, Any]) -> bool:
        """Start a job; false where its `submission_id` is used already. A head that has just started is waited for."""
        asked_at = time.monotonic()
        while _NO_AGENT in (answer := self._call("POST", "/api/jobs/", json=job, accept=(200, 500))).text:
            if time.monotonic() - asked_at > self._agent_wait_s:
                break
            time.sleep(_LOOK_S)
        if answer.status_code == 200:
            return True
        if "already exists" in answer.text:
            return False
        raise ClusterError(f"the Ray cluster at {self.address} did not start the job: {_last_line(answer.text)}")

    def jobs(self) -> list[dict[str, Any]]:
        """The details of all submitted jobs."""
        found: list[dict[str, Any]] = self._json("GET", "/api/jobs/")
        return [job for job in found if job.get("submission_id")]

    def job(self, submission_id: str) -> dict[str, Any] | None:
        """The details of a job; None for one that the head does not know."""
        answer = self._call("GET", f"/api/jobs/{submission_id}", accept=(200, 404))
        return None if answer.status_code == 404 else dict(answer.json())

    def stop(self, submission_id: str) -> None:
        """Ask a job to end: SIGTERM now, SIGKILL after its RAY_JOB_STOP_WAIT_TIME_S."""
        self._call("POST", f"/api/jobs/{submission_id}/stop")

    def log(self, submission_id: str, node_id: str) -> bytes:
        """The driver's log so far."""
        return self._call("GET", "/api/v0/logs/file", params=_log_file(submission_id, node_id)).content

    def follow(self, submission_id: str, node_id: str) -> Iterator[bytes]:
        """The driver's log from its start, in pieces, until the connection ends: it may outlive the job, or the job it."""
        parameters = {**_log_file(submission_id, node_id), "interval": "1"}
        timeout = (TIMEOUT_S[0], None)  # a job may be silent for long
        with self._call("GET", "/api/v0/logs/stream", params=parameters, stream=True, timeout=timeout) as answer:
            try:
                yield from answer.iter_content(chunk_size=None)
            except requests.RequestException as error:
                raise ClusterError(f"the connection to {self.address} was lost: {_reason(error)}") from error

    # -- HTTP ------------------------------------------------------------------------------------------------------

    def _json(self, method: str, path: str, **arguments: Any) -> Any:
        answer = self._call(method, path, accept=(200, 404), **arguments)
        if answer.status_code == 200:
            with suppress(ValueError):
                return answer.json()
        raise ClusterError(f"{self.address} answers, but not as a Ray dashboard does{_HINT}")

    def _call(self, method: str, path: str, *, accept: tuple[int, ...] = (200,), **arguments: Any) -> requests.Response:
        self._authenticate()
        answer = self._send(method, path, **arguments)
        match answer.status_code:
            case 401:
                raise ClusterError(
                    f"the Ray cluster at {self.address} asks for a token, and none was found. {_WHERE_TOKENS_ARE}"
                )
            case 403:
                raise ClusterError(
                    f"the Ray cluster at {self.address} refuses the token from {self._token()[1]}. {_WHERE_TOKENS_ARE}"
                )
            case 413:
                raise ClusterError(f"the Ray cluster at {self.address} refuses so large an upload: ship fewer images")
            case status if status not in accept:
                raise ClusterError(
                    f"the Ray cluster at {self.address} answered {status} to {method} {path}: {_last_line(answer.text)}"
                )
        return answer

    def _send(self, method: str, path: str, **arguments: Any) -> requests.Response:
        try:
            return self._session.request(method, f"{self.address}{path}", **{"timeout": TIMEOUT_S, **arguments})
        except requests.RequestException as error:
            raise ClusterError(
                f"the Ray cluster at {self.address} cannot be reached: {_reason(error)}{_HINT}"
            ) from error

    def _authenticate(self) -> None:
        """Send a token from now on, if the head asks for one: it is not shown to others."""
        if self._is_open:
            return
        answer = self._send("GET", "/api/authentication_mode")
        if answer.status_code == 200 and _mode(answer) == "token" and (token := self._token()[0]):
            self._session.headers["Authorization"] = f"Bearer {token}"
        self._is_open = True

    def _token(self) -> tuple[str, str]:
        """The token, and where it comes from. Raises ClusterError for a file that is named and cannot be read."""
        if self._token_path is None and (token := os.environ.get("RAY_AUTH_TOKEN", "").strip()):
            return token, "RAY_AUTH_TOKEN"
        named = self._token_path or os.environ.get("RAY_AUTH_TOKEN_PATH")
        path = Path(named).expanduser() if named else Path.home() / ".ray" / "auth_token"
        try:
            return path.read_text(encoding="utf-8").strip(), str(path)
        except OSError as error:
            if named:
                raise ClusterError(f"the token file {path} cannot be read: {error.strerror or error}") from None
            return "", ""


_HINT = (
    ". The address is that of the head's dashboard, such as http://head:8265: is the head started with ray[default] and"
    " --dashboard-host, or is a tunnel open (ssh -L 8265:localhost:8265 head)?"
)


def _log_file(submission_id: str, node_id: str) -> dict[str, str]:
    return {"node_id": node_id, "filename": f"job-driver-{submission_id}.log", "lines": str(_LINES_OF_ALL)}


def _mode(answer: requests.Response) -> str:
    """The authentication mode that a head requires; "" for an answer that is not a head's, or an old one's."""
    try:
        return str(answer.json().get("authentication_mode", ""))
    except (ValueError, AttributeError):
        return ""


def _reason(error: requests.RequestException) -> str:
    match error:
        case requests.ConnectTimeout():
            return f"no connection within {TIMEOUT_S[0]:.0f} s"
        case requests.ReadTimeout():
            return f"no answer within {TIMEOUT_S[1]:.0f} s"
        case requests.ConnectionError():
            return _cause(error) or "no connection"
        case _:
            return str(error)


def _cause(error: BaseException) -> str:
    """Message of the first error of a chain, such as "Connection refused"; those that it led to quote each other."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    if isinstance(error, HTTPException):
        return "what listens there does not speak HTTP"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"

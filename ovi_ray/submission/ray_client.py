"""Ray's Jobs API over HTTP (Ray 2.60), with `requests` alone.

What a caller must know: a used submission id answers 500 for as long as the head lives; uploads end at 100 MiB; logs are read
with /api/v0/logs, which passes any bytes, because /api/jobs/ID/logs answers 500 once a log holds bytes that are not UTF-8.
"""

import io
import ipaddress
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar
from urllib.parse import urlsplit, urlunsplit

import requests
import urllib3
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from ovi_ray.errors import ClusterError, hide_passwords
from ovi_ray.serving.loopback import is_loopback
from ovi_ray.submission.connections import cause_of
from ovi_ray.submission.ray_token import Token, find_token
from ovi_ray.submission.states import JobState

TIMEOUT_S = (5.0, 20.0)  # to connect or to send a piece, and between two pieces of an answer
ANSWER_S = 25.0
"""Seconds for the whole of an answer that is not a log."""
MAX_ANSWER_BYTES = 200_000_000  # of a cluster of ten thousand nodes: about 50 MB
_MAX_REASON_CHARS = 300
_PIECE_BYTES = 65_536
_MAX_TIME_MS = 253_402_300_799_000  # the end of the year 9999
_LINES_OF_ALL = -1
_NO_AGENT = "No available agent"  # the head's own agent, which starts jobs, comes up after the dashboard
_LOOK_S = 1.0
_TITLE = re.compile(r"<title[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)
_WHERE_TOKENS_ARE = (
    "Ray looks for it in RAY_AUTH_TOKEN, then in the file that RAY_AUTH_TOKEN_PATH names, then in ~/.ray/auth_token:"
    " copy the token of the cluster's head there"
)
_ADDRESS_EXPECTED = "the address of the head's dashboard, such as http://head:8265 or 10.0.0.1:8265"
_T = TypeVar("_T")


class _Part(BaseModel):
    """The part of an answer that is used."""

    model_config = ConfigDict(frozen=True)


class Node(_Part):
    """A node of the cluster."""

    state: str
    resources_total: dict[str, float] | None = None


class RayJob(_Part):
    """A job as Ray's head describes it; one that was not submitted has no id."""

    submission_id: str | None = None
    status: Literal["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED"]
    metadata: dict[str, Any] | None = None
    driver_node_id: str | None = None
    driver_exit_code: int | None = None
    message: str | None = None
    start_time: int | None = Field(None, ge=0, le=_MAX_TIME_MS)
    """In milliseconds since 1970, UTC."""

    @property
    def state(self) -> JobState:
        """Its state, in the words of all targets."""
        return JobState[self.status]

    @property
    def own(self) -> Mapping[str, Any]:
        """Its metadata; empty for a job that has none."""
        return self.metadata or {}


class _Mode(_Part):
    authentication_mode: str


class _Version(_Part):
    ray_version: str


class _NodeList(_Part):
    result: list[Node]


class _NodeResult(_Part):
    result: _NodeList


class _Nodes(_Part):
    data: _NodeResult


def checked_address(given: str) -> str:
    """An address, without the place in the page that a browser adds. Raises ValueError for one that names no dashboard."""
    has_scheme = "://" in given
    try:
        parts = urlsplit(given if has_scheme else f"//{given}")
        is_one = parts.port != 0 and _names_a_host(parts.hostname or "") and not parts.query
    except ValueError:  # a bracket that is not closed, a port that is no number or above 65535
        raise ValueError(_ADDRESS_EXPECTED) from None
    if parts.username is not None:
        raise ValueError(
            f"{_ADDRESS_EXPECTED}, without a user or password: they would be shown, and Ray asks for a token"
        )
    if not is_one or (has_scheme and parts.scheme not in ("http", "https")):
        raise ValueError(_ADDRESS_EXPECTED)
    return urlunsplit(parts._replace(fragment="")).rstrip("/").removeprefix("" if has_scheme else "//")


def _names_a_host(host: str) -> bool:
    if ":" in host:
        return _is_ip(host)
    try:
        return re.fullmatch(r"[\w.-]+", host) is not None and bool(host.rstrip(".").encode("idna"))
    except UnicodeError:  # a label that is empty or too long
        return False


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


class RayClient:
    """Calls to one head. Raises ClusterError when it cannot be reached or refuses."""

    def __init__(
        self,
        address: str,
        *,
        token_path: Path | None = None,
        agent_wait_s: float = 20.0,
        timeout_s: tuple[float, float] = TIMEOUT_S,
    ) -> None:
        self.address = (address if "://" in address else f"http://{address}").rstrip("/")
        self._session = requests.Session()
        self._session.trust_env = (
            "://" in address
        )  # a proxy would not know the hosts of a cluster that is named without http://
        self._token_path = token_path
        self._agent_wait_s = agent_wait_s
        self._timeout_s = timeout_s
        self._is_open = False
        self._asks_for_token = False
        self._token: Token | None = None

    # -- the cluster -----------------------------------------------------------------------------------------------

    def version(self) -> str:
        """The version of Ray there."""
        return self._read(_Version, "/api/version").ray_version

    def is_open_to_all(self) -> bool:
        """Whether the head asks for no token, at an address that other machines may reach."""
        self._authenticate()
        return not self._asks_for_token and not is_loopback(urlsplit(self.address).hostname or "")

    def nodes(self) -> list[Node]:
        """The nodes that are alive."""
        answer = self._read(_Nodes, "/api/v0/nodes", params={"detail": "1", "limit": "10000"})
        return [node for node in answer.data.result.result if node.state == "ALIVE"]

    # -- jobs ------------------------------------------------------------------------------------------------------

    def upload(self, name: str, content: bytes) -> None:
        """Store a package, unless it is there already."""
        path = f"/api/packages/gcs/{name}"
        if self._call("GET", path, accept=(200, 404)).status == 404:
            self._call("PUT", path, data=io.BytesIO(content))  # in pieces: the time to send is that of one of them

    def submit(self, job: Mapping[str, Any]) -> bool:
        """Start a job; false where its `submission_id` is used already. A head that has just started is waited for."""
        asked_at = time.monotonic()
        while _NO_AGENT in (answer := self._call("POST", "/api/jobs/", json=job, accept=(200, 500))).text:
            if time.monotonic() - asked_at > self._agent_wait_s:
                break
            time.sleep(_LOOK_S)
        if answer.status == 200:
            return True
        if "already exists" in answer.text:
            return False
        raise ClusterError(f"the Ray cluster at {self.address} did not start the job: {answer.reason}")

    def jobs(self) -> list[RayJob]:
        """The details of all submitted jobs."""
        return [job for job in self._read(list[RayJob], "/api/jobs/") if job.submission_id]

    def job(self, submission_id: str) -> RayJob | None:
        """The details of a job; None for one that the head does not know."""
        path = f"/api/jobs/{submission_id}"
        answer = self._call("GET", path, accept=(200, 404))
        return None if answer.status == 404 else self._parsed(RayJob, answer)

    def stop(self, submission_id: str) -> None:
        """Ask a job to end: SIGTERM now, SIGKILL after its RAY_JOB_STOP_WAIT_TIME_S."""
        self._call("POST", f"/api/jobs/{submission_id}/stop")

    def log(self, submission_id: str, node_id: str) -> Iterator[bytes]:
        """The driver's log so far, in pieces."""
        return self._pieces("/api/v0/logs/file", _log_file(submission_id, node_id), chunk_bytes=_PIECE_BYTES)

    def follow(self, submission_id: str, node_id: str) -> Iterator[bytes]:
        """The driver's log from its start, in pieces, until the connection ends: it may outlive the job, or the job it."""
        parameters = {**_log_file(submission_id, node_id), "interval": "1"}
        patience = (self._timeout_s[0], None)  # a job may be silent for long
        return self._pieces("/api/v0/logs/stream", parameters, chunk_bytes=None, timeout=patience)

    # -- HTTP ------------------------------------------------------------------------------------------------------

    def _pieces(
        self, path: str, parameters: Mapping[str, str], *, chunk_bytes: int | None, **options: Any
    ) -> Iterator[bytes]:
        """The pieces of an answer, of a size or as they come."""
        self._authenticate()
        with self._connected("GET", path, params=parameters, **options) as response:
            if response.status_code != 200:
                self._check(_Answer.read(response), "GET", path, (200,))
            yield from response.iter_content(chunk_bytes)

    def _read(self, kind: type[_T], path: str, **arguments: Any) -> _T:
        """An answer in JSON of a form that is expected."""
        return self._parsed(kind, self._call("GET", path, accept=(200, 404), **arguments))

    def _parsed(self, kind: type[_T], answer: "_Answer") -> _T:
        if answer.status == 200:
            with suppress(ValueError):  # pydantic's, too
                return TypeAdapter(kind).validate_json(answer.content)
        raise ClusterError(f"{self.address} answers, but not as a Ray dashboard does{_HINT}")

    def _call(self, method: str, path: str, *, accept: tuple[int, ...] = (200,), **arguments: Any) -> "_Answer":
        self._authenticate()
        answer = self._send(method, path, **arguments)
        self._check(answer, method, path, accept)
        return answer

    def _check(self, answer: "_Answer", method: str, path: str, accept: tuple[int, ...]) -> None:
        """Raises ClusterError for a status that is not accepted."""
        match answer.status:
            case 401:
                raise ClusterError(
                    f"the Ray cluster at {self.address} asks for a token, and none was found. {_WHERE_TOKENS_ARE}"
                )
            case 403 if self._token is not None:
                raise ClusterError(
                    f"the Ray cluster at {self.address} refuses the token from {self._token.source}. {_WHERE_TOKENS_ARE}"
                )
            case 413:
                raise ClusterError(f"the Ray cluster at {self.address} refuses so large an upload: ship fewer images")
            case status if status in accept:
                return
            case _ if answer.leads_to:
                raise ClusterError(
                    f"{self.address} leads to {hide_passwords(answer.leads_to)}, which is not followed, since a token belongs"
                    " to the address that was given: give the address of the dashboard itself"
                )
            case status:
                raise ClusterError(
                    f"the Ray cluster at {self.address} answered {status} to {method} {path}: {answer.reason}"
                )

    def _send(self, method: str, path: str, **arguments: Any) -> "_Answer":
        """The answer, whatever its status."""
        with self._connected(method, path, **arguments) as response:
            return _Answer.read(response)

    @contextmanager
    def _connected(self, method: str, path: str, **arguments: Any) -> Iterator[requests.Response]:
        """The beginning of an answer; the block may read it. No redirection is followed."""
        url = f"{self.address}{path}"
        how = {"timeout": self._timeout_s, "stream": True, "allow_redirects": False, **arguments}
        try:
            with self._session.request(method, url, **how) as response:
                yield response
        except (
            requests.RequestException,
            urllib3.exceptions.HTTPError,
        ) as error:  # the latter for a proxy's odd address
            why = self._of_the_proxy(error, url) or _reason(error)
            raise ClusterError(f"the Ray cluster at {self.address} cannot be reached: {why}{_HINT}") from error

    def _of_the_proxy(self, error: Exception, url: str) -> str:
        """The reason of an error that a proxy has led to; "" for others. The address itself was checked before."""
        proxy = requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url))
        if proxy is None or not isinstance(error, _OF_PROXIES):
            return ""
        shown = hide_passwords(proxy if "://" in proxy else f"http://{proxy}")
        return (
            f"through the proxy {shown}, which the environment names: {cause_of(error)}; with"
            f" NO_PROXY={urlsplit(url).hostname} it is not used"
        )

    def _authenticate(self) -> None:
        """Send a token from now on, if the head asks for one: it is not shown to others."""
        if self._is_open:
            return
        answer = self._send("GET", "/api/authentication_mode")
        self._asks_for_token = answer.status == 200 and _mode(answer) == "token"
        if self._asks_for_token:
            self._token = find_token(self._token_path)
            self._session.auth = self._token
        self._is_open = True


@dataclass(kw_only=True, slots=True, frozen=True)
class _Answer:
    """An answer that was read to its end."""

    status: int
    content: bytes
    leads_to: str
    """The address that it redirects to; "" for none."""
    phrase: str
    """Of its status, such as "Bad Gateway"."""

    @classmethod
    def read(cls, response: requests.Response) -> Self:
        """Raises ClusterError for one that is longer than any of a dashboard's, or that does not end."""
        content, ends_at = bytearray(), time.monotonic() + ANSWER_S
        declared = response.headers.get("Content-Length", "")
        size = int(declared) if declared.isdecimal() else 0
        while size <= MAX_ANSWER_BYTES and time.monotonic() < ends_at:
            piece = response.raw.read1(_PIECE_BYTES, decode_content=True)  # what is there, and not a whole piece
            if not piece:
                break
            content += piece
            size = max(size, len(content))
        else:
            so_far = f"{len(content) / 1e6:.1f} of {size / 1e6:.1f} MB so far"
            raise ClusterError(f"{response.url} answers with more than a Ray dashboard does, {so_far}{_HINT}")
        return cls(
            status=response.status_code,
            content=bytes(content),
            leads_to=response.headers.get("Location", "") if response.is_redirect else "",
            phrase=response.reason or "",
        )

    @property
    def text(self) -> str:
        """The content as text."""
        return self.content.decode(errors="replace")

    @property
    def reason(self) -> str:
        """The last line of the answer, as of a traceback, or the title of a page."""
        if (title := _TITLE.search(self.text)) is not None:
            told = title[1].strip()
        else:
            told = next((line.strip() for line in reversed(self.text.splitlines()) if line.strip()), "") or self.phrase
        return told[:_MAX_REASON_CHARS] or "no reason given"


_HINT = (
    ". The address is that of the head's dashboard, such as http://head:8265: is the head started with ray[default] and"
    " --dashboard-host, or is a tunnel open (ssh -L 8265:localhost:8265 head)?"
)


_OF_PROXIES = (
    requests.exceptions.ProxyError,
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    urllib3.exceptions.LocationValueError,
)
_ON_TLS = "without TLS an address begins with http://; REQUESTS_CA_BUNDLE names a file of certificates to trust"


def _log_file(submission_id: str, node_id: str) -> dict[str, str]:
    return {"node_id": node_id, "filename": f"job-driver-{submission_id}.log", "lines": str(_LINES_OF_ALL)}


def _mode(answer: _Answer) -> str:
    """The authentication mode that a head requires; "" for an answer that is not a head's, or an old one's."""
    try:
        return _Mode.model_validate_json(answer.content).authentication_mode
    except ValueError:
        return ""


def _reason(error: Exception) -> str:
    match error:
        case requests.ConnectTimeout():
            return f"no connection within {TIMEOUT_S[0]:.0f} s"
        case requests.ReadTimeout() | urllib3.exceptions.ReadTimeoutError():
            return f"no answer within {TIMEOUT_S[1]:.0f} s"
        case requests.exceptions.SSLError():
            return f"{cause_of(error)}; {_ON_TLS}"
        case requests.exceptions.ChunkedEncodingError() | urllib3.exceptions.ProtocolError():
            return cause_of(error)
        case requests.exceptions.ContentDecodingError() | urllib3.exceptions.DecodeError():
            return "an answer that is not in the encoding that it names"
        case requests.ConnectionError():
            return cause_of(error) or "no connection"
        case _:
            return str(error)

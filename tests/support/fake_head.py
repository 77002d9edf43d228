"""A Ray head as its Jobs API shows it (Ray 2.60): jobs that a test moves from state to state, tokens, packages, logs."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass(kw_only=True, slots=True)
class FakeHead:
    """State of the head. Tests change it while it answers."""

    address: str = ""
    token: str = ""
    """That every call must bring; "" for none."""
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By submission id."""
    logs: dict[str, bytes] = field(default_factory=dict)
    """Of each submission id, so far."""
    packages: dict[str, bytes] = field(default_factory=dict)
    nodes: list[dict[str, Any]] = field(
        default_factory=lambda: [{"state": "ALIVE", "resources_total": {"CPU": 4.0}, "labels": {}}]
    )
    default_log: bytes = b""
    """The log of a job that `logs` has none for."""
    first_state: tuple[str, int | None] = ("RUNNING", None)
    """Status and exit code of a new job."""
    starting: int = 0
    """Times that a job cannot be started yet."""
    upload_pause_s: float = 0.0
    """Before each sixteenth of an upload is read."""
    refusal: int = 0
    """A status that every call is answered with; 0 for none."""
    broken: str = "/none"
    """The beginning of paths that are answered by 503."""
    stream_bytes: int = 1 << 30
    """Bytes of a followed log after which its connection is closed; each further connection lasts for as many more."""
    streams: int = 0
    """Connections that followed a log."""
    requests: list[str] = field(default_factory=list)

    def log_of(self, submission_id: str) -> bytes:
        """The log of a job so far."""
        return self.logs.get(submission_id, self.default_log)

    def end(self, submission_id: str, status: str, code: int | None) -> None:
        """Let a job end."""
        self.jobs[submission_id] |= {"status": status, "driver_exit_code": code, "message": f"Job {status.lower()}."}


@contextmanager
def running_head(head: FakeHead, *, host: str = "127.0.0.1") -> Iterator[FakeHead]:
    """Serve on a port of loopback, or of another address, which `address` names, for the time of the block."""
    server = ThreadingHTTPServer((host, 0), type("Handler", (_Handler,), {"head": head}))
    server.daemon_threads = True
    head.address = f"{host}:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield head
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    head: FakeHead
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path == "/api/authentication_mode":
            self._json({"authentication_mode": "token" if self.head.token else "disabled"})
            return
        if not self._is_allowed():
            return
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        match parts.path.strip("/").split("/"):
            case ["api", "version"]:
                self._json({"version": "4", "ray_version": "2.60.0"})
            case ["api", "v0", "nodes"]:
                self._json({"result": True, "data": {"result": {"result": self.head.nodes}}})
            case ["api", "jobs"]:
                driver = {"submission_id": None, "status": "RUNNING", "metadata": {}}
                self._json([driver, *self.head.jobs.values()])
            case ["api", "jobs", name] if name in self.head.jobs:
                self._json(self.head.jobs[name])
            case ["api", "packages", "gcs", name]:
                self._answer(200 if name in self.head.packages else 404, b"")
            case ["api", "v0", "logs", "file"]:
                self._answer(200, self.head.log_of(_log(query)))
            case ["api", "v0", "logs", "stream"]:
                self._stream(_log(query))
            case _:
                self._answer(404, b"not found")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        if not self._is_allowed():
            return
        match self.path.strip("/").split("/"):
            case ["api", "jobs"] if body["submission_id"] in self.head.jobs:
                self._answer(500, f"Traceback ...\nValueError: Job {body['submission_id']} already exists.".encode())
            case ["api", "jobs"] if self.head.starting > 0:
                self.head.starting -= 1
                self._answer(
                    500, b"Traceback ...\nRuntimeError: No available agent to submit job, please try again later."
                )
            case ["api", "jobs"]:
                status, code = self.head.first_state
                job = {"status": status, "driver_exit_code": code, "message": "", "driver_node_id": "n1"}
                self.head.jobs[body["submission_id"]] = job | {"start_time": 1000 * (1 + len(self.head.jobs))} | body
                self._json({"submission_id": body["submission_id"]})
            case ["api", "jobs", name, "stop"]:
                self.head.end(name, "STOPPED", None)
                self._json({"stopped": True})
            case _:
                self._answer(404, b"not found")

    def do_PUT(self) -> None:
        size, content = int(self.headers["Content-Length"]), b""
        while rest := size - len(content):
            time.sleep(self.head.upload_pause_s)
            content += self.rfile.read(min(rest, size // 16 + 1))
        if self._is_allowed():
            self.head.packages[self.path.rpartition("/")[2]] = content
            self._answer(200, b"")

    def _is_allowed(self) -> bool:
        self.head.requests.append(f"{self.command} {urlsplit(self.path).path}")
        if self.path.startswith(self.head.broken):
            self._answer(503, b"Service Unavailable")
        elif self.head.refusal:
            self._answer(self.head.refusal, b"Traceback ...\nRuntimeError: out of order")
        elif self.head.token and "Authorization" not in self.headers:
            self._answer(401, b"Unauthorized: Missing authentication token")
        elif self.head.token and self.headers["Authorization"] != f"Bearer {self.head.token}":
            self._answer(403, b"Forbidden: Invalid authentication token")
        else:
            return True
        return False

    def _stream(self, name: str) -> None:
        """The log as it grows, whoever has ended, until the connection is closed."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Connection", "close")
        self.end_headers()
        self.head.streams += 1
        sent, last = 0, self.head.streams * self.head.stream_bytes
        while sent < last:
            piece = self.head.log_of(name)[sent:last]
            try:
                if piece:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            except OSError:  # the client has gone
                return
            sent += len(piece)
            time.sleep(0.02)

    def _json(self, content: object) -> None:
        self._answer(200, json.dumps(content).encode())

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


def _log(query: dict[str, str]) -> str:
    return query["filename"].removeprefix("job-driver-").removesuffix(".log")

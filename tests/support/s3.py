"""An S3 server for tests: moto's, in a process of its own on this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import ProxyHandler, Request, build_opener

import boto3

from tests.support.waiting import PATIENCE_S

_ask = build_opener(ProxyHandler({})).open  # never through a proxy


class S3Server:
    """A running server. It accepts any credentials."""

    def __init__(self, port: int, pid: int) -> None:
        self._pid = pid
        self.endpoint = f"http://127.0.0.1:{port}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self._buckets = 0

    def new_bucket(self, region: str = "us-east-1") -> str:
        """The URI of a new bucket, for processes with `environment`."""
        self._buckets += 1
        name = f"bucket-{self._buckets}"
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=region,
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        elsewhere = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        client.create_bucket(Bucket=name, **elsewhere)
        return f"s3://{name}"

    def requests(self, method: str = "GET") -> list[str]:
        """Paths of the objects that were requested since `forget_requests`."""
        lines = self._admin("recorder/download-recording", "GET").splitlines()
        asked = [json.loads(line) for line in lines if line.strip()]
        return [request["url"].split("/", 3)[3] for request in asked if request["method"] == method]

    def forget_requests(self) -> None:
        """Start a new recording for `requests`."""
        self._admin("recorder/reset-recording", "POST")
        self._admin("recorder/start-recording", "POST")

    @contextmanager
    def refusing_credentials(self) -> Iterator[None]:
        """For the time of the block the server refuses all credentials."""
        self._admin("reset-auth", "POST", b"0")
        try:
            yield
        finally:
            self._admin("reset-auth", "POST", b"inf")

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """For the time of the block the server accepts connections and never answers."""
        os.kill(self._pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._pid, signal.SIGCONT)

    def _admin(self, path: str, method: str, content: bytes | None = None) -> str:
        headers = {"Content-Type": "text/plain"}
        request = Request(f"{self.endpoint}/moto-api/{path}", data=content, headers=headers, method=method)
        with _ask(request, timeout=PATIENCE_S) as answer:
            return answer.read().decode()


@contextmanager
def running_s3(folder: Path) -> Iterator[S3Server]:
    """A server for the time of the block; `folder` gets its log."""
    port = free_port()
    command = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)]
    with (folder / "s3.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        server = S3Server(port, process.pid)
        _wait_for(server, process, folder / "s3.log")
        yield server
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


class Front(ThreadingHTTPServer):
    """A server in front of another one. It answers requests for parts of an object when so many of them wait, not before."""

    def __init__(self, endpoint: str, together: int) -> None:
        super().__init__(("127.0.0.1", 0), _FrontHandler)
        self.endpoint = endpoint
        self.together = threading.Barrier(together, timeout=PATIENCE_S)
        self.parts: list[str] = []
        """The ranges that were asked for."""


class _FrontHandler(BaseHTTPRequestHandler):
    server: Front

    def do_GET(self) -> None:
        if part := self.headers.get("Range"):
            self.server.parts.append(part)
            self.server.together.wait()
        request = Request(f"{self.server.endpoint}{self.path}", headers=dict(self.headers))
        with _ask(request, timeout=PATIENCE_S) as answer:
            self.send_response_only(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.read())

    def log_request(self, *_: object) -> None:
        """Nothing: the server behind has a log."""


@contextmanager
def running_front(server: S3Server, *, together: int) -> Iterator[Front]:
    """A server in front of another one for the time of the block."""
    with Front(server.endpoint, together) as front:
        thread = threading.Thread(target=front.serve_forever)
        thread.start()
        try:
            yield front
        finally:
            front.together.abort()
            front.shutdown()
            thread.join()


def free_port() -> int:
    """A port of loopback on which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _wait_for(server: S3Server, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            _ask(server.endpoint, timeout=1).close()
            return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the S3 server does not start: {log.read_text()}") from error
            time.sleep(0.05)

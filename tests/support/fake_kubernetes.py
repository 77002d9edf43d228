"""A Kubernetes API server with KubeRay and Kueue, as a client sees it over HTTP: a test moves its jobs from state to state.

RayJobs go through the checks of the real thing: the models of `ovi_ray.submission.kuberay`, and names that are used once.
"""

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from pydantic import ValidationError

from ovi_ray.submission.kuberay import RayJob

TOKEN = "a-token-of-the-tests"


@dataclass(kw_only=True, slots=True)
class FakeKubernetes:
    """State of the server. Tests change it while it answers."""

    url: str = ""
    ray_jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name."""
    config_maps: dict[str, dict[str, Any]] = field(default_factory=dict)
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    logs: dict[str, bytes] = field(default_factory=dict)
    """Of each pod, so far."""
    claims: set[str] = field(default_factory=lambda: {"shared"})
    queues: set[str] = field(default_factory=lambda: {"night"})
    workloads: dict[str, dict[str, Any]] = field(default_factory=dict)
    node_resources: dict[str, str] | None = field(default_factory=lambda: {"nvidia.com/gpu": "8", "amd.com/gpu": "8"})
    """Of the only node; None where the user may not see nodes."""
    has_kuberay: bool = True
    has_kueue: bool = True
    starts_jobs: bool = True
    """Whether a new job runs at once."""
    refusal: tuple[int, str] | None = None
    """A status and message that every call is answered with."""
    piece_bytes: int = 1 << 20
    """Bytes of a followed log after which its connection is closed."""
    requests: list[str] = field(default_factory=list)

    def kubeconfig(self, folder: Path, *, namespace: str | None = "video") -> Path:
        """A file for clients, with a second context whose server does not answer."""
        context = {"cluster": "fake", "user": "me"} | ({"namespace": namespace} if namespace else {})
        path = folder / "kubeconfig"
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "fake",
                    "clusters": [
                        {"name": "fake", "cluster": {"server": self.url}},
                        {"name": "gone", "cluster": {"server": "http://127.0.0.1:1"}},
                    ],
                    "contexts": [
                        {"name": "fake", "context": context},
                        {"name": "gone", "context": {"cluster": "gone", "user": "me"}},
                    ],
                    "users": [{"name": "me", "user": {"token": TOKEN}}],
                }
            )
        )
        return path

    def report(self, name: str, deployment: str, ray_state: str = "", **more: Any) -> None:
        """Let the operator report a state."""
        self.ray_jobs[name]["status"] = {"jobDeploymentStatus": deployment, "jobStatus": ray_state, **more}

    def add_pod(self, name: str, *, labels: dict[str, str], log: bytes = b"", **status: Any) -> None:
        """A pod with a log."""
        created = f"2026-01-01T00:00:{len(self.pods):02}Z"
        self.pods[name] = {"metadata": {"name": name, "labels": labels, "creationTimestamp": created}, "status": status}
        self.logs[name] = log

    def run(self, name: str, log: bytes) -> None:
        """Let a job run, whose driver has printed this."""
        self.report(name, "Running", "RUNNING", rayClusterName=f"{name}-x")
        self.add_pod(f"{name}-submitter", labels={"job-name": name}, log=log)

    def end(self, name: str, code: int) -> None:
        """Let a job end as the script of the job and the operator would."""
        self.logs[f"{name}-submitter"] += b"ovi-ray: the job ended with exit code %d\nJob '%b' ended\n" % (
            code,
            name.encode(),
        )
        if code in (0, 1, 2):
            self.report(name, "Complete", "SUCCEEDED")
        else:
            self.report(name, "Failed", "FAILED", reason="AppFailed", message=f"exit code {code}", failed=1)


@contextmanager
def running_kubernetes(fake: FakeKubernetes) -> Iterator[FakeKubernetes]:
    """Serve on a port of loopback for the time of the block."""
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": fake, "lock": threading.Lock()})
    )
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    fake: FakeKubernetes
    lock: threading.Lock
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if (parts := self._parts()) is None:
            return
        fake = self.fake
        match parts:
            case ["apis"]:
                kueue = {"groupVersion": "kueue.x-k8s.io/v1beta1", "version": "v1beta1"}
                groups = [{"name": "kueue.x-k8s.io", "versions": [kueue], "preferredVersion": kueue}]
                self._json({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups if fake.has_kueue else []})
            case ["apis", "ray.io", "v1", "namespaces", _, "rayjobs"] if fake.has_kuberay:
                self._json({"items": [job for job in fake.ray_jobs.values() if self._is_selected(job)]})
            case ["apis", "kueue.x-k8s.io", "v1beta1", "namespaces", _, "workloads"] if fake.has_kueue:
                self._json({"items": list(fake.workloads.values())})
            case ["apis", "kueue.x-k8s.io", "v1beta1", "namespaces", _, "localqueues", name] if name in fake.queues:
                self._json({"metadata": {"name": name}})
            case ["api", "v1", "nodes"] if fake.node_resources is None:
                self._refuse(403, 'nodes is forbidden: User "me" cannot list resource "nodes"')
            case ["api", "v1", "nodes"]:
                self._json({"items": [{"status": {"allocatable": fake.node_resources}}]})
            case ["api", "v1", "namespaces", _, "persistentvolumeclaims", name] if name in fake.claims:
                self._json({"metadata": {"name": name}})
            case ["api", "v1", "namespaces", _, "pods"]:
                self._json({"items": [pod for pod in fake.pods.values() if self._is_selected(pod)]})
            case ["api", "v1", "namespaces", _, "pods", name, "log"] if name in fake.pods:
                self._log(name)
            case _:
                self._refuse(404, "the server could not find the requested resource")

    def do_POST(self) -> None:
        body = self._body()
        if (parts := self._parts()) is None:
            return
        name = body["metadata"]["name"]
        match parts:
            case ["apis", "ray.io", "v1", "namespaces", _, "rayjobs"]:
                try:
                    RayJob(**body)
                except ValidationError as error:
                    self._refuse(422, f"RayJob.ray.io {name!r} is invalid: {error}")
                    return
                self._create(self.fake.ray_jobs, {**body, "status": {}})
            case ["api", "v1", "namespaces", _, "configmaps"]:
                if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", name):
                    self._refuse(422, f"ConfigMap {name!r} is invalid")
                    return
                self._create(self.fake.config_maps, body)
            case _:
                self._refuse(404, "the server could not find the requested resource")

    def do_PATCH(self) -> None:
        change = self._body()
        if (parts := self._parts()) is None:
            return
        stores = {"rayjobs": self.fake.ray_jobs, "workloads": self.fake.workloads}
        *_, plural, name = parts
        if self.headers["Content-Type"] != "application/merge-patch+json" or name not in stores[plural]:
            self._refuse(415, "only merge patches of what exists")
            return
        _merge(stores[plural][name], change)
        self._json(stores[plural][name])

    def _create(self, store: dict[str, dict[str, Any]], body: dict[str, Any]) -> None:
        name = body["metadata"]["name"]
        with self.lock:
            if name in store:
                self._refuse(409, f"{body['kind']} {name!r} already exists")
                return
            body["metadata"] |= {"uid": f"uid-{name}", "creationTimestamp": f"2026-01-01T00:00:{len(store):02}Z"}
            if "dryRun" not in self._query():
                store[name] = body
        self._json(body, 201)
        if body["kind"] == "RayJob" and self.fake.starts_jobs and name in store:
            self.fake.run(name, b"inputs checked: 1 clips\n")

    def _log(self, name: str) -> None:
        query, fake = self._query(), self.fake
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        sent = 0
        while True:
            log = fake.logs[name]
            if "tailLines" in query:
                log = b"".join(log.splitlines(keepends=True)[-int(query["tailLines"]) :])
            if piece := log[sent : fake.piece_bytes]:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                sent += len(piece)
            is_over = any(
                job.get("status", {}).get("jobDeploymentStatus") in ("Complete", "Failed")
                for job in fake.ray_jobs.values()
            )
            if query.get("follow", "").lower() != "true" or is_over or sent >= fake.piece_bytes:
                self.wfile.write(b"0\r\n\r\n")
                return
            time.sleep(0.02)

    def _is_selected(self, resource: dict[str, Any]) -> bool:
        wanted = dict(part.split("=") for part in self._query().get("labelSelector", "").split(",") if part)
        return wanted.items() <= (resource["metadata"].get("labels") or {}).items()

    def _parts(self) -> list[str] | None:
        """The path of a request that is let in."""
        path = urlsplit(self.path).path
        self.fake.requests.append(f"{self.command} {path}")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._refuse(401, "Unauthorized")
        elif self.fake.refusal is not None:
            self._refuse(*self.fake.refusal)
        else:
            return unquote(path).strip("/").split("/")
        return None

    def _query(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}

    def _body(self) -> dict[str, Any]:
        return json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")

    def _refuse(self, status: int, message: str) -> None:
        self._json({"kind": "Status", "status": "Failure", "message": message, "code": status}, status)

    def _json(self, content: object, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


def _merge(target: dict[str, Any], change: dict[str, Any]) -> None:
    """RFC 7386."""
    for key, value in change.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict):
            _merge(target.setdefault(key, {}), value)
        else:
            target[key] = value

"""`ovi-ray submit`, `jobs`, `status`, `logs`, `stop` and `wait`, against a fake Ray head and a fake Kubernetes."""

import json
import shlex

import pytest
import yaml
from typer.testing import CliRunner

from ovi_ray.cli import app
from ovi_ray.output.progress_file import JobProgress, RunState, write_progress
from ovi_ray.protocol.progress import RemainingTime
from ovi_ray.storage.paths import to_location
from tests.support.fake_head import FakeHead, running_head
from tests.support.fake_kubernetes import FakeKubernetes, running_kubernetes
from tests.support.jobs import write_prompts


@pytest.fixture
def head(monkeypatch, tmp_path):
    """A head that starts every job at once, whose driver has checked its inputs."""
    for name in ("CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    with running_head(FakeHead()) as running:
        running.default_log = b"inputs checked: 1 clips\n"
        yield running


@pytest.fixture
def job(tmp_path):
    write_prompts(tmp_path / "p.csv", {"text_prompt": "A fox"})
    path = tmp_path / "night.yaml"
    path.write_text("text_prompt: p.csv\nckpt_dir: /models/ovi\noutput_dir: /shared/out\nsweep: {seed: 0-2}\n")
    return path


def invoke(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result


def test_a_job_is_submitted_and_found_again_by_every_command(head, job):
    submitted = json.loads(invoke("submit", job, "--to", head.address, "--json").stdout)
    job_id = submitted["job_id"]
    assert (submitted["state"], submitted["clips"]) == ("running", 3)
    assert [found["job_id"] for found in json.loads(invoke("jobs", "--json").stdout)] == [job_id]
    assert json.loads(invoke("status", job_id, "--json").stdout)["state"] == "running"
    assert json.loads(invoke("status", "/shared/out", "--json").stdout)["job_id"] == job_id
    assert invoke("logs", job_id).stdout_bytes == head.default_log
    assert json.loads(invoke("stop", job_id, "--json").stdout)["asked_to_stop"] is True
    assert json.loads(invoke("stop", job_id, "--json").stdout)["asked_to_stop"] is False
    assert json.loads(invoke("wait", job_id, "--json", code=143).stdout)["state"] == "stopped"


def test_running_jobs_are_listed_with_how_far_they_are_and_others_without(head, job, tmp_path):
    job.write_text(job.read_text().replace("/shared/out", str(tmp_path / "out")))
    (tmp_path / "out").mkdir()
    job_id = invoke("submit", job, "--to", head.address).stdout.strip()
    (found,) = json.loads(invoke("jobs", "--json").stdout)
    assert found["progress"] is None
    remaining = RemainingTime(expected_s=7200.0, low_s=7200.0, high_s=7200.0)
    times = {"started_at": "2026-01-01T00:00:00+00:00", "updated_at": "2026-01-01T01:00:00+00:00"}
    progress = JobProgress(state=RunState.RENDERING, clips=3, done=1, failed=1, remaining=remaining, **times)
    write_progress(to_location(tmp_path / "out"), progress)
    (found,) = json.loads(invoke("jobs", "--json").stdout)
    assert (found["progress"]["done"], found["progress"]["remaining"]["expected_s"]) == (1, 7200.0)
    assert "2/3" in invoke("jobs").stdout
    head.end(job_id, "SUCCEEDED", None)
    (found,) = json.loads(invoke("jobs", "--json").stdout)
    assert found["progress"] is None


def test_the_id_is_all_that_is_printed(head, job):
    output = invoke("submit", job, "--to", head.address).stdout
    (job_id,) = head.jobs
    assert output == f"{job_id}\n"


@pytest.mark.parametrize(("status", "driver", "code"), [("SUCCEEDED", None, 0), ("FAILED", 1, 1), ("FAILED", None, 3)])
def test_wait_ends_with_the_exit_code_of_the_job(head, job, status, driver, code):
    job_id = invoke("submit", job, "--to", head.address).stdout.strip()
    head.end(job_id, status, driver)
    invoke("wait", job_id, code=code)


def test_a_driver_that_cannot_start_there_is_told_by_the_submission(head, job):
    head.default_log, head.first_state = b"ckpt_dir is '/models/ovi', which is not a folder\n", ("FAILED", 2)
    result = invoke("submit", job, "--to", head.address, code=2)
    assert "which is not a folder" in result.stderr


def test_a_job_that_was_started_and_cannot_be_watched_is_told_with_its_id(head, job):
    head.broken = "/api/v0/logs"
    result = invoke("submit", job, "--to", head.address, "--json")
    submitted = json.loads(result.stdout)
    assert (submitted["state"], [submitted["job_id"]]) == ("running", list(head.jobs))
    assert "cannot be watched" in result.stderr


def test_a_job_elsewhere_is_found_with_its_target(head, job, tmp_path, monkeypatch):
    job_id = invoke("submit", job, "--to", head.address).stdout.strip()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
    invoke("status", job_id, code=2)
    invoke("status", job_id, "--to", head.address)


def test_a_target_that_does_not_answer_does_not_hide_the_others(head, job, tmp_path):
    invoke("submit", job, "--to", head.address)
    config = tmp_path / "CONFIG" / "ovi-ray"
    config.mkdir(parents=True)
    (config / "targets.yaml").write_text("gone: {kind: ray, address: '127.0.0.1:1'}\n")
    result = invoke("jobs", "--json")
    assert len(json.loads(result.stdout)) == 1
    assert "gone: " in result.stderr
    invoke("jobs", "--to", "gone", code=3)


def test_the_script_is_printed_and_nothing_submitted(head, job):
    assert invoke("submit", job, "--to", head.address, "--print").stdout.startswith("#!/bin/sh\n")
    assert head.jobs == {}


def test_options_of_the_driver_reach_it_and_bad_rows_are_told(job, tmp_path):
    write_prompts(tmp_path / "p.csv", {"text_prompt": "A fox", "seed": "1"}, {"text_prompt": "A dog", "seed": "one"})
    job.write_text("text_prompt: p.csv\nckpt_dir: /models/ovi\noutput_dir: /shared/out\n")
    options = ["--skip-bad-rows", "--metrics", "0.0.0.0:9400", "--notify", "https://chat.example/hook?a=1&b=2"]
    result = invoke("submit", job, "--to", "127.0.0.1:1", *options, "--print")
    assert shlex.split(result.stdout.splitlines()[-1])[-5:] == options
    assert "row 2" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--to", "nowhere"), 2, "'nowhere'"),
        (("--to", "127.0.0.1:1"), 3, "cannot be reached"),
        (("--to", "127.0.0.1:1", "--nodes", "2"), 2, "--nodes"),
        (("--to", "127.0.0.1:1", "--seed", "x"), 2, "--seed"),
        (("--to", "127.0.0.1:1", "--metrics", "web"), 2, "--metrics"),
        (("--to", "127.0.0.1:1", "--notify", "chat"), 2, "--notify"),
    ],
)
def test_what_cannot_be_submitted_ends_with_its_exit_code(head, job, arguments, code, words):
    assert words in invoke("submit", job, *arguments, code=code).stderr


@pytest.fixture
def kubernetes(monkeypatch, tmp_path):
    """A cluster with KubeRay, and the options for a job that needs a volume of it."""
    for name in ("CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))
    config = tmp_path / "CONFIG" / "ovi-ray"
    config.mkdir(parents=True)
    volumes = "[{claim: shared, mount_path: /shared}, {claim: shared, mount_path: /models}]"
    (config / "targets.yaml").write_text(f"farm: {{kind: kubernetes, image: 'ovi-ray:1.2.3', volumes: {volumes}}}\n")
    with running_kubernetes(FakeKubernetes()) as running:
        monkeypatch.setenv("KUBECONFIG", str(running.kubeconfig(tmp_path)))
        yield running


def test_a_job_on_kubernetes_is_looked_after_in_the_same_words(kubernetes, job):
    job_id = invoke("submit", job, "--to", "farm").stdout.strip()
    assert list(kubernetes.ray_jobs) == [job_id]
    assert json.loads(invoke("status", "/shared/out", "--json").stdout)["job_id"] == job_id
    assert [found["job_id"] for found in json.loads(invoke("jobs", "--json").stdout)] == [job_id]
    assert invoke("logs", job_id).stdout_bytes == b"inputs checked: 1 clips\n"
    assert json.loads(invoke("stop", job_id, "--json").stdout)["asked_to_stop"] is True
    kubernetes.report(job_id, "Suspended")
    invoke("wait", job_id, code=143)
    assert json.loads(invoke("submit", job, "--to", "farm", "--json").stdout)["restarts"] == 1
    kubernetes.run(job_id, b"")
    kubernetes.end(job_id, 1)
    invoke("wait", job_id, code=1)


def test_a_job_in_a_namespace_of_its_own_is_found_again_there(kubernetes, job):
    job_id = invoke("submit", job, "--to", "farm", "--namespace", "night").stdout.strip()
    assert json.loads(invoke("status", job_id, "--json").stdout)["state"] != "unknown"
    assert any("/namespaces/night/rayjobs" in request for request in kubernetes.requests)
    kubernetes.requests.clear()
    invoke("status", job_id)
    assert [request for request in kubernetes.requests if "rayjobs" in request and "/night/" not in request] == []
    assert [found["job_id"] for found in json.loads(invoke("jobs", "--json").stdout)] == [job_id]


def test_manifests_are_printed_without_a_cluster(kubernetes, job, monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    printed = list(yaml.safe_load_all(invoke("submit", job, "--to", "farm", "--nodes", 3, "--print").stdout))
    assert [document["kind"] for document in printed] == ["ConfigMap", "RayJob"]
    assert printed[1]["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] == 3
    assert "no cluster is set up" in invoke("submit", job, "--to", "farm", code=3).stderr
    assert kubernetes.requests == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "image is missing"),
        (("--image", "a:1"), "on no volume"),
        (("--image", "a b"), "--image"),
        (("--time", "1"), "--time"),
    ],
)
def test_a_job_that_kubernetes_would_not_run_is_refused(kubernetes, job, options, words):
    assert words in invoke("submit", job, "--to", "kubernetes", *options, code=2).stderr
    assert kubernetes.ray_jobs == {}

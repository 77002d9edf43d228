"""A name becomes a target, and a job is found by its id or its output folder."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import requests
import urllib3
import yaml
from typer.testing import CliRunner

from ovi_ray.cli import app
from ovi_ray.errors import ClusterError, InputError
from ovi_ray.output.lease import LOCK
from ovi_ray.output.owner import Owner
from ovi_ray.storage.paths import to_location
from ovi_ray.submission.folder import FolderJob
from ovi_ray.submission.handles import TargetJob, find_job
from ovi_ray.submission.journal import Entry, Journal
from ovi_ray.submission.ray_jobs import RayTarget
from ovi_ray.submission.slurm import SlurmTarget
from ovi_ray.submission.states import JobState
from ovi_ray.submission.targets import find_target, target_names
from tests.support.fake_head import FakeHead, running_head


@pytest.fixture
def targets(tmp_path):
    """Write targets.yaml."""

    def write(content):
        path = tmp_path / "targets.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
        return path

    return write


@pytest.fixture
def journal(tmp_path, monkeypatch):
    """An empty journal, and a home without targets."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return Journal(tmp_path / "journal")


def problems_of(call):
    with pytest.raises(InputError) as caught:
        call()
    return caught.value.problems


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("slurm", SlurmTarget),
        ("10.0.0.1:8265", RayTarget),
        ("head.example:8265", RayTarget),
        ("[fd00::2]:8265", RayTarget),
        ("https://ray.example/dashboard", RayTarget),
        ("HTTP://head.example:8265/#/jobs", RayTarget),
        ("[fe80::1%eth0]:8265", RayTarget),
        ("rack", RayTarget),
        ("alps", SlurmTarget),
    ],
)
def test_a_target_is_a_kind_an_address_or_a_name(targets, name, kind):
    file = targets({"rack": {"kind": "ray", "address": "head:8265"}, "alps": {"kind": "slurm"}})
    assert isinstance(find_target(name, file=file), kind)


@pytest.mark.parametrize("name", ["slrum", "rak", "", "ray", "ray://head:10001", "10.0.0.1", "/tmp/x"])
def test_what_is_no_target_is_told_with_those_there_are(targets, name):
    file = targets({"rack": {"kind": "ray", "address": "head:8265"}})
    (problem,) = problems_of(lambda: find_target(name, file=file))
    assert (problem.field, "rack, slurm" in problem.expected) == ("--to", True)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:99999",
        "127.0.0.1:0",
        "http://:8265",
        "http://[::1",
        "http://head:port",
        "http://a..b:8265",
        f"http://{'a' * 64}:8265",
        "http://head:8265/?page=1",
        "http://%zz:1",
        "http://me:hidden@head:8265",
        "https://me@head:8265",
        "ftp://head:8265",
    ],
)
def test_an_address_that_cannot_be_one_is_told_before_it_is_asked_and_without_a_password(targets, address):
    entry = targets({"rack": {"kind": "ray", "address": address}})
    (written,) = problems_of(lambda: find_target("rack", file=entry))
    (given,) = problems_of(lambda: find_target(address, file=targets({"rack": {"kind": "slurm"}})))
    assert (written.field, given.field) == ("rack.address", "--to")
    assert "http://head:8265" in written.expected
    assert "hidden" not in f"{written} {given}"


def test_every_problem_of_an_entry_has_its_file_line_and_key(targets):
    file = targets("alps:\n  kind: slurm\n  partitoin: a\n  nodes: 0\n  partition: a b\n  time: soon\n")
    problems = problems_of(lambda: find_target("alps", file=file))
    assert {problem.file for problem in problems} == {str(file)}
    assert {problem.field for problem in problems} == {"alps.partitoin", "alps.nodes", "alps.partition", "alps.time"}


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ("slurm", "x"),
        ({}, "x.kind"),
        ({"kind": "k8s"}, "x.kind"),
        ({"kind": "ray"}, "address"),
        ({"kind": ["ray"]}, "x.kind"),
    ],
)
def test_an_entry_without_a_kind_or_address_is_told(targets, entry, field):
    (problem,) = problems_of(lambda: find_target("x", file=targets({"x": entry})))
    assert problem.field == field


@pytest.mark.parametrize(
    ("keys", "field", "words"),
    [
        ({"partitions": {"nvidia": {"partion": "a"}}}, "x.partitions.nvidia.partion", "did you mean 'partition'?"),
        ({"partitions": {"nvidia": {"nodes": 0}}}, "x.partitions.nvidia.nodes", "a number of nodes of at least 1"),
        ({"partitions": {"intel": {"partition": "a"}}}, "x.partitions.intel", "nvidia or amd"),
        ({"partitions": {"nvidia": 5}}, "x.partitions.nvidia", "nvidia or amd"),
        ({"shard": 2}, "x.shard", "did you mean 'shards'?"),
    ],
)
def test_a_problem_within_a_key_is_told_with_its_own_place_and_words(targets, keys, field, words):
    (problem,) = problems_of(lambda: find_target("x", file=targets({"x": {"kind": "slurm", **keys}})))
    assert (problem.field, problem.line is not None, words in problem.expected) == (field, True, True)


def test_the_keys_of_a_target_are_not_those_of_a_job(targets):
    (problem,) = problems_of(lambda: find_target("x", file=targets({"x": {"kind": "ray", "address": "h:1", "q": 1}})))
    assert problem.expected == "a known key; the keys are address, python, token_path"


@pytest.mark.parametrize("content", ["", "# none yet\n", "rack:\n"])
def test_a_file_of_targets_may_be_empty(targets, content):
    assert target_names(targets(content)) == []
    assert isinstance(find_target("slurm", file=targets(content)), SlurmTarget)


def test_options_go_before_an_entry_and_those_of_another_kind_are_refused(targets):
    file = targets({"alps": {"kind": "slurm", "nodes": 2}, "rack": {"kind": "ray", "address": "head:1"}})
    find_target("alps", {"nodes": 3, "time": None}, file=file)
    (problem,) = problems_of(lambda: find_target("rack", {"nodes": 3}, file=file))
    assert (problem.file, problem.field) == ("command line", "--nodes")


def test_without_a_file_there_are_no_names(tmp_path):
    assert target_names(tmp_path / "none.yaml") == []


def entry(job_id="night-1", **changes):
    values = {"target": "127.0.0.1:1", "output_dir": "/shared/out", "submitted_at": "2026-01-01T00:00:00+00:00"}
    return Entry(job_id=job_id, **{**values, **changes})


def test_a_job_is_found_by_its_id_or_its_output_folder(journal, tmp_path):
    journal.add(entry())
    journal.add(entry("night-2", output_dir=str(tmp_path / "out"), submitted_at="2026-01-02T00:00:00+00:00"))
    (tmp_path / "jobs").mkdir()
    spelled = [str(tmp_path / "out"), f"{tmp_path}/jobs/../out"]
    for name, job_id in (("night-1", "night-1"), ("/shared/out", "night-1"), *((name, "night-2") for name in spelled)):
        found = find_job(name, to=None, journal=journal)
        assert isinstance(found, TargetJob)
        assert found.job_id == job_id
    assert [found.job_id for found in journal.entries()] == ["night-1", "night-2"]


def test_a_folder_of_a_job_of_another_machine_is_found_with_its_target(journal, tmp_path):
    job = {
        "submission_id": "night-1",
        "status": "RUNNING",
        "metadata": {"ovi_ray_job": "night-1", "ovi_ray_output": "/shared/out"},
    }
    with running_head(FakeHead()) as head:
        head.jobs["night-1"] = job
        found = find_job("/shared/out/", to=head.address, journal=journal)
        assert (found.job_id, found.status().state) == ("night-1", JobState.RUNNING)
        (problem,) = problems_of(lambda: find_job("/shared/other", to=head.address, journal=journal))
        assert problem.value == "'/shared/other'"


def test_jobs_are_listed_once_in_a_line_each_where_no_terminal_limits_it(monkeypatch, tmp_path):
    monkeypatch.delenv("COLUMNS", raising=False)
    for name in ("CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path))
    entries = tmp_path / "ovi-ray" / "targets.yaml"
    entries.parent.mkdir()
    output = f"/shared/{'long/' * 30}out"
    job = {
        "submission_id": "night-1",
        "status": "SUCCEEDED",
        "metadata": {"ovi_ray_job": "night-1", "ovi_ray_output": output},
    }
    with running_head(FakeHead()) as head:
        head.jobs["night-1"] = job
        entries.write_text(
            yaml.safe_dump({name: {"kind": "ray", "address": head.address} for name in ("rack", "same")})
        )
        _, line = CliRunner().invoke(app, ["jobs"]).stdout.splitlines()
    assert line.split() == ["night-1", "succeeded", "rack", "0", output]


def test_a_folder_of_a_job_that_was_not_submitted_is_looked_at_itself(journal, tmp_path):
    (tmp_path / "out").mkdir()
    assert isinstance(find_job(str(tmp_path / "out"), to=None, journal=journal), FolderJob)


@pytest.mark.parametrize("name", ["night-9", "Night", "x y", "s3://bucket/../out", "http://head/out"])
def test_what_names_no_job_is_told(journal, name):
    (problem,) = problems_of(lambda: find_job(name, to=None, journal=journal))
    assert problem.field == "ID"


@pytest.mark.parametrize("name", ["../night-1", "night-1/../night-1", ".night-1"])
def test_an_id_never_leaves_the_journal(journal, name):
    journal.add(entry())
    assert journal.find(name) is None


def test_a_job_whose_target_has_lost_its_name_is_told_as_such(journal):
    journal.add(entry(target="rack"))
    (problem,) = problems_of(lambda: find_job("night-1", to=None, journal=journal))
    assert (problem.field, problem.value) == ("the target of night-1", "'rack'")


@pytest.mark.parametrize("content", ["[]", "5", '{"job_id": 5}', "\xff", "[" * 100_000])
def test_an_entry_that_is_no_entry_is_left_out(journal, tmp_path, content):
    journal.add(entry())
    changed = json.loads((tmp_path / "journal" / "night-1.json").read_text()) | {"target": None}
    for text in (content, json.dumps(changed)):
        (tmp_path / "journal" / "night-2.json").write_text(text, encoding="latin-1")
        assert [found.job_id for found in journal.entries()] == ["night-1"]


def test_a_broken_entry_is_as_if_it_were_not_there(journal, tmp_path):
    journal.add(entry())
    (tmp_path / "journal" / "night-2.json").write_text("{")
    assert [found.job_id for found in journal.entries()] == ["night-1"]


# -- output folders --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "run.log").write_bytes(b"run started\n")
    return out


def end_of(folder: Path, **end) -> None:
    with (folder / "events.jsonl").open("a") as events:
        events.write(f"{json.dumps({'t': 9.0, 'end': {'done': 1, 'failed': 0, 'error': '', **end}})}\n")


@pytest.mark.parametrize(
    ("end", "state", "exit_code"),
    [
        ({}, JobState.SUCCEEDED, 0),
        ({"failed": 2}, JobState.FAILED, 1),
        ({"error": "stopped (SIGTERM)"}, JobState.STOPPED, None),
        ({"error": "no worker is left"}, JobState.FAILED, None),
    ],
)
def test_a_folder_tells_how_its_last_run_ended(folder, end, state, exit_code):
    end_of(folder, failed=7)
    end_of(folder, **end)
    status = FolderJob(to_location(folder)).status()
    assert (status.state, status.exit_code) == (state, exit_code)
    assert b"".join(FolderJob(to_location(folder)).logs(follow=True)) == b"run started\n"


def test_a_run_that_did_not_end_has_failed(folder):
    (folder / "events.jsonl").write_text('{"run": {}}\n{"t": 3.0, "ev')
    status = FolderJob(to_location(folder)).status()
    assert (status.state, status.exit_code) == (JobState.FAILED, None)


def test_a_folder_with_a_living_driver_runs_and_is_stopped_here(folder):
    code = "import time; from ovi_ray.output.owner import Owner; print(Owner().to_json(), flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as driver:
        (folder / LOCK).write_text(driver.stdout.readline())
        job = FolderJob(to_location(folder))
        assert job.status().state is JobState.RUNNING
        assert job.stop().state is JobState.RUNNING
        assert driver.wait(60) == -signal.SIGTERM
    assert job.status().state is JobState.FAILED


def test_a_driver_of_another_machine_is_named(folder):
    other = Owner(host="far", pid=os.getpid(), machine="another", born="1")
    (folder / LOCK).write_text(other.to_json())
    job = FolderJob(to_location(folder))
    assert "far" in job.status().message
    assert socket.gethostname() not in job.status().message
    (problem,) = problems_of(job.stop)
    assert "far" in problem.expected


def test_a_driver_of_another_machine_that_is_silent_does_not_run(folder):
    (folder / LOCK).write_text(Owner(host="far", machine="another").to_json())
    os.utime(folder / LOCK, (1, 1))
    assert FolderJob(to_location(folder)).status().state is JobState.FAILED


def test_a_folder_without_a_job_is_told(tmp_path):
    (problem,) = problems_of(FolderJob(to_location(tmp_path)).status)
    assert problem.value == "no job"


KUBECONFIG = """\
current-context: far
clusters: [{name: far, cluster: {server: "https://10.0.0.1:6443", insecure-skip-tls-verify: true}}]
users: [{name: me, user: {token: secret}}]
contexts: [{name: far, context: {cluster: far, user: me, namespace: render}}]
"""


@pytest.mark.parametrize(
    ("name", "edge"),
    [
        ("10.0.0.1:8265", "requests.Session.request"),
        ("slurm", "subprocess.run"),
        ("kubernetes", "urllib3.PoolManager.request"),
    ],
)
def test_a_target_that_is_silent_is_given_up_within_half_a_minute(make_bundle, monkeypatch, tmp_path, name, edge):
    limits = []

    def silent(*_, **given):
        limit = given["timeout"]
        limits.append(sum((limit.connect_timeout, limit.read_timeout)) if name == "kubernetes" else limit)
        raise {
            "10.0.0.1:8265": requests.ReadTimeout(),
            "slurm": subprocess.TimeoutExpired("sinfo", 1),
            "kubernetes": urllib3.exceptions.ReadTimeoutError(None, "/", "no answer"),
        }[name]

    (tmp_path / "kubeconfig").write_text(KUBECONFIG)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setattr(edge, silent)
    options = {"image": "ovi-ray:1.2.3", "namespace": "render"} if name == "kubernetes" else {}
    target = find_target(name, options)
    bundle = make_bundle(ckpt_dir="s3://bucket/ckpts", output_dir="s3://bucket/out")
    with pytest.raises(ClusterError):
        target.check(bundle)
    (limit,) = limits
    assert (sum(limit) if isinstance(limit, tuple) else limit) <= 30

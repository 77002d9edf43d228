"""The client of Ray's Jobs API, against a fake head."""

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from ovi_ray.errors import ClusterError, InputError
from ovi_ray.submission.ray_client import MAX_ANSWER_BYTES, RayClient
from ovi_ray.submission.ray_jobs import STOP_WAIT_S, RayConfig, RayTarget
from ovi_ray.submission.states import JobState
from tests.support.fake_head import FakeHead, running_head
from tests.support.listening import answer_of, listening
from tests.support.waiting import wait_until

SHELLCHECK = Path(sys.executable).with_name("shellcheck")


@pytest.fixture
def head(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with running_head(FakeHead()) as running:
        yield running


@pytest.fixture
def target(head):
    return RayTarget("rack", RayConfig(address=head.address))


def test_a_job_is_started_once_with_its_files_and_time_to_save(head, target, make_bundle):
    bundle = make_bundle()
    first, second = target.submit(bundle), target.submit(bundle)
    assert (first.job_id, first.state) == (bundle.job_id, JobState.RUNNING)
    assert second == first
    (job,) = head.jobs.values()
    assert job["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}
    assert job["runtime_env"]["working_dir"].removeprefix("gcs://") in head.packages
    assert not [name for name in job if name.startswith("entrypoint_")]
    assert all(isinstance(value, str) for value in job["metadata"].values())
    assert head.requests.count("POST /api/jobs/") == 1


def test_a_job_that_has_succeeded_is_not_run_again(head, target, make_bundle):
    target.submit(make_bundle())
    head.end(make_bundle().job_id, "SUCCEEDED", None)
    status = target.submit(make_bundle())
    assert (status.state, status.exit_code, len(head.jobs)) == (JobState.SUCCEEDED, 0, 1)


@pytest.mark.parametrize(("end", "code"), [("FAILED", 1), ("STOPPED", None)])
def test_a_job_that_failed_or_was_stopped_continues_under_the_next_id(head, target, make_bundle, end, code):
    bundle = make_bundle()
    target.submit(bundle)
    head.end(bundle.job_id, end, code)
    again = target.submit(bundle)
    assert (again.job_id, again.native_id, again.restarts) == (bundle.job_id, f"{bundle.job_id}-2", 1)
    assert (again.state, target.status(bundle.job_id).state) == (JobState.RUNNING, JobState.RUNNING)
    assert [job.job_id for job in target.jobs()] == [bundle.job_id]


def test_two_that_submit_the_same_job_at_the_same_time_start_it_once(head, target, make_bundle):
    bundle = make_bundle()
    states = []
    threads = [
        threading.Thread(
            target=lambda: states.append(RayTarget("rack", RayConfig(address=head.address)).submit(bundle))
        )
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(head.jobs), len(states)) == (1, 6)


def test_a_head_that_has_just_started_is_waited_for_but_not_for_ever(head, make_bundle):
    head.starting = 1
    assert RayTarget("rack", RayConfig(address=head.address)).submit(make_bundle()).state is JobState.RUNNING
    head.starting = 1
    with pytest.raises(ClusterError, match="No available agent"):
        RayClient(head.address, agent_wait_s=0).submit({"submission_id": "x"})


def test_a_deleted_job_whose_id_is_used_up_is_told(head, target, make_bundle):
    bundle = make_bundle()
    head.jobs[bundle.job_id] = {"submission_id": bundle.job_id, "status": "RUNNING", "metadata": {}}
    with pytest.raises(ClusterError, match="does not take its id again"):
        target.submit(bundle)


@pytest.mark.parametrize("place", ["variable", "path", "home", "target"])
def test_a_token_is_found_where_ray_looks_for_it(head, monkeypatch, tmp_path, place):
    head.token = "s3cret"
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    config = RayConfig(address=head.address, token_path=str(file) if place == "target" else None)
    if place == "variable":
        monkeypatch.setenv("RAY_AUTH_TOKEN", "s3cret")
    elif place == "path":
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    elif place == "home":
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("s3cret\n")
    elif place == "target":
        monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    assert RayTarget("rack", config).jobs() == []


@pytest.mark.parametrize(
    ("token", "words"), [("", "asks for a token"), ("wrong", "refuses the token from RAY_AUTH_TOKEN")]
)
def test_a_missing_and_a_wrong_token_are_told_with_what_to_do(head, target, monkeypatch, token, words):
    head.token = "s3cret"
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    with pytest.raises(ClusterError, match=words) as caught:
        target.jobs()
    assert "s3cret" not in str(caught.value)
    assert "auth_token" in str(caught.value)


@pytest.mark.parametrize(
    ("host", "token", "told"), [("127.0.0.1", "", 0), ("0.0.0.0", "", 1), ("0.0.0.0", "s3cret", 0)]
)
def test_a_cluster_that_others_reach_and_that_asks_for_no_token_is_told(monkeypatch, make_bundle, host, token, told):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "s3cret")
    with running_head(FakeHead(token=token), host=host) as head:
        notes = RayTarget("rack", RayConfig(address=head.address)).check(make_bundle())
    assert len([note for note in notes if "RAY_AUTH_MODE=token" in note]) == told


def test_a_token_is_not_shown_to_a_head_that_does_not_ask(head, target, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "s3cret")
    target.jobs()
    assert "Authorization" not in target._client._session.headers


def test_a_token_file_that_cannot_be_read_is_told(head, tmp_path):
    head.token = "s3cret"
    with pytest.raises(ClusterError, match="none cannot be read"):
        RayTarget("rack", RayConfig(address=head.address, token_path=str(tmp_path / "none"))).jobs()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "http://127.0.0.1:1"])
def test_an_address_where_nobody_answers_is_told_with_what_to_check(address):
    with pytest.raises(ClusterError, match=r"127\.0\.0\.1:1 cannot be reached: Connection refused\. ") as caught:
        RayTarget("x", RayConfig(address=address)).jobs()
    assert "dashboard" in str(caught.value)


def test_a_head_that_fails_is_quoted(head, target):
    head.refusal = 500
    with pytest.raises(ClusterError, match="RuntimeError: out of order"):
        target.jobs()


def test_a_cluster_without_gpus_is_refused_to_a_job_that_needs_them(head, target, make_bundle):
    with pytest.raises(ClusterError, match="needs GPUs"):
        target.check(make_bundle(device="gpu"))
    head.nodes.append({"state": "ALIVE", "resources_total": {"GPU": 8.0}, "labels": {}})
    assert any("8 GPUs" in note for note in target.check(make_bundle(device="gpu")))


def test_nodes_that_are_dead_do_not_count(head, target, make_bundle):
    head.nodes.append({"state": "DEAD", "resources_total": {"GPU": 8.0}, "labels": {}})
    with pytest.raises(ClusterError, match="needs GPUs"):
        target.check(make_bundle(device="gpu"))


def test_more_workers_than_cpus_are_refused(target, make_bundle):
    with pytest.raises(ClusterError, match="needs 5 CPUs"):
        target.check(make_bundle(workers=5))


def test_a_job_that_nodes_are_added_for_needs_none_now(target, make_bundle):
    bundle = make_bundle(device="gpu", workers=5, elastic=True)
    assert any("its autoscaler adds" in note for note in target.check(bundle))


def test_a_priority_is_told_with_what_it_does(target, make_bundle, tmp_path):
    (tmp_path / "j.yaml").write_text("text_prompt: A fox\npriority: -5\nckpt_dir: /a\noutput_dir: /b\n")
    from ovi_ray.inputs.job_spec import PortableJob
    from ovi_ray.submission.bundle import bundle_of

    bundle = bundle_of(PortableJob.from_yaml(tmp_path / "j.yaml"), name="x", version="1")
    assert any(note.startswith("priority -5: ") for note in target.check(bundle))


def test_an_unknown_job_is_told(target):
    with pytest.raises(InputError) as caught:
        target.status("night-0000000000")
    assert caught.value.problems[0].value == "'night-0000000000'"


def test_a_log_passes_bytes_that_are_no_text(head, target, make_bundle):
    bundle = make_bundle()
    target.submit(bundle)
    head.logs[bundle.job_id] = b"a\xff\xfe\nb\n"
    assert b"".join(target.logs(bundle.job_id, follow=False)) == b"a\xff\xfe\nb\n"


@pytest.mark.parametrize("stream_bytes", [1 << 30, 7])
def test_a_followed_log_is_whole_however_often_its_connection_ends(head, target, make_bundle, stream_bytes):
    bundle = make_bundle()
    target.submit(bundle)
    head.stream_bytes = stream_bytes
    head.logs[bundle.job_id] = b"first line\n"
    shown = []

    def follow():
        shown.extend(target.logs(bundle.job_id, follow=True))

    reader = threading.Thread(target=follow, daemon=True)
    reader.start()
    wait_until(lambda: shown)
    head.logs[bundle.job_id] += b"second line\nlast \xff\n"
    head.end(bundle.job_id, "SUCCEEDED", None)
    reader.join(60)
    assert b"".join(shown) == head.logs[bundle.job_id]


def test_a_stopped_job_is_stopped_and_a_pending_one_is_told_that_it_cannot(head, target, make_bundle):
    bundle = make_bundle()
    target.submit(bundle)
    head.jobs[bundle.job_id]["status"] = "PENDING"
    with pytest.raises(ClusterError, match="cannot stop a pending job"):
        target.stop(bundle.job_id)
    head.jobs[bundle.job_id]["status"] = "RUNNING"
    assert target.stop(bundle.job_id).state is JobState.RUNNING
    assert target.status(bundle.job_id).state is JobState.STOPPED
    assert target.stop(bundle.job_id).state is JobState.STOPPED


def test_jobs_of_others_are_not_listed(head, target, make_bundle):
    head.jobs["x"] = {"submission_id": "x", "status": "RUNNING", "metadata": None, "start_time": 1}
    target.submit(make_bundle())
    assert [job.job_id for job in target.jobs()] == [make_bundle().job_id]


def test_the_start_script_is_one_that_a_shell_reads(target, make_bundle, tmp_path):
    script = tmp_path / "start.sh"
    bundle = replace(make_bundle(), render_options=("--notify", "https://chat.example/?a=1&b=2"))
    script.write_text(RayTarget("r", RayConfig(address="a:1", python="/opt/my ovi/python")).script(bundle))
    subprocess.run([SHELLCHECK, script], check=True)
    stub = tmp_path / "python"
    stub.write_text('#!/bin/sh\necho "ovi-ray 9.9.9 (Python 3.11)"\n')
    stub.chmod(0o755)
    script.write_text(RayTarget("r", RayConfig(address="a:1", python=str(stub))).script(make_bundle()))
    told = subprocess.run(["sh", script], capture_output=True, text=True, check=False)
    assert (told.returncode, "ovi-ray 9.9.9" in told.stderr, "ovi-ray 1.2.3" in told.stderr) == (3, True, True)


NO_HTTP, NO_DASHBOARD = "what listens there does not speak HTTP", "not as a Ray dashboard does"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"\0\0\x18\4\0\0\0\0\0", NO_HTTP),  # Ray's own port, 6379
        (b"SSH-2.0-OpenSSH_9.2\r\n", NO_HTTP),
        (b"\x15\x03\x01\x00\x02\x02\x46", "begins with https://"),  # TLS
        (b"", NO_HTTP),
        (answer_of(b"", "404 Not Found"), NO_DASHBOARD),
        (answer_of(b"Hello"), NO_DASHBOARD),
        (answer_of({}), NO_DASHBOARD),
        (answer_of([]), NO_DASHBOARD),
        (answer_of(None), NO_DASHBOARD),
        (answer_of("ray_version"), NO_DASHBOARD),
        (answer_of({"ray_version": None}), NO_DASHBOARD),
        (answer_of(b"[" * 100_000), NO_DASHBOARD),
        (answer_of(b"zipped", **{"Content-Encoding": "gzip"}), "not in the encoding that it names"),
        (answer_of({"ray_version": "2"})[:-3], "ended within an answer"),
    ],
)
def test_what_is_no_dashboard_is_told_with_the_address_that_is_meant(answer, words):
    with listening(answer) as port, pytest.raises(ClusterError, match=words) as refused:
        RayClient(f"127.0.0.1:{port}").version()
    assert "such as http://head:8265" in str(refused.value)
    assert "\\x" not in str(refused.value)


@pytest.mark.parametrize("ask", [RayClient.jobs, RayClient.nodes, lambda client: client.job("night-1")])
@pytest.mark.parametrize("content", [{}, [{}], None, "text", {"data": None}, [{"status": "DANCING"}]])
def test_an_answer_of_another_form_is_told_whatever_was_asked(ask, content):
    with listening(answer_of(content)) as port, pytest.raises(ClusterError, match=NO_DASHBOARD):
        ask(RayClient(f"127.0.0.1:{port}"))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (answer_of(b"<html>\n<title>502 Bad Gateway</title>\n</html>\n", "502 Bad Gateway"), "502 Bad Gateway$"),
        (answer_of(b"", "503 Service Unavailable"), "Service Unavailable$"),
        (answer_of(b"x" * 10_000, "500 Error"), "x{300}$"),
        (
            answer_of(b"", "302 Found", Location="https://me:secret@login.example/"),
            r"leads to https://\*\*\*@login\.example/",
        ),
        (answer_of(b"", "302 Found", Location="/api/version"), "is not followed"),
    ],
)
def test_what_stands_before_a_dashboard_is_told_in_its_own_words(answer, words):
    with listening(answer) as port, pytest.raises(ClusterError, match=words):
        RayClient(f"127.0.0.1:{port}").version()


def test_an_answer_of_a_gigabyte_is_not_read():
    begun = f"HTTP/1.1 200 OK\r\nContent-Length: {MAX_ANSWER_BYTES + 1}\r\n\r\n".encode()
    with listening(begun) as port, pytest.raises(ClusterError, match="answers with more than a Ray dashboard does"):
        RayClient(f"127.0.0.1:{port}").version()


def test_an_upload_may_take_longer_than_a_connection(head):
    head.upload_pause_s = 0.15
    RayClient(head.address, timeout_s=(1.5, 60.0)).upload("a.zip", bytes(30_000_000))
    assert len(head.packages["a.zip"]) == 30_000_000


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"two words", b"two\nlines", "\u0442\u043e\u043a\u0435\u043d".encode(), None]
)
def test_what_is_no_token_is_told_without_it(head, tmp_path, content):
    head.token, path = "s3cret", tmp_path / "token"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ClusterError, match=str(path)) as caught:
        RayTarget("rack", RayConfig(address=head.address, token_path=str(path))).jobs()
    assert "token of the cluster's head" in str(caught.value)
    assert not content or content.decode(errors="replace") not in str(caught.value)


def test_a_token_that_others_may_read_is_used_and_told(head, tmp_path, caplog):
    head.token, path = "s3cret", tmp_path / "token"
    for mode, told in ((0o600, 0), (0o644, 1)):
        path.write_text("s3cret")
        path.chmod(mode)
        assert RayTarget("rack", RayConfig(address=head.address, token_path=str(path))).jobs() == []
        assert [f"chmod 600 {path}" in message for message in caplog.messages] == [True] * told


def test_a_token_goes_before_a_password_of_netrc(head, tmp_path, monkeypatch):
    head.token = "s3cret"
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password another\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "s3cret")
    assert RayTarget("rack", RayConfig(address=f"http://{head.address}")).jobs() == []


@pytest.mark.parametrize(
    "proxy", ["http://me:hidden@127.0.0.1:1", "me:hidden@127.0.0.1:1", "::bad", "socks5://127.0.0.1:1"]
)
def test_a_proxy_in_the_way_is_named_without_its_password(head, monkeypatch, proxy):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(ClusterError, match=r"through the proxy .*NO_PROXY=127\.0\.0\.1") as caught:
        RayClient(f"http://{head.address}").version()
    assert "hidden" not in str(caught.value)
    assert RayClient(head.address).version() == "2.60.0"

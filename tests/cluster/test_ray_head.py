"""Jobs on a real Ray head that asks for a token: submitted, followed, stopped, continued, refused."""

import sys

import pytest

from tests.cluster import ray_head
from tests.cluster.client import Client
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(bool(ray_head.why_not()), reason=ray_head.why_not()),
]


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    with ray_head.running_head(tmp_path_factory.mktemp("head")) as running:
        yield running


@pytest.fixture
def client(head, tmp_path):
    rack = {"kind": "ray", "address": head.address, "python": sys.executable}
    return Client(folder=tmp_path, environment=head.environment, targets={"here": rack})


def test_a_job_is_submitted_followed_and_waited_for_and_not_run_twice(client):
    job = client.write_job(clips=3)
    submitted = client.submit(job)
    followed = client("logs", "-f", submitted["job_id"])
    assert client.wait(submitted["job_id"])["exit_code"] == 0
    assert "3 clips: 3 rendered" in followed
    assert sorted(row["row"] for row in client.rows()) == [1, 2, 3]
    again = client.submit(job)
    assert (again["native_id"], again["state"]) == (submitted["native_id"], "succeeded")
    assert submitted["job_id"] in client("jobs")
    assert client.status(str(client.out))["job_id"] == submitted["job_id"]


def test_a_stopped_job_has_time_to_save_and_continues(client):
    job = client.write_job(clips=2, sample_steps=4000)
    submitted = client.submit(job)
    checkpoints = client.out / "checkpoints"
    wait_until(lambda: len(list(checkpoints.glob("*.safetensors"))) == 2, every_s=0.5)
    client("stop", submitted["job_id"])
    assert client.wait(submitted["job_id"], code=143)["state"] == "stopped"
    assert len(list(checkpoints.glob("*.safetensors"))) == 2
    assert "continues from there" in client("logs", submitted["job_id"])
    again = client.submit(job)
    assert (again["job_id"], again["restarts"]) == (submitted["job_id"], 1)
    client("stop", submitted["job_id"])
    client.wait(submitted["job_id"], code=143)


@pytest.mark.parametrize(
    ("keys", "options", "code", "words"),
    [
        ({"ckpt_dir": "/nowhere/ckpts"}, (), 2, "'/nowhere/ckpts', which is not a folder"),
        ({"resources": {"device": "gpu"}}, (), 3, "needs GPUs"),
        ({"resources": {"device": "cpu", "workers": 50}}, (), 3, "needs 50 CPUs"),
    ],
)
def test_what_cannot_run_there_is_told_by_the_submission(client, keys, options, code, words):
    client("submit", client.write_job(clips=1, **keys), "--to", "here", *options, code=code)
    assert words in client.said


def test_a_cluster_without_ovi_ray_is_told_what_to_install(client, tmp_path):
    client.targets["here"]["python"] = "/usr/bin/false"
    client("submit", client.write_job(clips=1), "--to", "here", code=3)
    assert "install ovi-ray" in client.said


def test_a_wrong_token_is_refused_and_told(client, tmp_path):
    (tmp_path / "wrong").write_text("wrong")
    client.targets["here"]["token_path"] = str(tmp_path / "wrong")
    client("submit", client.write_job(clips=1), "--to", "here", code=3)
    assert "refuses the token" in client.said

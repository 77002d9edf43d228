"""A job whose Ray cluster loses its head: what is left, and what its user is told."""

import json
import os
import signal
import subprocess
import sys

import pytest
from ray.util import get_node_ip_address

from tests.cluster import ray_head
from tests.cluster.client import Client
from tests.support.cli import OVI_RAY, ROOT
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(bool(ray_head.why_not()), reason=ray_head.why_not()),
]
JOIN = "import ray; ray.init({address!r}, log_to_driver=False, logging_level='error'); "
ENDED = "from ovi_ray.runtime.fair_share import ended_drivers, this_driver; import time, json; "


@pytest.fixture
def head(tmp_path):
    with ray_head.running_head(tmp_path, host=get_node_ip_address()) as running:
        yield running


def in_cluster(head, code):
    """A driver of its own that runs some code."""
    return subprocess.Popen(
        [sys.executable, "-c", JOIN.format(address=head.gcs) + ENDED + code],
        env={**os.environ, **head.environment, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def rendering(head, client, job):
    """A driver that renders in a cluster, and ends before the node does, which Ray ends a minute after its head."""
    patience = {"RAY_gcs_rpc_server_reconnect_timeout_s": "40"}
    return subprocess.Popen(
        [*OVI_RAY, "render", str(job), "--address", head.gcs, "--quiet", "--json"],
        cwd=ROOT,
        env={**os.environ, **head.environment, **patience, "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("with_node", [False, True])
def test_a_job_whose_head_dies_ends_with_what_it_saved_and_says_how_to_go_on(head, tmp_path, with_node):
    client = Client(folder=tmp_path / "job", environment=head.environment)
    job = client.write_job(clips=2, sample_steps=4000, policies={"checkpoint_s": 1 if with_node else 1e6})
    driver = rendering(head, client, job)
    try:
        progress = client.out / "progress.json"
        wait_until(
            lambda: (
                progress.exists()
                and sum(device["done"] > 10 for device in json.loads(progress.read_text())["devices"]) == 2
            ),
            give_up=lambda: "" if driver.poll() is None else driver.communicate()[1],
            every_s=0.5,
        )
        checkpoints = client.out / "checkpoints"
        if with_node:
            wait_until(lambda: len(list(checkpoints.glob("*.safetensors"))) == 2, every_s=0.2)
        head.kill(with_node=with_node)
        answer, said = driver.communicate(timeout=PATIENCE_S)
    finally:
        driver.kill()
    assert driver.returncode == 3, said
    assert json.loads(answer)["error"]["type"] == "HeadLost"
    assert f"this command: ovi-ray render {job}" in " ".join(said.split())
    assert len(list(checkpoints.glob("*.safetensors"))) == 2
    assert "has not answered" in json.loads(progress.read_text())["error"]
    assert (client.out / "report.html").exists()


def test_a_driver_that_was_killed_is_known_to_be_gone_at_once(head):
    killed = in_cluster(head, "print(this_driver(), flush=True); time.sleep(900)")
    name = killed.stdout.readline().strip()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    watching = in_cluster(
        head,
        f"until = time.monotonic() + 60\n"
        f"while {name!r} not in ended_drivers() and time.monotonic() < until: time.sleep(0.1)\n"
        "print(json.dumps([this_driver(), sorted(ended_drivers())]))",
    )
    this, ended = json.loads(watching.communicate(timeout=PATIENCE_S)[0])
    assert name in ended
    assert this not in ended

"""A job on three hosts: links that are cut, nodes that are taken away or do not fit, a head that dies. Nothing is lost."""

import json
import shutil
import signal
import sys
import time

import pytest
import yaml

from tests.cluster import hosts as namespaces
from tests.cluster import ray_head
from tests.cluster.client import CKPTS, Client
from tests.cluster.rack import DASHBOARD, held, running_rack, steps
from tests.support.waiting import wait_until

WHY_NOT = namespaces.why_not() or ray_head.why_not()
pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.slow, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]

STEPS = 8
LOST = "was lost with its node"
LEFT = "leaves the cluster"


@pytest.fixture(scope="module")
def rack(tmp_path_factory):
    with running_rack(tmp_path_factory.mktemp("rack")) as running:
        yield running


@pytest.fixture
def client(rack, tmp_path):
    target = {"kind": "ray", "address": rack.address, "python": sys.executable}
    return Client(folder=tmp_path, environment=rack.environment, targets={"here": target})


@pytest.fixture
def submit(rack, client):
    """Submits a job of some clips, for two workers that wait at the first step of their first clip."""

    def submitted(*, clips, checkpoint_s=0):
        environment = rack.hooks(step_s=0.05, wait_for=0)
        rack.hold("Denoise")
        # No copies at the end of the job: the tests count the steps.
        policies = {"checkpoint_s": checkpoint_s, "speculation": False}
        job = client.write_job(clips=clips, sample_steps=STEPS, environment=environment, policies=policies)
        return client.submit(job)["job_id"]

    return submitted


def said(client):
    """Messages of the driver so far."""
    log = client.out / "run.log"
    return log.read_text() if log.exists() else ""


def rows_of(client):
    return client.rows() if list((client.out / "results").glob("*.parquet")) else []


def is_complete(client, clips):
    rows = rows_of(client)
    return len(rows) == len({row["clip_id"] for row in rows}) == clips and {row["status"] for row in rows} == {"done"}


def test_the_dashboard_listens_only_where_it_is_told_and_asks_for_a_token(rack, client, tmp_path):
    listeners = rack.head.run("ss", "--no-header", "--listening", "--tcp", "--numeric", f"sport = :{DASHBOARD}")
    assert [line.split()[3] for line in listeners.splitlines()] == [f"{rack.head.address}:{DASHBOARD}"]
    client.environment = {"HOME": str(tmp_path)}
    client("jobs", "--to", "here", code=3)
    assert "asks for a token" in client.said


def test_links_are_cut_for_a_while_and_for_long_and_for_good(rack, client, submit):
    first, second = rack.nodes
    job_id = submit(clips=6)
    wait_until(lambda: held(first) and held(second), every_s=0.5)
    (cut_off,) = held(second)

    # Off for half a minute: nothing happens. Off for a minute and a half: the node is dead, and comes back as another one.
    for node in rack.nodes:
        node.cut()
    time.sleep(30)
    first.connect()
    assert LOST not in said(client)
    wait_until(lambda: LOST in said(client), every_s=0.5)
    time.sleep(10)
    second.connect()
    wait_until(lambda: held(second) - {cut_off}, every_s=0.5)
    assert said(client).count(LOST) == 1

    # Off for good.
    first.cut()
    wait_until(lambda: said(client).count(LOST) == 2, every_s=0.5)
    made = steps(first)  # the node that is cut off goes on for some minutes, and nobody waits for it
    rack.release("Denoise")
    assert client.wait(job_id)["exit_code"] == 0
    assert is_complete(client, 6)
    assert made + steps(second) <= 6 * STEPS + 2
    first.connect()
    rack.wait_for_nodes()


def test_a_node_that_is_taken_away_costs_nothing_and_one_that_joins_takes_part(rack, client, submit):
    _, spot = rack.nodes
    job_id = submit(clips=4, checkpoint_s=1000)
    wait_until(lambda: all(held(node) for node in rack.nodes), every_s=0.5)
    (before,) = held(spot)
    spot.signal("scripts.scripts start", signal.SIGTERM)

    def has_left():
        before.unlink(missing_ok=True)  # it makes one step at a time until it is asked to save
        return LEFT in said(client)

    wait_until(has_left, every_s=0.2)
    wait_until(lambda: held(spot) - {before}, every_s=0.5)  # a worker on the node that came in its place
    rack.release("Denoise")
    assert client.wait(job_id)["exit_code"] == 0
    assert is_complete(client, 4)
    assert steps(*rack.nodes) == 4 * STEPS
    assert LOST not in said(client)


def test_a_node_with_other_weights_says_so_in_one_line_and_the_others_go_on(rack, client, submit, tmp_path):
    _, other = rack.nodes
    shutil.copytree(CKPTS, tmp_path / "ckpts")
    (changed,) = (tmp_path / "ckpts" / "Ovi").glob("model.safetensors")
    with changed.open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\1\2\3\4")
    other.run("mount", "--bind", tmp_path / "ckpts", CKPTS)
    try:
        job_id = submit(clips=2)
        rack.release("Denoise")
        assert client.wait(job_id)["exit_code"] == 0
    finally:
        other.run("umount", CKPTS)
    assert is_complete(client, 2)
    (line,) = [line for line in said(client).splitlines() if "takes no work" in line]
    assert f"node {other.name} takes no work: " in line
    assert "Ovi/model.safetensors is not the file that the driver has" in line
    assert steps(other) == 0


def test_two_jobs_share_the_nodes_and_none_waits_for_the_other(rack, client, submit, tmp_path):
    job_id = submit(clips=4, checkpoint_s=1000)
    wait_until(lambda: all(held(node) for node in rack.nodes), every_s=0.5)
    before = {mark for node in rack.nodes for mark in held(node)}
    other = Client(folder=tmp_path / "other", environment=rack.environment, targets=client.targets)
    environment = yaml.safe_load((tmp_path / "night.yaml").read_text())["environment"]
    other_id = other.submit(other.write_job(clips=2, sample_steps=STEPS, environment=environment, priority=10))[
        "job_id"
    ]

    way = "makes way for another job"
    wait_until(lambda: way in said(other), every_s=0.5)  # it knows of the first job, which hears of it within seconds

    def has_made_way():
        for mark in before:
            mark.unlink(missing_ok=True)
        return way in said(client)

    wait_until(has_made_way, every_s=1.0)  # a step for each worker every second
    wait_until(lambda: {mark for node in rack.nodes for mark in held(node)} - before, every_s=0.5)
    assert len(rows_of(client)) < 4
    states = {state["job_id"]: state["state"] for state in json.loads(client("jobs", "--json"))}
    assert (states[job_id], states[other_id]) == ("running", "running")
    rack.release("Denoise")
    assert (other.wait(other_id)["exit_code"], client.wait(job_id)["exit_code"]) == (0, 0)
    assert (is_complete(client, 4), is_complete(other, 2)) == (True, True)
    assert steps(*rack.nodes) == 6 * STEPS


def test_a_head_that_dies_takes_the_driver_along_and_the_same_job_goes_on_when_it_is_back(rack, client, submit):
    job_id = submit(clips=4)
    wait_until(lambda: all(held(node) for node in rack.nodes), every_s=0.5)
    rack.head.crash()
    rack.start_head()
    rack.wait_for_nodes()
    rack.release("Denoise")
    again = client.submit(client.folder / "night.yaml")
    assert again["job_id"] == job_id
    assert client.wait(job_id)["exit_code"] == 0
    assert is_complete(client, 4)
    assert steps(*rack.nodes) <= 4 * STEPS + 2

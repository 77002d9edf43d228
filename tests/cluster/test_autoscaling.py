"""A job whose nodes are added for it by Ray's autoscaler, with Ray's fake nodes, on a host of its own."""

import signal
import sys

import pytest
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from tests.cluster import hosts as namespaces
from tests.cluster import rack
from tests.cluster.client import Client
from tests.support.waiting import wait_until
from tests.support.worker_hooks import hooked_environment

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(bool(namespaces.why_not()), reason=namespaces.why_not()),
]

PORT = 6399
COUNT = """\
from ray._raylet import GcsClient
print(sum(node.state == 0 for node in GcsClient(address="{}").get_all_node_info().values()))
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """A host with a head that may add two nodes, and takes those back that are idle for some seconds."""
    folder = tmp_path_factory.mktemp("autoscaling")
    token = folder / "token"
    token.write_text("a-token-of-the-tests-0123456789abcdef")
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    with namespaces.running_hosts(folder, 1, environment) as (host,):
        (folder / "autoscaling.yaml").write_text(yaml.safe_dump(autoscaling(f"{host.address}:{PORT}")))
        arguments = ["--head", "--block", "--node-ip-address", host.address, "--port", PORT, "--num-cpus", 0]
        arguments += ["--object-store-memory", rack.OBJECT_STORE, "--autoscaling-config", folder / "autoscaling.yaml"]
        head = [
            "env",
            f"RAY_CLOUD_INSTANCE_ID={FAKE_HEAD_NODE_ID}",
            f"RAY_OVERRIDE_NODE_ID_FOR_TESTING={FAKE_HEAD_NODE_ID}",
        ]
        started = host.start(*head, *rack.RAY.split(), "start", *arguments, log="ray.log")
        log = host.folder / "ray.log"
        wait_until(
            lambda: nodes(host) == 1, give_up=lambda: "" if started.poll() is None else log.read_text(), every_s=1.0
        )
        yield host


def autoscaling(address):
    """The autoscaler's configuration. As an external provider, Ray's fake one needs no file that the wheel lacks."""
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "gcs_address": address,
        "head_node_id": FAKE_HEAD_NODE_ID,
        "launch_multiple": True,
        "disable_node_updaters": True,
    }
    node = {"node_config": {}, "min_workers": 0, "max_workers": 2}
    commands = ("setup", "head_setup", "worker_setup", "initialization", "head_start_ray", "worker_start_ray")
    return {
        **{f"{name}_commands": [] for name in commands},
        "file_mounts": {},
        "cluster_synced_files": [],
        "cluster_name": "tests",
        "max_workers": 2,
        "idle_timeout_minutes": 0.1,
        "provider": provider,
        "auth": {"ssh_user": "nobody"},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "spot": {**node, "resources": {"CPU": 1, "object_store_memory": rack.OBJECT_STORE}},
        },
    }


def nodes(host):
    """The nodes that are alive, the head included."""
    said = host.run(sys.executable, "-c", COUNT.format(f"{host.address}:{PORT}"), check=False).strip()
    return int(said) if said.isdecimal() else 0


@pytest.fixture
def hold(host):
    """While the file is there, workers wait in each step of a denoise."""
    hold = host.folder / "log" / "hold.Denoise"
    hold.touch()
    yield hold
    hold.unlink(missing_ok=True)


def test_nodes_are_added_for_a_job_and_go_one_by_one_when_it_needs_them_no_more(host, hold, tmp_path):
    client = Client(folder=tmp_path, environment={})
    hooks = hooked_environment(host.folder.parent / "log", wait_for=2)
    job = client.write_job(
        clips=2,
        address=f"{host.address}:{PORT}",
        resources={"device": "cpu", "workers": 2, "elastic": True},
        policies={"speculation": False},
        environment=hooks,
    )
    driver = host.start(sys.executable, "-m", "ovi_ray", "render", job, log="driver.log")

    def why_ended():
        return "" if driver.poll() is None else (host.folder / "driver.log").read_text()

    def await_(condition):
        return wait_until(condition, give_up=why_ended, every_s=0.5)

    await_(lambda: len(rack.held(host)) == 2)
    assert nodes(host) == 3
    first = min(rack.held(host))

    def one_is_done():
        first.unlink(missing_ok=True)
        return len(list((client.out / "videos").glob("*.mp4"))) == 1

    await_(one_is_done)
    await_(lambda: nodes(host) == 2)  # while the other clip is still rendered
    hold.unlink()
    assert driver.wait(300) == 0, (host.folder / "driver.log").read_text()
    assert sorted(row["status"] for row in client.rows()) == ["done", "done"]
    wait_until(lambda: nodes(host) == 1, every_s=1.0)


def test_a_job_that_is_stopped_leaves_no_demand_for_nodes(host, tmp_path):
    client = Client(folder=tmp_path, environment={})
    job = client.write_job(
        clips=1,
        address=f"{host.address}:{PORT}",
        sample_steps=4000,
        resources={"device": "cpu", "workers": 1, "elastic": True},
        environment=hooked_environment(host.folder.parent / "log"),
    )
    driver = host.start(sys.executable, "-m", "ovi_ray", "render", job, log="stopped.log")
    wait_until(lambda: list((client.out / "checkpoints").glob("*")), every_s=0.5)
    host.signal("ovi_ray render", signal.SIGTERM)
    assert driver.wait(300) in (143, -signal.SIGTERM)
    wait_until(lambda: nodes(host) == 1, every_s=1.0)

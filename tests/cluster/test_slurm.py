"""Jobs on a real Slurm: submitted, followed, stopped, preempted, cut off and ended by the clock. Nothing is lost."""

import json
from collections.abc import Callable

import pytest

from ovi.config import Architecture
from ovi.weights.layout import model_files
from tests.cluster import slurm as real_slurm
from tests.cluster.client import CKPTS, Client
from tests.support.jobs import result_rows
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(bool(real_slurm.why_not()), reason=real_slurm.why_not()),
]

STEPS = 40


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with real_slurm.running_slurm(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture
def client(slurm, tmp_path):
    one = {"kind": "slurm", "jobs_dir": str(tmp_path / "jobs"), "partition": "cuda", "cpus_per_node": 1}
    both = {
        "nvidia": {"partition": "cuda", "nodes": 1, "gpus_per_node": 1, "cpus_per_node": 1},
        "amd": {"partition": "rocm", "nodes": 1, "gpus_per_node": 1, "cpus_per_node": 1},
    }
    targets = {"here": one, "mixed": {"kind": "slurm", "jobs_dir": str(tmp_path / "jobs"), "partitions": both}}
    return Client(folder=tmp_path, environment=slurm.environment, targets=targets)


def log_of(client: Client, job_id: str) -> str:
    return (client.folder / "jobs" / job_id / "driver.log").read_text()


def step_until(client: Client, condition: Callable[[], bool], *, every_s: float = 0.5) -> None:
    """Let the workers, which wait after every step, make one every so often until a condition is true."""

    def is_true() -> bool:
        client.step()
        return condition()

    wait_until(is_true, every_s=every_s)


def restart(slurm, number: str) -> None:
    """Wait until a job was requeued, and spare it Slurm's two minutes."""
    wait_until(lambda: set(slurm.states(number)) == {"PENDING"}, every_s=0.5)
    slurm.start_now(number)


def is_complete(client: Client, clips: int) -> bool:
    rows = client.rows()
    return len(rows) == len({row["clip_id"] for row in rows}) == clips and {row["status"] for row in rows} == {"done"}


def test_a_job_runs_on_the_nodes_of_two_vendors_beside_another_job(client, slurm):
    other = Client(folder=client.folder / "other", environment=slurm.environment, targets=client.targets)
    client.to, other.to = "mixed", "here"
    first = client.submit(client.write_job(clips=6))
    second = other.submit(other.write_job(clips=2, resources={"device": "cpu", "workers": 1}))
    assert first["job_id"] != second["job_id"]
    followed = client("logs", "-f", first["job_id"])
    assert client.wait(first["job_id"])["state"] == "succeeded"
    assert other.wait(second["job_id"])["state"] == "succeeded"
    assert is_complete(client, 6)
    assert is_complete(other, 2)
    assert followed == log_of(client, first["job_id"])
    assert "2 of 2 nodes" in followed
    folder = client.folder / "jobs" / first["job_id"]
    nvidia, amd = ((folder / f"node-0-{name}.log").read_text().splitlines()[0] for name in ("h1", "h3"))
    assert ("nvidia GPUs (devices '0')" in nvidia, "amd GPUs (devices '0')" in amd) == (True, True)
    listed = client("jobs", "--to", "mixed")
    assert first["job_id"] in listed
    again = client.submit(client.folder / "night.yaml")
    assert (again["native_id"], again["state"], again["restarts"]) == (first["native_id"], "succeeded", 0)
    assert client.status(str(client.out))["job_id"] == first["job_id"]


def test_a_stopped_job_saves_what_runs_and_continues_when_it_is_submitted_again(client):
    client.step_s = 0.5
    job = client.write_job(clips=2, sample_steps=STEPS)
    submitted = client.submit(job, "--nodes", 2)
    wait_until(lambda: client.steps() >= 4, every_s=0.5)
    client("stop", submitted["job_id"])
    assert client.wait(submitted["job_id"], code=143)["state"] == "stopped"
    assert len(list((client.out / "checkpoints").glob("*.safetensors"))) == 2
    made = client.steps()
    client.step_s = 0.0
    again = client.submit(job, "--nodes", 2)
    assert again["job_id"] == submitted["job_id"]
    assert again["native_id"] != submitted["native_id"]
    assert client.wait(again["job_id"])["exit_code"] == 0
    assert is_complete(client, 2)
    assert client.steps() <= 2 * STEPS + 4
    assert client.steps() > made


def test_a_job_goes_on_without_a_node_that_is_lost(client, slurm):
    client.hold_steps()
    submitted = client.submit(client.write_job(clips=4, sample_steps=8), "--nodes", 2)
    step_until(client, lambda: client.steps() >= 4)
    slurm.take_down("h2")
    wait_until(lambda: "was lost with its node" in log_of(client, submitted["job_id"]), every_s=0.5)
    client.release_steps()
    assert client.wait(submitted["job_id"])["state"] == "succeeded"
    assert is_complete(client, 4)
    assert "run 2 of job" not in log_of(client, submitted["job_id"])


def test_a_preempted_job_is_requeued_and_continues(client, slurm):
    client.hold_steps()
    submitted = client.submit(client.write_job(clips=2, sample_steps=STEPS), "--nodes", 2)
    step_until(client, lambda: client.steps() >= 6)
    urgent = slurm.run("sbatch", "--parsable", "-p", "urgent", "-N2", "--exclusive", "--wrap", "sleep 600").strip()
    wait_until(lambda: "PENDING" in slurm.states(submitted["native_id"]), every_s=0.5)
    assert client.status(submitted["job_id"])["state"] == "pending"
    slurm.run("scancel", urgent)
    client.release_steps()
    restart(slurm, submitted["native_id"])
    assert client.wait(submitted["job_id"])["state"] == "succeeded"
    assert "run 2 of job" in log_of(client, submitted["job_id"])
    assert is_complete(client, 2)
    assert client.steps() < 3 * STEPS  # what was checkpointed was not done again


def test_a_time_limit_ends_in_another_run_until_the_job_is_done(client, slurm):
    client.hold_steps()
    submitted = client.submit(
        client.write_job(clips=2, sample_steps=STEPS), "--nodes", 2, "--time", "0:01:00", "--until-done"
    )
    job_id, number = submitted["job_id"], submitted["native_id"]
    step_until(client, lambda: "goes back to the queue" in log_of(client, job_id), every_s=2.0)
    client.release_steps()
    restart(slurm, number)
    slurm.run("scontrol", "update", f"jobid={number}", "timelimit=30")
    assert client.wait(job_id)["state"] == "succeeded"
    assert is_complete(client, 2)
    assert "run 2 of job" in log_of(client, job_id)


def test_shards_are_independent_jobs_that_render_every_clip_once_from_weights_staged_on_their_nodes(client, tmp_path):
    stage = tmp_path / "node disk"
    client.targets["here"]["stage"] = str(stage)
    submitted = client.submit(
        client.write_job(clips=4, resources={"device": "cpu", "workers": 1}), "--shards", 2, "--nodes", 1
    )
    assert client.wait(submitted["job_id"])["state"] == "succeeded"

    rows = [row for number in range(2) for row in result_rows(client.out / f"shard-{number}")]
    assert sorted(row["row"] for row in rows) == [1, 2, 3, 4]
    assert len({row["clip_id"] for row in rows}) == 4
    spec = Architecture.read(CKPTS).spec("720x720_5s")
    assert all((stage / file).read_bytes() == (CKPTS / file).read_bytes() for file in model_files(spec))
    assert json.loads((client.out / "shard-1" / "job.json").read_text())["job"]["ckpt_dir"] == str(stage)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--partition", "cudda"), "'cuda'"),
        (("--nodes", 9), "at most 2"),
        (("--gpus-per-node", 4), "GPUs that the job needs"),
        (("--time", "soon"), "time limit such as"),
    ],
)
def test_what_slurm_would_refuse_or_let_wait_for_ever_is_told_at_once(client, options, word):
    client("submit", client.write_job(clips=1), "--to", "here", *options, code=2)
    assert word in client.said
    assert not (client.folder / "jobs").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--partition", "paid", "--account", "audio"), ("Invalid account", "give it with --account")),
        (("--partition", "rocm", "--time", "2:00:00"), ("Requested time limit is invalid", "give it with --time")),
    ],
)
def test_a_refusal_of_slurm_itself_is_quoted_with_what_would_do(client, options, words):
    client("submit", client.write_job(clips=1), "--to", "here", "--nodes", 1, *options, code=2)
    assert [word for word in words if word not in client.said] == []


def test_a_pending_job_can_be_stopped(client, slurm):
    blocker = slurm.run("sbatch", "--parsable", "-p", "urgent", "-N2", "--exclusive", "--wrap", "sleep 600").strip()
    wait_until(lambda: slurm.states(blocker) == ["RUNNING"], every_s=0.2)
    submitted = client.submit(client.write_job(clips=1))
    assert submitted["state"] == "pending"
    client("stop", submitted["job_id"])
    slurm.run("scancel", blocker)
    assert client.wait(submitted["job_id"], code=143)["state"] == "stopped"


def test_a_path_that_the_nodes_do_not_have_is_told_by_the_submission(client):
    job = client.write_job(clips=1, ckpt_dir="/nowhere/ckpts")
    client("submit", job, "--to", "here", code=2)
    assert "there is no folder /nowhere/ckpts here" in client.said

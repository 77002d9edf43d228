"""The batch script, and what is read from Slurm's commands; tests/cluster runs them on a real Slurm."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ovi_ray.errors import ClusterError, InputError
from ovi_ray.submission.slurm import SlurmConfig, SlurmTarget
from ovi_ray.submission.states import JobState

SHELLCHECK = Path(sys.executable).with_name("shellcheck")
PROFILE = "cluster/profiles/b.yaml"  # 16 NVIDIA and 8 AMD devices
SINFO = "cuda*|2|gpu:h100:8(S:0-1)|96\ncuda*|1|gpu:h100:4,gpu:a100:4|64\nrocm|4|gpu:mi300x:8|128\ncpu|10|(null)|32\n"


class Commands:
    """Slurm's commands, as programs on the path that answer what a test wants."""

    def __init__(self, folder, monkeypatch):
        self._folder = folder / "bin"
        self._folder.mkdir()
        monkeypatch.setenv("PATH", str(self._folder))
        self.answer("sinfo", SINFO)
        self.answer("squeue", "")
        self.answer("sbatch", "17\n")
        self.answer("scancel", "")

    def answer(self, name, text, *, code=0, error=""):
        program = self._folder / name
        (self._folder / f"{name}.txt").write_text(text)
        (self._folder / f"{name}.err").write_text(error)
        here = self._folder / name
        program.write_text(
            f'#!/bin/sh\necho "$@" >>{here}.calls\n/bin/cat {here}.txt\n/bin/cat {here}.err >&2\nexit {code}\n'
        )
        program.chmod(0o755)

    def calls(self, name):
        path = self._folder / f"{name}.calls"
        return path.read_text().splitlines() if path.exists() else []

    def remove(self, name):
        (self._folder / name).unlink()


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    return Commands(tmp_path, monkeypatch)


@pytest.fixture
def target(slurm, tmp_path):
    def make(**keys):
        return SlurmTarget("alps", SlurmConfig(jobs_dir=str(tmp_path / "jobs"), python="/opt/ovi/bin/python", **keys))

    return make


def sbatch_lines(script):
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]


BOTH = {"nvidia": {"partition": "cuda"}, "amd": {"partition": "rocm", "gpu_type": "mi300x"}}


@pytest.mark.parametrize(
    ("keys", "options"),
    [
        ({}, {}),
        ({"partition": "cpu", "exclusive": True, "setup": ["module load python"], "sbatch": ["--qos=high"]}, {}),
        ({"partitions": BOTH, "time": "8:00:00", "until_done": True}, {"device": "gpu", "cluster": PROFILE}),
        ({"stage": "/local/ovi"}, {"ckpt_dir": "s3://bucket/ckpts", "output_dir": "s3://bucket/out"}),
        ({"stage": "/local/my ovi", "shards": 4, "account": "video"}, {"output_dir": "/shared/it's my out"}),
    ],
)
def test_every_script_is_one_that_shellcheck_finds_nothing_in(target, make_bundle, tmp_path, keys, options):
    script = tmp_path / "batch.sh"
    bundle = replace(make_bundle(**options), render_options=("--notify", "https://chat.example/?a=1&b=2"))
    script.write_text(target(**keys).script(bundle))
    assert " --notify 'https://chat.example/?a=1&b=2'" in script.read_text()
    found = subprocess.run([SHELLCHECK, script], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")


def test_two_vendors_are_two_components_with_the_gpus_that_the_profile_declares(target, make_bundle):
    script = target(partitions=BOTH).script(make_bundle(device="gpu", cluster=PROFILE))
    first, second = " ".join(sbatch_lines(script)).split("hetjob")
    assert tuple(word for word in first.split() if word.startswith(("--partition", "--nodes", "--gres"))) == (
        "--partition=cuda",
        "--nodes=2",
        "--gres=gpu:8",
    )
    assert tuple(word for word in second.split() if word.startswith(("--partition", "--nodes", "--gres"))) == (
        "--partition=rocm",
        "--nodes=1",
        "--gres=gpu:mi300x:8",
    )
    assert "--het-group=0" in script
    assert "node nvidia : --het-group=1" in script


def test_a_job_asks_for_as_many_nodes_as_its_workers_need(target, make_bundle):
    lines = sbatch_lines(target(partition="rocm").script(make_bundle(device="gpu", workers=17)))
    assert {"--nodes=3", "--gres=gpu:8", "--cpus-per-task=128"} <= set(lines)


@pytest.mark.parametrize(
    ("joined", "wanted", "patience_s", "told"),
    [([1, 2, 3], 3, 1e6, "3 of 3 nodes"), ([2, 2], 3, 0.1, "2 of 3 nodes")],
    ids=["all come", "one is late"],
)
def test_a_job_begins_when_its_nodes_have_joined_or_no_other_does(
    target, make_bundle, tmp_path, joined, wanted, patience_s, told
):
    script = target(partition="cpu").script(make_bundle(workers=40))
    waiting = script.partition("wait_for_nodes() {")[2].partition("<<'PYTHON'\n")[2].partition("\nPYTHON\n")[0]
    (tmp_path / "ray.py").write_text(
        f"found = iter({joined})\ndef init(**options): pass\ndef nodes(): return [dict(Alive=True)] * next(found)\n"
    )
    arguments = [sys.executable, "-c", waiting, "10.0.0.1:6379", str(wanted), str(patience_s)]
    ended = subprocess.run(arguments, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == told


def test_a_job_on_cpus_asks_for_no_gpus(target, make_bundle):
    lines = sbatch_lines(target(partition="cpu").script(make_bundle(workers=40)))
    assert {"--nodes=2", "--cpus-per-task=32"} <= set(lines)
    assert not [line for line in lines if line.startswith("--gres")]


def test_a_low_priority_is_a_nice_job(target, make_bundle):
    lines = sbatch_lines(target().script(make_bundle(priority=-100)))
    assert "--nice=100" in lines


@pytest.mark.parametrize(
    ("keys", "options", "field", "words"),
    [
        ({"partition": "cudda"}, {}, "partition", "did you mean 'cuda'?"),
        ({"partition": "cpu"}, {"device": "gpu"}, "gpus_per_node", "GPUs that the job needs"),
        ({"partition": "cuda", "gpus_per_node": 9}, {"device": "gpu"}, "gpus_per_node", "GPUs that the job needs"),
        ({"partition": "rocm"}, {"device": "gpu", "workers": 100}, "nodes", "at most 4"),
        ({"partitions": BOTH, "shards": 2}, {}, "shards", "several kinds of nodes"),
        ({"partitions": BOTH, "nodes": 4}, {}, "nodes", "each of them has its own"),
        ({"partitions": {"nvidia": {}}}, {"device": "gpu", "cluster": PROFILE}, "partitions", "a partition for amd"),
    ],
)
def test_what_the_cluster_lacks_is_told_before_anything_is_written(
    target, make_bundle, tmp_path, keys, options, field, words
):
    with pytest.raises(InputError) as caught:
        target(**keys).submit(make_bundle(**options))
    (problem,) = caught.value.problems
    assert (problem.field, words in problem.expected) == (field, True)
    assert not (tmp_path / "jobs").exists()


def test_a_refusal_of_sbatch_is_quoted_with_what_to_do(target, make_bundle, slurm):
    said = "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified"
    slurm.answer("sbatch", "", code=1, error=said)
    with pytest.raises(InputError) as caught:
        target().submit(make_bundle())
    (problem,) = caught.value.problems
    assert ("Invalid account" in problem.value, "--account" in problem.expected) == (True, True)


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Job's account not known, so it can't use this partition (paid allows video)", "--account"),
        ("AccountNotAllowed", "--account"),
        ("InvalidQOS", "sacctmgr show qos"),
        ("PartitionTimeLimit", "--time"),
        ("PartitionConfig", "scontrol show partition"),
        ("BadConstraints", "a constraint"),
        ("Resources", ""),
        ("AssocGrpCpuLimit", ""),
        ("QOSMaxJobsPerUserLimit", ""),
    ],
)
def test_a_job_that_waits_for_what_no_time_brings_says_what_would_do(target, make_bundle, slurm, reason, words):
    slurm.answer("squeue", f"17|17|PENDING|{reason}\n")
    message = target().submit(make_bundle()).message
    assert message.startswith(reason)
    assert words in message
    assert ("it will not start" in message) == bool(words)


def test_a_machine_without_slurm_is_told(target, make_bundle, slurm):
    slurm.remove("sinfo")
    with pytest.raises(ClusterError, match="no sinfo here"):
        target().check(make_bundle())


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        ("sinfo: fatal: Could not establish a configuration source", "SLURM_CONF"),
        ("slurm_load_partitions: Unable to contact slurm controller (connect failure)", "scontrol ping"),
    ],
)
def test_a_machine_that_finds_no_controller_is_told_what_to_do(target, make_bundle, slurm, error, hint):
    slurm.answer("sinfo", "", code=1, error=error)
    with pytest.raises(ClusterError, match=hint):
        target().check(make_bundle())


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (
            "sbatch: error: Batch job submission failed: Unable to contact slurm controller",
            ClusterError,
            "scontrol ping",
        ),
        ("sbatch: error: invalid partition specified: cudda", InputError, "--partition"),
        ("sbatch: error: Unable to open file", InputError, "a job that Slurm accepts"),
    ],
)
def test_a_controller_that_is_away_is_not_taken_for_a_refusal(target, make_bundle, slurm, error, kind, words):
    slurm.answer("sbatch", "", code=1, error=error)
    with pytest.raises(kind, match=words):
        target().submit(make_bundle())


def test_a_submission_whose_answer_was_lost_is_found_again_and_not_repeated(target, make_bundle, slurm, tmp_path):
    cluster, bundle = target(), make_bundle()
    slurm.answer("sbatch", "", code=1, error="sbatch: error: Unable to contact slurm controller")
    with pytest.raises(ClusterError):
        cluster.submit(bundle)
    script = tmp_path / "jobs" / bundle.job_id / "batch.sh"
    slurm.answer("squeue", f"21+0|{script}\n22|/another/{bundle.job_id}/batch.sh\n21|21|RUNNING|None\n")
    found = cluster.submit(bundle)
    assert (found.native_id, found.state) == ("21", JobState.RUNNING)
    assert len(slurm.calls("sbatch")) == 1


def test_a_job_that_is_about_to_leave_the_queue_is_not_taken_for_its_next_submission(
    target, make_bundle, slurm, tmp_path
):
    cluster, bundle = target(), make_bundle()
    cluster.submit(bundle)
    folder = tmp_path / "jobs" / bundle.job_id
    (folder / "exit_code-0").write_text("143\n")
    slurm.answer("squeue", f"17|{folder / 'batch.sh'}\n17|17|CANCELLED|None\n")
    slurm.answer("sbatch", "18\n")
    assert cluster.submit(bundle).native_id == "18"


def test_what_a_sites_plugins_print_is_passed_over(target, make_bundle, slurm):
    slurm.answer("sinfo", f"plugin: hello\n{SINFO}\n|||\n")
    slurm.answer("sbatch", "welcome | to | the cluster\n17;alps\n")
    slurm.answer("squeue", "plugin: hello\n17|17|RUNNING|None\n\n")
    found = target(partition="rocm").submit(make_bundle())
    assert (found.native_id, found.state) == ("17", JobState.RUNNING)


@pytest.mark.parametrize(("command", "text"), [("sinfo", ""), ("sinfo", "nothing here\n"), ("sbatch", "submitted!\n")])
def test_an_answer_that_says_nothing_is_told(target, make_bundle, slurm, command, text):
    slurm.answer(command, text)
    with pytest.raises(ClusterError, match="see `s"):
        target().submit(make_bundle())


def test_a_number_that_was_not_written_whole_is_as_if_it_were_not_there(target, make_bundle, tmp_path):
    cluster, bundle = target(), make_bundle()
    folder = tmp_path / "jobs" / bundle.job_id
    folder.mkdir(parents=True)
    (folder / "slurm_id").write_bytes(b"1\xff\n")
    assert cluster.jobs() == []
    assert cluster.submit(bundle).native_id == "17"


def test_a_job_is_submitted_once_while_it_waits_or_runs(target, make_bundle, slurm):
    cluster, bundle = target(), make_bundle()
    slurm.answer("squeue", "17|17|PENDING|Resources\n")
    first, second = cluster.submit(bundle), cluster.submit(bundle)
    assert first == second
    assert (first.native_id, first.state, first.message) == ("17", JobState.PENDING, "Resources")
    assert len(slurm.calls("sbatch")) == 1


@pytest.mark.parametrize(
    ("codes", "queue", "state", "exit_code"),
    [
        ({}, "17|17|RUNNING|None\n", JobState.RUNNING, None),
        ({"0": "0"}, "", JobState.SUCCEEDED, 0),
        ({"0": "1"}, "", JobState.FAILED, 1),
        ({"0": "143"}, "17|17|FAILED|NonZeroExitCode\n", JobState.STOPPED, 143),
        ({}, "17|17|CANCELLED|None\n", JobState.STOPPED, 143),
        ({}, "17|17|NODE_FAIL|None\n", JobState.FAILED, None),
        ({}, "", JobState.UNKNOWN, None),
        ({"0": "0"}, "18|17|RUNNING|None\n17|17|COMPLETED|None\n", JobState.RUNNING, None),
        ({"0": "0", "1": "1"}, "", JobState.FAILED, 1),
    ],
)
def test_the_state_is_what_slurm_says_or_the_driver_left(
    target, make_bundle, slurm, tmp_path, codes, queue, state, exit_code
):
    cluster, bundle = target(), make_bundle()
    cluster.submit(bundle)
    for shard, code in codes.items():
        (tmp_path / "jobs" / bundle.job_id / f"exit_code-{shard}").write_text(f"{code}\n")
    slurm.answer("squeue", queue)
    found = cluster.status(bundle.job_id)
    assert (found.state, found.exit_code) == (state, exit_code)


@pytest.mark.parametrize(("state", "option"), [("RUNNING", "--signal=TERM --batch 17"), ("PENDING", "17")])
def test_a_running_job_is_asked_to_save_and_a_pending_one_is_taken_out(target, make_bundle, slurm, state, option):
    cluster, bundle = target(), make_bundle()
    cluster.submit(bundle)
    slurm.answer("squeue", f"17|17|{state}|None\n")
    cluster.stop(bundle.job_id)
    assert slurm.calls("scancel")[-1] == option


def test_a_job_that_was_taken_out_of_the_queue_has_stopped_also_when_slurm_has_forgotten_it(target, make_bundle, slurm):
    cluster, bundle = target(), make_bundle()
    cluster.submit(bundle)
    slurm.answer("squeue", "17|17|PENDING|Resources\n")
    cluster.stop(bundle.job_id)
    slurm.answer("squeue", "")
    stopped = cluster.status(bundle.job_id)
    assert (stopped.state, stopped.exit_code) == (JobState.STOPPED, 143)
    cluster.submit(bundle)
    assert cluster.status(bundle.job_id).state is JobState.UNKNOWN


def test_shards_that_were_stopped_before_they_began_are_not_said_to_have_succeeded(
    target, make_bundle, slurm, tmp_path
):
    cluster, bundle = target(shards=2), make_bundle()
    cluster.submit(bundle)
    slurm.answer("squeue", "17|17|RUNNING|None\n18|17|PENDING|Resources\n")
    cluster.stop(bundle.job_id)
    (tmp_path / "jobs" / bundle.job_id / "exit_code-0").write_text("0\n")
    slurm.answer("squeue", "")
    assert cluster.status(bundle.job_id).state is JobState.STOPPED


def test_a_job_that_is_over_is_not_stopped(target, make_bundle, slurm, tmp_path):
    cluster, bundle = target(), make_bundle()
    cluster.submit(bundle)
    (tmp_path / "jobs" / bundle.job_id / "exit_code-0").write_text("0\n")
    assert cluster.stop(bundle.job_id).state is JobState.SUCCEEDED
    assert slurm.calls("scancel") == []


def test_a_failed_job_is_submitted_again_and_its_log_kept(target, make_bundle, slurm, tmp_path):
    cluster, bundle = target(), make_bundle()
    cluster.submit(bundle)
    folder = tmp_path / "jobs" / bundle.job_id
    (folder / "exit_code-0").write_text("3\n")
    (folder / "driver.log").write_bytes(b"first \xff\n")
    slurm.answer("sbatch", "18;cluster\n")
    again = cluster.submit(bundle)
    assert (again.native_id, again.restarts) == ("18", 1)
    assert b"".join(cluster.logs(bundle.job_id, follow=False)) == b"first \xff\n"
    assert [job.job_id for job in cluster.jobs()] == [bundle.job_id]


@pytest.mark.parametrize("job_id", ["../../etc", "no-such-job", "", "a/b"])
def test_an_id_that_names_no_job_is_told_and_leaves_the_folder_alone(target, job_id):
    with pytest.raises(InputError):
        target().status(job_id)

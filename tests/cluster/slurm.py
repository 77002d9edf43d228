"""A real Slurm of several virtual nodes on this machine: one slurmctld, and a slurmd for each node."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.s3 import free_port
from tests.support.waiting import wait_until

SCREEN = ("slurmctld", "slurmd", "sbatch")
CONFIG = """\
ClusterName=t
SlurmctldHost={host}({address})
SlurmctldPort={port}
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
SchedulerParameters=bf_interval=2,sched_interval=2
ReturnToService=2
GresTypes=gpu
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
EnforcePartLimits=ALL
{nodes}
PartitionName=cuda Nodes=h[1-2] Default=YES State=UP PriorityTier=1 GraceTime=20
PartitionName=rocm Nodes=h3 State=UP PriorityTier=1 GraceTime=20 MaxTime=60
PartitionName=paid Nodes=h3 State=UP PriorityTier=1 AllowAccounts=video
PartitionName=urgent Nodes=h[1-2] State=UP PriorityTier=10 PreemptMode=OFF
"""
GPUS = {"h1": ("h100", "nvidia_gpu_env"), "h2": ("h100", "nvidia_gpu_env"), "h3": ("mi300x", "amd_gpu_env")}
"""Nodes, each with a virtual GPU of this type and the variable that Slurm tells it in."""
CPUS = 2
"""Of a node."""


def why_not() -> str:
    """Why Slurm cannot be started here; "" if it can."""
    if missing := [program for program in SCREEN if shutil.which(program) is None]:
        return f"{', '.join(missing)} not installed: see `make test-cluster`"
    if os.geteuid() != 0:
        return "only root can start Slurm"
    if not _addresses():
        return "this machine has no address but loopback, with which Slurm's daemons do not find each other"
    with tempfile.TemporaryDirectory() as folder:
        try:
            _make_gpu(Path(folder) / "gpu")
        except OSError as error:
            return f"this machine allows no device files, which the virtual GPUs are: {error.strerror}"
    return ""


@dataclass(kw_only=True, slots=True, frozen=True)
class Slurm:
    """A cluster that runs."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which Slurm's commands find it."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def run(self, *command: str) -> str:
        """The output of one of Slurm's commands."""
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, **self.environment},
            timeout=60,
            cwd=self.folder,  # where sbatch leaves a file
        )
        return done.stdout

    def states(self, number: str) -> list[str]:
        """The states of the tasks and components of a job."""
        return self.run("squeue", "--noheader", "--all", "--states=all", f"--jobs={number}", "--format=%T").split()

    def take_down(self, node: str) -> None:
        """Let a node fail; it returns to service when its slurmd registers again."""
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def start_now(self, number: str) -> None:
        """A requeued job does not wait its two minutes."""
        self.run("scontrol", "update", f"jobid={number}", "starttime=now")


@contextmanager
def running_slurm(folder: Path) -> Iterator[Slurm]:
    """A cluster for the time of the block; what still runs there is cancelled at its end."""
    slurm = Slurm(folder=folder)
    _configure(folder)
    environment = {**os.environ, **slurm.environment}
    daemons = [["slurmctld", "-D", "-c", "-i"], *(["slurmd", "-D", "-N", node] for node in GPUS)]
    processes = []
    try:
        for command in daemons:
            with (folder / f"{command[-1]}.out").open("w") as output:
                processes.append(subprocess.Popen(command, stdout=output, stderr=output, env=environment))
        wait_until(lambda: _idle_nodes(slurm) == len(GPUS), every_s=0.2)
        yield slurm
    finally:
        _cancel_all(slurm)
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            process.wait(60)


def _configure(folder: Path) -> None:
    address = _addresses()[0]
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    for node in GPUS:
        _make_gpu(folder / f"gpu-{node}")
    nodes = "\n".join(
        f"NodeName={node} NodeHostName={socket.gethostname()} NodeAddr={address} Port={free_port()} CPUs={CPUS}"
        f" RealMemory=1000 Gres=gpu:{kind}:1 State=UNKNOWN"
        for node, (kind, _) in GPUS.items()
    )
    config = CONFIG.format(host=socket.gethostname(), address=address, port=free_port(), folder=folder, nodes=nodes)
    (folder / "slurm.conf").write_text(config)
    (folder / "gres.conf").write_text(
        "".join(
            f"NodeName={node} Name=gpu Type={kind} File={folder}/gpu-{node} Flags={flag}\n"
            for node, (kind, flag) in GPUS.items()
        )
    )


def _make_gpu(path: Path) -> None:
    """A device file that is a GPU to Slurm: in truth /dev/null."""
    os.mknod(path, 0o20666, os.makedev(1, 3))


def _addresses() -> list[str]:
    """The addresses of this machine that are not loopback."""
    return subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True).stdout.split()


def _idle_nodes(slurm: Slurm) -> int:
    try:
        return slurm.run("sinfo", "--noheader", "--Node", "--partition=cuda,rocm", "--format=%T").split().count("idle")
    except subprocess.CalledProcessError:  # not up yet
        return 0


def _cancel_all(slurm: Slurm) -> None:
    try:
        slurm.run("scancel", "--user=root")
        wait_until(lambda: not slurm.run("squeue", "--noheader").strip(), timeout_s=90, every_s=0.5)
    except (subprocess.SubprocessError, TimeoutError):  # the daemons end all the same
        return

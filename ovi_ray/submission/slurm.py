"""Slurm as a target, through its commands. A job has a folder on a file system that the nodes share.

    JOBS_DIR/ID/   batch.sh, job.yaml, the list and its images
                   slurm_id        the number of its last submission
                   driver.log      what the driver printed, over all of its runs
                   node-0-NAME.log what Ray printed on a node
                   exit_code-0     of the driver, once it has ended for good
                   exit_code-stopped  of what was stopped before it had a driver

With shards, each has its own logs and exit code, and its clips in OUT/shard-N.
"""

import math
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ovi_ray.errors import ClusterError, InputError, Problem, show
from ovi_ray.inputs.job_spec import DeviceKind
from ovi_ray.inputs.params import did_you_mean
from ovi_ray.printing import counted
from ovi_ray.storage.file_locks import lock_exclusively
from ovi_ray.submission.bundle import Bundle
from ovi_ray.submission.states import JOB_ID, JobState, JobStatus
from ovi_ray.submission.templates import render_script

WAIT_S = 300  # for Ray to start on the first node
NODES_WAIT_S = 30  # for the next node to join, before a job begins without it
ANSWER_S = 25.0  # for one of Slurm's commands
TERMINATED = 143  # exit code of a driver that was asked to end
_LOOK_S = 1.0
_SINFO = re.compile(r"^\s*(\S+?)\s*\|\s*(\d+)\s*\|(.*)\|\s*(\d+)\+?\s*$", re.MULTILINE)
"""Partition, nodes, GPUs and CPUs of a node; a site's plugin may print other lines."""
_NEVER = re.compile(
    r"\baccount\b|AccountNotAllowed|Invalid(Account|QOS)|QOSNotAllowed|Partition(Config|TimeLimit|NodeLimit)|Constraints"
)
"""Reasons of a job that waits for what no time brings."""
_WORD = r"[\w.,:=@%+*&|!\[\]()/-]+"
_STATES = {
    "PENDING": JobState.PENDING,
    "REQUEUED": JobState.PENDING,
    "REQUEUE_HOLD": JobState.PENDING,
    "REQUEUE_FED": JobState.PENDING,
    "SPECIAL_EXIT": JobState.PENDING,
    "RESV_DEL_HOLD": JobState.PENDING,
    "CONFIGURING": JobState.RUNNING,
    "RUNNING": JobState.RUNNING,
    "COMPLETING": JobState.RUNNING,
    "SUSPENDED": JobState.RUNNING,
    "STOPPED": JobState.RUNNING,
    "SIGNALING": JobState.RUNNING,
    "STAGE_OUT": JobState.RUNNING,
    "RESIZING": JobState.RUNNING,
    "COMPLETED": JobState.SUCCEEDED,
    "CANCELLED": JobState.STOPPED,
}
"""Slurm's states; all others mean that the job failed."""


class PartitionConfig(BaseModel):
    """The nodes of one vendor."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    partition: str | None = Field(None, pattern=f"^{_WORD}$", description="the name of a partition")
    nodes: int | None = Field(None, ge=1, description="a number of nodes of at least 1")
    gpus_per_node: int | None = Field(None, ge=0, description="a number of GPUs of at least 0")
    gpu_type: str | None = Field(
        None, pattern=f"^{_WORD}$", description="a type of GPU as Slurm names it, such as h100"
    )
    cpus_per_node: int | None = Field(None, ge=1, description="a number of CPUs of at least 1")
    constraint: str | None = Field(None, pattern=f"^{_WORD}$", description="features of nodes, without spaces")


class SlurmConfig(PartitionConfig):
    """The entry of a Slurm cluster in targets.yaml."""

    partitions: dict[Literal["nvidia", "amd"], PartitionConfig] = Field(
        default_factory=dict, description="nvidia or amd, each with partition, nodes, gpus_per_node, gpu_type, ..."
    )
    account: str | None = Field(None, pattern=f"^{_WORD}$", description="an account")
    time: str | None = Field(
        None, pattern=r"^(\d+-)?\d+(:\d+){0,2}$", description="a time limit such as 8:00:00 or 1-12:00:00, in quotes"
    )
    exclusive: bool = Field(False, description="true or false: no other job on the nodes")
    grace_s: int = Field(120, ge=30, description="seconds before the time limit at which the driver saves; at least 30")
    until_done: bool = Field(False, description="true or false: submit again when the time limit ends a run")
    shards: int = Field(1, ge=1, le=1000, description="a number of independent jobs, from 1 to 1000")
    stage: str | None = Field(None, pattern=r"^/", description="the absolute path of a folder on each node's own disk")
    setup: tuple[str, ...] = Field((), strict=False, description="lines of shell, run before anything else")
    sbatch: tuple[str, ...] = Field((), strict=False, description="further options of sbatch, such as --qos=high")
    python: str = Field(sys.executable, pattern=r"\S", description="the Python on the nodes that has ovi-ray")
    jobs_dir: str = Field("~/.ovi-ray/jobs", pattern=r"\S", description="a folder that all nodes share")


@dataclass(kw_only=True, slots=True, frozen=True)
class Component:
    """The equal nodes of a job; more than one make a heterogeneous job."""

    vendor: str
    """nvidia, amd, or "" where it does not matter."""
    partition: str | None
    nodes: int
    gres: str
    """GPUs of each node, as Slurm asks for them; "" for none."""
    cpus_per_node: int | None
    constraint: str | None


@dataclass(kw_only=True, slots=True, frozen=True)
class _Partition:
    """The largest nodes of a partition, as sinfo reports them."""

    is_default: bool
    nodes: int
    gpus: int
    """Of a node."""
    cpus: int


class _Refused(ClusterError):
    """A controller that was reached does not do what a command asks for."""


class SlurmTarget:
    """See the module. Methods are those of `targets.Target`."""

    def __init__(self, name: str, config: SlurmConfig) -> None:
        self._name = name
        self._config = config
        self._jobs_dir = Path(config.jobs_dir).expanduser().absolute()

    def check(self, bundle: Bundle) -> list[str]:
        """See Target."""
        components = self._components(bundle)
        return [
            f"{counted(component.nodes, 'node')} of"
            f" {component.partition or 'the default partition'}{f' with {component.gres}' if component.gres else ''}"
            for component in components
        ]

    def submit(self, bundle: Bundle) -> JobStatus:
        """See Target."""
        script = self.script(bundle)
        with self._locked(bundle.job_id) as folder:
            before = self._status(bundle.job_id) if _numbers(folder) else None
            if before is not None and before.state in (JobState.PENDING, JobState.RUNNING, JobState.SUCCEEDED):
                return before
            bundle.write(folder)
            for old in folder.glob("exit_code-*"):
                old.unlink()
            (folder / "output_dir").write_text(bundle.output_dir, encoding="utf-8")
            (folder / "batch.sh").write_text(script, encoding="utf-8")
            # A submission whose answer did not arrive has left a job in the queue, and no number in the folder.
            known = {number for number, _ in _numbers(folder)}
            number = self._queued(folder / "batch.sh", known) or self._sbatch(folder / "batch.sh")
            with (folder / "slurm_id").open("a", encoding="utf-8") as numbers:
                numbers.write(f"{number} {datetime.now(UTC).isoformat(timespec='seconds')}\n")
        return self._status(bundle.job_id)

    def script(self, bundle: Bundle) -> str:
        """See Target."""
        config, components = self._config, self._components(bundle)
        steps = [_step(component) for component in components]
        if len(steps) > 1:
            steps = [f"--het-group={number} {step}" for number, step in enumerate(steps)]
        weights = bundle.job.ckpt_dir
        return render_script(
            "slurm_job.sh.j2",
            job_id=bundle.job_id,
            version=bundle.version,
            components=components,
            steps=" : ".join(steps),
            nodes=sum(component.nodes for component in components),
            uses_gpus=bundle.job.device is not DeviceKind.CPU,
            job_dir=self._jobs_dir / bundle.job_id,
            ckpt_dir=weights.absolute() if weights is not None else "",
            output_dir=bundle.output_dir,
            stage=config.stage if weights is not None and weights.is_local else None,
            weight_files=bundle.weight_files,
            folders=[weights.absolute()] if weights is not None and weights.is_local else [],
            output_path=bundle.output_dir
            if bundle.job.output_dir is not None and bundle.job.output_dir.is_local
            else "",
            wait_s=WAIT_S,
            nodes_wait_s=NODES_WAIT_S,
            options=bundle.render_options,
            nice=-bundle.job.priority,
            **config.model_dump(
                include={"account", "time", "exclusive", "grace_s", "until_done", "shards", "setup", "sbatch", "python"}
            ),
        )

    def jobs(self) -> list[JobStatus]:
        """See Target."""
        paths = (path.parent for path in self._jobs_dir.glob("*/slurm_id"))
        folders = [folder for folder in paths if JOB_ID.fullmatch(folder.name) and _numbers(folder)]
        queued = self._queue() if folders else {}
        found = [self._status(folder.name, queued) for folder in folders]
        return sorted(found, key=lambda job: job.submitted_at)

    def status(self, job_id: str) -> JobStatus:
        """See Target."""
        self._folder(job_id)
        return self._status(job_id)

    def logs(self, job_id: str, *, follow: bool) -> Iterator[bytes]:
        """See Target."""
        folder = self._folder(job_id)
        shown: dict[Path, int] = {}
        while True:
            is_over = not follow or self._status(job_id).state.is_over
            for path in sorted(folder.glob("driver*.log")):
                with path.open("rb") as log:
                    log.seek(shown.get(path, 0))
                    if piece := log.read():
                        yield piece
                    shown[path] = log.tell()
            if is_over:
                return
            time.sleep(_LOOK_S)

    def stop(self, job_id: str) -> JobStatus:
        """See Target."""
        folder = self._folder(job_id)
        queued = self._queue()
        before = self._status(job_id, queued)
        number = _numbers(folder)[-1][0]
        if JobState.PENDING in _states(queued.get(number, [])):
            # No driver will tell that what waits was stopped, and Slurm forgets it within minutes.
            (folder / "exit_code-stopped").write_text(f"{TERMINATED}\n", encoding="utf-8")
        if before.state is JobState.PENDING:
            self._run("scancel", number)
        elif before.state is JobState.RUNNING:
            self._run("scancel", "--state=PENDING", number)  # shards that wait
            self._run("scancel", "--signal=TERM", "--batch", number)
        return before

    # -- nodes -----------------------------------------------------------------------------------------------------

    def _components(self, bundle: Bundle) -> list[Component]:
        """The nodes of a job. Raises InputError for a partition that does not exist or lacks what the job needs."""
        config, there = self._config, self._partitions()
        partitions: dict[str, PartitionConfig] = {str(vendor): part for vendor, part in config.partitions.items()}
        if config.shards > 1 and len(partitions) > 1:
            expected = "1 for a job on several kinds of nodes, which Slurm does not make an array of"
            raise InputError([self._problem("shards", str(config.shards), expected)])
        wanted = bundle.devices_by_vendor()
        if not partitions:
            count = sum(wanted.values()) if wanted else bundle.job.workers
            return [self._component("", config, count, bundle, there)]
        if beside := {
            name: value for name in PartitionConfig.model_fields if (value := getattr(config, name)) is not None
        }:
            expected = "none beside partitions: each of them has its own"
            raise InputError([self._problem(name, repr(value), expected) for name, value in beside.items()])
        if missing := [vendor for vendor in wanted if vendor not in partitions]:
            raise InputError([self._problem("partitions", ", ".join(partitions), _needs(missing))])
        if wanted:
            return [self._component(v, partitions[v], count, bundle, there) for v, count in wanted.items()]
        return [
            self._component(vendor, part, bundle.job.workers if len(partitions) == 1 else None, bundle, there)
            for vendor, part in partitions.items()
        ]

    def _component(
        self, vendor: str, asked: PartitionConfig, count: int | None, bundle: Bundle, there: dict[str, _Partition]
    ) -> Component:
        default = next((name for name, found in there.items() if found.is_default), "")
        found = there.get(asked.partition or default)
        if asked.partition is not None and found is None:
            expected = f"one of {', '.join(there)}{did_you_mean(asked.partition, there)}"
            raise InputError([self._problem("partition", repr(asked.partition), expected)])
        on_cpus = bundle.job.device is DeviceKind.CPU
        gpus = asked.gpus_per_node
        if gpus is None:
            gpus = 0 if on_cpus or found is None else found.gpus
        if (bundle.job.device is DeviceKind.GPU and not gpus) or (found is not None and gpus > found.gpus):
            has = f"{counted(found.gpus if found else 0, 'GPU')} on a node of {asked.partition or default}"
            raise InputError([self._problem("gpus_per_node", has, "a partition with the GPUs that the job needs")])
        per_node = (asked.cpus_per_node or (found.cpus if found else 1)) if on_cpus or not gpus else gpus
        nodes = asked.nodes or (math.ceil(count / per_node) if count else 1)
        if found is not None and nodes > found.nodes:
            expected = f"at most {found.nodes}, which is all of {asked.partition or default}"
            raise InputError([self._problem("nodes", str(nodes), expected)])
        return Component(
            vendor=vendor,
            partition=asked.partition,
            nodes=nodes,
            gres=f"gpu:{asked.gpu_type}:{gpus}" if gpus and asked.gpu_type else f"gpu:{gpus}" if gpus else "",
            cpus_per_node=asked.cpus_per_node or (_fair_share(found, gpus) if found else None),
            constraint=asked.constraint,
        )

    def _partitions(self) -> dict[str, _Partition]:
        partitions: dict[str, _Partition] = {}
        told = self._run("sinfo", "--noheader", "--format=%P|%D|%G|%c")
        for name, nodes, gres, cpus in (found.groups() for found in _SINFO.finditer(told)):
            gpus = sum(int(count) for count in re.findall(r"gpu(?::[^:,(\s]+)?:(\d+)", gres))
            found = _Partition(is_default=name.endswith("*"), nodes=int(nodes), gpus=gpus, cpus=int(cpus))
            known = partitions.get(name.rstrip("*"), found)
            total = found.nodes if known is found else known.nodes + found.nodes
            largest = max(known, found, key=lambda part: (part.gpus, part.cpus))
            partitions[name.rstrip("*")] = replace(largest, nodes=total)
        if not partitions:
            raise ClusterError(f"Slurm shows no partition to you: see `sinfo --all` (it told {show(told)})")
        return partitions

    def _problem(self, key: str, value: str, expected: str) -> Problem:
        return Problem(file=f"target {self._name}", field=key, value=value, expected=expected)

    # -- Slurm -----------------------------------------------------------------------------------------------------

    def _sbatch(self, script: Path) -> str:
        """The number of the job. Raises InputError for a refusal, with advice."""
        try:
            told = self._run("sbatch", "--parsable", str(script), cwd=script.parent)
        except _Refused as error:
            raise InputError([_refusal(self._name, str(error))]) from error
        if (number := re.search(r"^(\d+)(;.*)?$", told, re.MULTILINE)) is None:
            raise ClusterError(f"sbatch told no number of a job, but {show(told)}: see `squeue --me`")
        return number[1]

    def _queued(self, script: Path, known: Collection[str]) -> str | None:
        """The number of a job of this script in the queue that is not known: one that is may be about to leave it."""
        told = self._run("squeue", "--noheader", f"--name={script.parent.name}", "--format=%i|%o")
        found = re.findall(rf"^\s*(\d+)[^|]*\|{re.escape(str(script))}\s*$", told, re.MULTILINE)
        return next((str(number) for number in reversed(found) if number not in known), None)

    def _run(self, *command: str, cwd: Path | None = None) -> str:
        """The output of a command. Raises ClusterError."""
        try:
            done = subprocess.run(  # noqa: S603
                command, capture_output=True, text=True, timeout=ANSWER_S, check=True, cwd=cwd, errors="replace"
            )
        except FileNotFoundError:
            raise ClusterError(
                f"there is no {command[0]} here: submit to Slurm on a login node of the cluster, or over ssh"
            ) from None
        except subprocess.TimeoutExpired:
            raise ClusterError(
                f"Slurm's controller does not answer {command[0]}: try again, or ask `scontrol ping`"
            ) from None
        except subprocess.CalledProcessError as error:
            reason = " ".join((error.stderr or error.stdout).split()) or f"exit code {error.returncode}"
            told = f"{command[0]}: {reason.removeprefix(f'{command[0]}: ')}"
            if advice := _advice(reason):
                raise ClusterError(f"{told} ({advice})") from None
            raise _Refused(told) from None
        return done.stdout

    def _queue(self) -> dict[str, list[tuple[str, str]]]:
        """(state, reason) of each task of the jobs that Slurm still knows, by job number."""
        found: dict[str, list[tuple[str, str]]] = {}
        text = self._run("squeue", "--noheader", "--all", "--states=all", "--format=%A|%F|%T|%r")
        for own, first, state, reason in re.findall(r"^\s*(\d+)\|(\d+)\|(\w+)\|(.*?)\s*$", text, re.MULTILINE):
            for number in {own, first}:
                found.setdefault(number, []).append((state, reason))
        return found

    # -- states ----------------------------------------------------------------------------------------------------

    def _folder(self, job_id: str) -> Path:
        folder = self._jobs_dir / job_id
        if not JOB_ID.fullmatch(job_id) or not _numbers(folder):
            expected = f"a job that has a folder in {self._jobs_dir} (see `ovi-ray jobs --to {self._name}`)"
            raise InputError([Problem(file="command line", field="ID", value=repr(job_id), expected=expected)])
        return folder

    def _status(self, job_id: str, queued: dict[str, list[tuple[str, str]]] | None = None) -> JobStatus:
        folder = self._jobs_dir / job_id
        numbers = _numbers(folder)
        number, submitted_at = numbers[-1]
        tasks = (self._queue() if queued is None else queued).get(number, [])
        codes = _exit_codes(folder)
        states = _states(tasks)
        active = [state for state in (JobState.RUNNING, JobState.PENDING) if state in states]
        state = active[0] if active else _ended(codes, states)
        over = state.is_over and state is not JobState.UNKNOWN
        return JobStatus(
            job_id=job_id,
            state=state,
            target=self._name,
            native_id=number,
            output_dir=_text(folder / "output_dir"),
            submitted_at=submitted_at,
            exit_code=max(codes, default=TERMINATED if state is JobState.STOPPED else None) if over else None,
            message=next((why for _, reason in tasks if (why := _why_it_waits(reason))), ""),
            restarts=len(numbers) - 1,
        )

    @contextmanager
    def _locked(self, job_id: str) -> Iterator[Path]:
        """The folder of a job, for one submission at a time. Raises ClusterError where it cannot be written."""
        folder = self._jobs_dir / job_id
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with (folder / ".lock").open("w", encoding="utf-8") as lock:
                lock_exclusively(lock, waits=True)
                yield folder
        except OSError as error:
            raise ClusterError(
                f"{folder} cannot be written: {error.strerror or error}; name another jobs_dir"
            ) from error


def _step(component: Component) -> str:
    """The part of srun's command line for one component. srun does not take the number of CPUs from sbatch."""
    cpus = f"--cpus-per-task={component.cpus_per_node} " if component.cpus_per_node else ""
    return f'{cpus}bash "$job_dir/batch.sh" node {shlex.quote(component.vendor)}'


def _fair_share(found: _Partition, gpus: int) -> int:
    """CPUs of a node for so many of its GPUs; all of them for a job without GPUs, and on a node that has none."""
    return max(1, found.cpus * gpus // found.gpus) if gpus and found.gpus else found.cpus


def _needs(vendors: list[str]) -> str:
    return f"a partition for {' and '.join(vendors)} too, since the job's cluster profile has such devices"


def _advice(reason: str) -> str:
    """Advice where Slurm's commands find no controller; "" where they do."""
    hints = {
        "configuration source": "this machine knows no Slurm: submit on a login node, or name its slurm.conf in SLURM_CONF",
        "contact slurm controller": "the controller does not answer: try again, or ask `scontrol ping`",
    }
    return next((hint for words, hint in hints.items() if words in reason), "")


def _refusal(name: str, reason: str) -> Problem:
    """The refusal of sbatch, with advice."""
    return Problem(file=f"target {name}", value=reason, expected=_what_would_do(reason) or "a job that Slurm accepts")


def _why_it_waits(reason: str) -> str:
    """The reason that Slurm gives, with advice where no waiting helps: a site may let such a job into its queue."""
    if reason in ("None", ""):
        return ""
    return f"{reason}: it will not start; expected {_what_would_do(reason)}" if _NEVER.search(reason) else reason


def _what_would_do(reason: str) -> str | None:
    """A choice that Slurm would accept instead of what it gives as a reason; None where none is known."""
    hints = {
        r"account": "an account that you may use: see `sacctmgr show associations user=$USER`, and give it with --account",
        r"qos": "a QOS that you may use: see `sacctmgr show qos`",
        r"feature|constraint": "a constraint that nodes of the partition have: see `sinfo -o '%P %f'`",
        r"partition(config|nodelimit)": "nodes and a time that the partition allows: see `scontrol show partition`",
        r"time": "a time limit that the partition allows: see `sinfo -o '%P %l'`, and give it with --time",
        r"partition": "a partition that exists and that you may use: see `sinfo`, and give it with --partition",
        r"node configuration|processors": "nodes that exist: see `sinfo -o '%P %D %c %G'`",
    }
    return next((hint for words, hint in hints.items() if re.search(words, reason, re.IGNORECASE)), None)


def _numbers(folder: Path) -> list[tuple[str, str]]:
    """(job number, time) of every submission that was written down whole."""
    return re.findall(r"^(\d+) (\S+)$", _text(folder / "slurm_id"), re.MULTILINE)


def _exit_codes(folder: Path) -> list[int]:
    texts = [_text(path).strip() for path in folder.glob("exit_code-*")]
    return [int(text) for text in texts if text.isdecimal()]


def _states(tasks: list[tuple[str, str]]) -> list[JobState]:
    return [_STATES.get(state, JobState.FAILED) for state, _ in tasks]


def _ended(codes: list[int], states: list[JobState]) -> JobState:
    """The state of a job that is not in the queue: what its drivers wrote, or what Slurm remembers."""
    if codes and not any(codes):
        return JobState.SUCCEEDED
    if TERMINATED in codes or JobState.STOPPED in states:
        return JobState.STOPPED
    if codes or states:
        return JobState.FAILED
    return JobState.UNKNOWN


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

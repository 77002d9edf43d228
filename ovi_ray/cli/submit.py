"""`ovi-ray submit`: start a job on a cluster."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ovi_ray import __version__
from ovi_ray.answers import answer
from ovi_ray.cli.common import ExitCode, command_console, read_job, refuse, unused
from ovi_ray.cli.detach import INPUTS_CHECKED
from ovi_ray.cli.dry_run import print_bad_rows
from ovi_ray.cli.options import (
    KEPT_FIELDS,
    LIST_FIELDS,
    RUNTIME_FIELDS,
    SAMPLING_PANEL,
    DisplayOptions,
    JobOptions,
    with_display_options,
    with_job_options,
)
from ovi_ray.cli.render import Metrics, Notify, SkipBadRows
from ovi_ray.cli.run import check_watchers
from ovi_ray.errors import ClusterError
from ovi_ray.inputs.job_spec import PortableJob
from ovi_ray.printing import Console, counted
from ovi_ray.submission.states import JobState, JobStatus

if TYPE_CHECKING:
    from ovi_ray.submission.bundle import Bundle
    from ovi_ray.submission.targets import Target

WATCH_S = 25.0
"""Seconds in which a driver that cannot start there is noticed."""
QUEUE_S = 8.0
"""Seconds after which a job that still waits for machines is left to itself."""
_LOOK_S = 1.0
TARGET_PANEL = "The target, before the values of targets.yaml"
JOB_PANELS = {
    "What to render": ("ckpt_dir", "output_dir", *LIST_FIELDS),
    **SAMPLING_PANEL,
    "How it runs": RUNTIME_FIELDS,
    "What is kept": KEPT_FIELDS,
}

To = Annotated[
    str,
    typer.Option(
        "--to",
        metavar="TARGET",
        help="slurm, kubernetes, the address of a Ray cluster's dashboard, or a name of targets.yaml.",
    ),
]

JobOrList = Annotated[str, typer.Argument(metavar="JOB", help="A job file (YAML), a prompt list, or a prompt.")]
Nodes = Annotated[
    int | None,
    typer.Option(help="Number of nodes, or of worker pods. [default: the target's]", rich_help_panel=TARGET_PANEL),
]
GpusPerNode = Annotated[
    int | None, typer.Option(help="GPUs of each node or pod. [default: the target's]", rich_help_panel=TARGET_PANEL)
]
Partition = Annotated[
    str | None, typer.Option(help="Slurm: partition. [default: the target's]", rich_help_panel=TARGET_PANEL)
]
TimeLimit = Annotated[
    str | None,
    typer.Option(
        "--time", help="Slurm: time limit, such as 8:00:00. [default: the target's]", rich_help_panel=TARGET_PANEL
    ),
]
Account = Annotated[
    str | None, typer.Option(help="Slurm: account. [default: the target's]", rich_help_panel=TARGET_PANEL)
]
UntilDone = Annotated[
    bool,
    typer.Option(
        "--until-done",
        help="Slurm: go on in another run after the time limit. [default: off]",
        rich_help_panel=TARGET_PANEL,
    ),
]
Shards = Annotated[
    int | None,
    typer.Option(
        help="Slurm: independent jobs, each with a part of the clips. [default: the target's, else one]",
        rich_help_panel=TARGET_PANEL,
    ),
]
Image = Annotated[
    str | None,
    typer.Option(
        help="Kubernetes: container image with ovi-ray. [default: the target's]", rich_help_panel=TARGET_PANEL
    ),
]
Namespace = Annotated[
    str | None, typer.Option(help="Kubernetes: namespace. [default: the target's]", rich_help_panel=TARGET_PANEL)
]
Queue = Annotated[
    str | None,
    typer.Option(help="Kubernetes: Kueue's local queue. [default: the target's]", rich_help_panel=TARGET_PANEL),
]
PrintScript = Annotated[
    bool,
    typer.Option(
        "--print", help="Print the script or manifests that start the job there, and submit nothing. [default: off]"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the job's id and state as JSON. [default: off]")]


@with_job_options(JOB_PANELS)
@with_display_options
def submit(
    prompts: JobOrList,
    to: To,
    job_options: JobOptions,
    display: DisplayOptions,
    nodes: Nodes = None,
    gpus_per_node: GpusPerNode = None,
    partition: Partition = None,
    time_limit: TimeLimit = None,
    account: Account = None,
    until_done: UntilDone = False,
    shards: Shards = None,
    image: Image = None,
    namespace: Namespace = None,
    queue: Queue = None,
    skip_bad_rows: SkipBadRows = False,
    metrics: Metrics = None,
    notify: Notify = None,
    print_script: PrintScript = False,
    as_json: AsJson = False,
) -> None:
    """Submit a job to a cluster and return. The same job, submitted again, goes on where it is, or continues where it stopped.

    The prompt list and the images that it names are shipped; checkpoint and output folders are paths on the cluster's nodes, or
    URIs. Clusters with names are in ~/.config/ovi-ray/targets.yaml. A Ray cluster that asks for a token gets the one in
    RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.

    Examples:

        ovi-ray submit jobs/quickstart/job.yaml --to 10.0.0.1:8265

        ovi-ray submit job.yaml --to slurm --partition gpu --nodes 4 --time 8:00:00 --until-done

        ovi-ray submit job.yaml --to kubernetes --image registry.example/ovi-ray:0.1.0-cuda --nodes 4 --gpus-per-node 8

        ovi-ray submit job.yaml --to rack --skip-bad-rows --notify https://chat.example/hooks/1

        ovi-ray submit job.yaml --to slurm --print
    """
    from ovi_ray.submission.bundle import bundle_of, job_name
    from ovi_ray.submission.targets import find_target

    options = {
        "partition": partition,
        "nodes": nodes,
        "gpus_per_node": gpus_per_node,
        "time": time_limit,
        "account": account,
        "until_done": until_done or None,
        "shards": shards,
        "image": image,
        "namespace": namespace,
        "queue": queue,
    }
    with command_console(display) as console:

        def tell(text: str) -> None:
            console.print(text, soft_wrap=True)

        refuse(unused({"--json": as_json and print_script}, "beside --print, which prints the script alone"))
        target = find_target(to, options)
        bundle = bundle_of(
            read_job(PortableJob, prompts, job_options),
            name=job_name(prompts),
            version=__version__,
            skip_bad_rows=skip_bad_rows,
            render_options=_watched_by(metrics, notify),
        )
        print_bad_rows(bundle.bad_rows, console)
        if print_script:
            answer(target.script(bundle), end="")
            raise typer.Exit
        for note in (*target.check(bundle), *bundle.notes):
            tell(f"note: {note}")
        started_at = time.monotonic()
        status = _start(target, bundle, to, options)
        _announce(bundle, tell)
        if not as_json:
            answer(bundle.job_id)
        status = _watch(target, status, started_at, tell)
        if as_json:
            answer(json.dumps({**asdict(status), "clips": bundle.clips}))
        _conclude(target, status, console)


def _watched_by(metrics: str | None, notify: str | None) -> tuple[str, ...]:
    """The options of the driver there. Raises InputError for what it would refuse."""
    check_watchers(metrics, notify)
    given = {"--metrics": metrics, "--notify": notify}
    return tuple(part for option, value in given.items() if value is not None for part in (option, value))


def _start(target: "Target", bundle: "Bundle", to: str, options: Mapping[str, Any]) -> JobStatus:
    """Start the job, and note in the journal where it is."""
    from ovi_ray.submission.journal import Entry, Journal
    from ovi_ray.submission.targets import PLACES

    status = target.submit(bundle)
    submitted_at = status.submitted_at or datetime.now(UTC).isoformat(timespec="seconds")
    place = {name: options[name] for name in PLACES if options[name] is not None}
    entry = Entry(
        job_id=bundle.job_id, target=to, output_dir=bundle.output_dir, submitted_at=submitted_at, options=place
    )
    Journal().add(entry)
    return status


def _announce(bundle: "Bundle", tell: Callable[[str], None]) -> None:
    tell(f"{counted(bundle.clips, 'clip')}, {counted(len(bundle.files), 'file')} of {bundle.size / 1e6:.1f} MB shipped")
    for path in bundle.must_exist:
        tell(f"must be reachable on every node: {path}")


def _watch(target: "Target", status: JobStatus, since: float, tell: Callable[[str], None]) -> JobStatus:
    """The state once the driver has checked its inputs there, the job has ended, or the time is over.

    The job is there: a target that does not answer any more is told, and changes nothing.
    """
    latest = status
    try:
        for latest in _states(target, status):
            if time.monotonic() - since > (QUEUE_S if latest.state is JobState.PENDING else WATCH_S):
                break
    except ClusterError as error:
        tell(f"note: the job was started, and cannot be watched: {error}")
    return latest


def _states(target: "Target", status: JobStatus) -> Iterator[JobStatus]:
    """The states of a job, until it is over or its driver has checked its inputs."""
    while True:
        yield status
        if status.state.is_over or (status.state is JobState.RUNNING and _has_checked(target, status.job_id)):
            return
        time.sleep(_LOOK_S)
        status = target.status(status.job_id)


def _has_checked(target: "Target", job_id: str) -> bool:
    return INPUTS_CHECKED.encode() in b"".join(target.logs(job_id, follow=False))


def _conclude(target: "Target", status: JobStatus, console: Console) -> None:
    """Tell the state; the end of the log and an exit code for a job that has failed already."""

    def tell(text: str, style: str | None = None) -> None:
        console.print(text, style=style, soft_wrap=True)

    match status.state:
        case JobState.FAILED | JobState.STOPPED:
            log = b"".join(target.logs(status.job_id, follow=False)).decode(errors="replace")
            tell("\n".join(log.splitlines()[-30:]))
            tell(f"{status.job_id} has {status.state}: {status.message or 'see above'}", "red")
            raise typer.Exit(exit_code_of(status))
        case JobState.PENDING:
            tell(f"{status.job_id} is pending{f': {status.message}' if status.message else ''}")
        case state:
            tell(f"{status.job_id} is {state}" if state is JobState.RUNNING else f"{status.job_id} has {state} already")
    tell(f"ovi-ray status {status.job_id}; ovi-ray logs -f {status.job_id}; ovi-ray stop {status.job_id}", "dim")


def exit_code_of(status: Any) -> int:
    """The exit code of a command that reports the end of a job: the driver's own, where it is known."""
    if status.exit_code is not None:
        return int(status.exit_code)
    codes = {JobState.SUCCEEDED: ExitCode.OK, JobState.STOPPED: ExitCode.TERMINATED}
    return codes.get(status.state, ExitCode.UNAVAILABLE)

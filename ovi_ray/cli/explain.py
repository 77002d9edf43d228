"""`ovi-ray explain`: why clips and workers ran what they ran, from the record of a run."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any

import pyarrow.compute as pc
import typer

from ovi_ray.answers import answer
from ovi_ray.cli.common import ExitCode, command_console, location
from ovi_ray.cli.options import LOCATION, DisplayOptions, with_display_options
from ovi_ray.errors import COMMAND_LINE, InputError, Problem, show
from ovi_ray.printing import counted, printable
from ovi_ray.scheduling.states import IllegalTransition
from ovi_ray.storage.diagnostics import plain_reason
from ovi_ray.storage.paths import Location, local_copy

if TYPE_CHECKING:
    from ovi_ray.output.event_log import RecordedRun
    from ovi_ray.report.run_history import ListedClip
    from ovi_ray.simulation.replay import Replay

MAX_MATCHES = 3


@with_display_options
def explain(
    out: Annotated[str, typer.Argument(metavar="OUT", help=f"Output folder of a job: {LOCATION}.")],
    display: DisplayOptions,
    clip: Annotated[
        str | None,
        typer.Option(metavar="ID", help="The life of a clip; the beginning of its id is enough. [default: none]"),
    ] = None,
    worker: Annotated[
        str | None, typer.Option(metavar="NAME", help="The life of a worker, such as w0. [default: none]")
    ] = None,
    run: Annotated[
        int | None, typer.Option(min=1, help="Number of the run, from 1. [default: the last one that fits]")
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Replay the run's events and check that the scheduler decides the same. [default: off]"
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON. [default: off]")] = False,
) -> None:
    """Tell from a job's record why its tasks ran where they ran. Without an option: a summary of the last run.

    With --verify the exit code is 1 if a decision differs, which means that another version wrote the record.

    Examples:

        ovi-ray explain out

        ovi-ray explain out --clip 82d8eb

        ovi-ray explain s3://bucket/out --worker w0 --run 1 --json
    """
    with command_console(display):
        if sum([clip is not None, worker is not None, verify]) > 1:
            raise _wrong("OPTIONS", "more than one", "one of --clip, --worker and --verify")
        with _runs(location(out, "OUT")) as runs:
            folder = location(out, "OUT")
            value, lines = _answer(folder, _chosen(runs, run), len(runs), clip=clip, worker=worker, verify=verify)
            answer(json.dumps(value, default=sorted) if as_json else "\n".join(map(printable, lines)))
    if verify and value["divergence"] is not None:
        raise typer.Exit(ExitCode.FAILED)


def _answer(
    folder: Location,
    runs: "list[RecordedRun]",
    count: int,
    *,
    clip: str | None,
    worker: str | None,
    verify: bool,
) -> tuple[dict[str, Any], Iterable[str]]:
    """The answer as data and as text. `runs` are those to search, the preferred one first; `count` is how many there are."""
    from ovi_ray.report import history_reader as reader
    from ovi_ray.report import history_text as text

    if clip is not None:
        found, number = _find_clip(runs, clip)
        life = replace(reader.clip_history(found, number), listed=_listed(folder, found.clip_ids[number]))
        return asdict(life), text.clip_lines(life)
    if worker is not None:
        work_life = reader.worker_history(_find_worker(runs, worker), worker)
        return asdict(work_life), text.worker_lines(work_life)
    if verify:
        replayed = _replay(runs[0])
        return asdict(replayed), _replay_lines(replayed, runs[0].number)
    glance = reader.summary(runs[0], count)
    return asdict(glance), text.summary_lines(glance)


def _listed(folder: Location, clip_id: str) -> "ListedClip | None":
    """A clip's place in the list of the last run, from its manifest, as far as that can be read."""
    from ovi_ray.inputs.manifest import Manifest
    from ovi_ray.inputs.task_table import TaskTable
    from ovi_ray.output.job_files import MANIFEST
    from ovi_ray.report.run_history import ListedClip

    try:
        table = Manifest.read(folder / MANIFEST).table
    except (InputError, OSError):
        return None
    found = table.filter(pc.equal(table.column("clip_id"), clip_id))
    if not len(found):
        return None
    clip = TaskTable.of(Manifest(table=found)).clip(0)
    meta = {name: value for name, value in clip.meta.items() if value}
    return ListedClip(row=clip.row, line=clip.line, repeat=clip.repeat, meta=meta)


@contextmanager
def _runs(folder: Location) -> "Iterator[list[RecordedRun]]":
    """The recorded runs of a folder, oldest first."""
    from ovi_ray.output.event_log import EVENTS_FILE, recorded_runs

    path = folder / EVENTS_FILE
    try:
        with local_copy(path) as local:
            yield recorded_runs(local, name=str(path))
    except OSError as error:
        found = "missing" if isinstance(error, FileNotFoundError) else f"unreadable ({plain_reason(error)})"
        expected = "the record of a job in its output folder"
        raise InputError([Problem(file=str(path), value=found, expected=expected)]) from None
    except (IndexError, KeyError, IllegalTransition) as error:  # numbers of clips or workers that do not fit together
        found = f"a record that contradicts itself ({error!r})"
        raise InputError([Problem(file=str(path), value=found, expected="the record that ovi-ray wrote")]) from None


def _chosen(runs: "list[RecordedRun]", number: int | None) -> "list[RecordedRun]":
    """The run that was asked for, or all that can be read, the last one first."""
    if number is None:
        return [run for run in reversed(runs) if run.is_readable] or runs[-1:]
    if number > len(runs):
        raise _wrong("--run", str(number), f"1 to {len(runs)}")
    return [runs[number - 1]]


def _find_clip(runs: "list[RecordedRun]", prefix: str) -> "tuple[RecordedRun, int]":
    """The first run with a clip whose id starts so, and the clip's number in it."""
    for run in runs:
        numbers = [number for number, clip_id in enumerate(run.clip_ids) if clip_id.startswith(prefix)]
        if len(numbers) > 1:
            ids = ", ".join(run.clip_ids[number] for number in numbers[:MAX_MATCHES])
            raise _wrong("--clip", show(prefix), f"the beginning of one id only; {len(numbers)} begin so: {ids}, ...")
        if numbers:
            return run, numbers[0]
    every = dict.fromkeys(clip_id for run in runs for clip_id in run.clip_ids)
    closest = sorted(every, key=lambda clip_id: -_common_prefix(clip_id, prefix))[:MAX_MATCHES]
    raise _wrong("--clip", show(prefix), f"a clip of a recorded run, such as {', '.join(closest)}")


def _find_worker(runs: "list[RecordedRun]", name: str) -> "RecordedRun":
    """The first run with a worker of this name."""
    from ovi_ray.report.history_reader import workers_of

    known: dict[str, None] = {}
    for run in runs:
        workers = workers_of(run)
        if name in workers:
            return run
        known |= dict.fromkeys(workers)
    matches = get_close_matches(name, known, MAX_MATCHES) or list(known)[:MAX_MATCHES]
    such = f", such as {', '.join(matches)}" if matches else "; none was started"
    raise _wrong("--worker", show(name), f"a worker of a recorded run{such}")


def _replay(run: "RecordedRun") -> "Replay":
    from ovi_ray.protocol.observer import Cycle
    from ovi_ray.simulation.replay import replay

    cycles = (entry for entry in run.entries() if isinstance(entry, Cycle))
    return replay(run.workload, run.config, cycles)


def _replay_lines(replayed: "Replay", run: int) -> Iterator[str]:
    divergence = replayed.divergence
    if divergence is None:
        done = f"{counted(replayed.actions, 'action')} in {counted(replayed.cycles, 'cycle')}"
        yield f"run {run}: {done}, all the same when replayed"
        return
    recorded, again = divergence.first_difference
    yield f"run {run}: cycle {divergence.cycle}, {divergence.now:.1f} s after the start, differs when replayed"
    yield f"  recorded {recorded}"
    yield f"  replayed {again}"


def _common_prefix(first: str, second: str) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _wrong(field: str, value: str, expected: str) -> InputError:
    return InputError([Problem(file=COMMAND_LINE, field=field, value=value, expected=expected)])

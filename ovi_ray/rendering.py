"""Renders a job from beginning to end; `ovi-ray render` is a thin layer over `render`.

    lock the folder -> check its owner -> find finished clips -> recover videos without a row -> render the rest -> report

However it ends, finished clips are kept, and the same call continues from there. Every run appends to `run.log` and
`events.jsonl` in the output folder.
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from ovi.quality import Quality, computes_in_fp8
from ovi_ray.errors import MAX_SHOWN, JobStopped, OutputGone
from ovi_ray.inputs.columns import QUALITY_COLUMN
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.inputs.manifest import Manifest
from ovi_ray.inputs.policies import scheduler_config
from ovi_ray.inputs.row_ranges import RowRanges
from ovi_ray.inputs.task_table import TaskTable, workload_of
from ovi_ray.output.broken_files import set_aside
from ovi_ray.output.folder_state import check_format, check_owner, check_seeds, compare, read_folder
from ovi_ray.output.intermediates import Intermediates
from ovi_ray.output.job_files import (
    FAILED_COLUMNS,
    begin_overwrite,
    end_overwrite,
    only_failed,
    read_failed,
    read_job_file,
    read_token,
    write_failed,
    write_job,
    write_rejected,
)
from ovi_ray.output.lock import output_lock
from ovi_ray.output.progress_file import JobProgress, write_progress
from ovi_ray.output.record_files import RecordConfig
from ovi_ray.output.recovery import VideoCheck, VideoState, check_videos, recover_rows
from ovi_ray.output.result_row import result_row
from ovi_ray.output.results import Results, ResumeState
from ovi_ray.preparation import PreparedJob
from ovi_ray.printing import counted
from ovi_ray.protocol.observer import JobObserver, Observers, RunEnded, RunStarted
from ovi_ray.protocol.progress import WorkerTime
from ovi_ray.report.result_queries import count_noted
from ovi_ray.runtime.background_writer import WriteInterval
from ovi_ray.runtime.clock import Clock
from ovi_ray.runtime.cluster_probe import check_joinable
from ovi_ray.runtime.driver import Driver, DriverConfig
from ovi_ray.runtime.executor import Executor
from ovi_ray.runtime.job_report import JobReport
from ovi_ray.runtime.progress_writer import JobCounts, ProgressWriter
from ovi_ray.runtime.run_record import run_record
from ovi_ray.runtime.shutdown import StopRequest
from ovi_ray.scheduling.task import ClipStatus
from ovi_ray.storage.diagnostics import reason_with_file, usable
from ovi_ray.storage.reading import ReadConfig

_END_TRIES = 3  # of each write at the end of a run; more would keep the user waiting for a storage that is away
_PAUSE_BETWEEN_TRIES_S = 0.5

if TYPE_CHECKING:
    from ovi_ray.runtime.ray_executor import ExecutorConfig

OpenExecutor = Callable[[JobSpec, "ExecutorConfig | None"], AbstractContextManager[Executor]]
"""Starts the workers of a job, and stops them at the end of the block."""


@dataclass(kw_only=True, slots=True, frozen=True)
class RenderOptions:
    """The treatment of files of earlier runs, the files to keep, and the tuning of the runtime."""

    overwrite: bool = False
    """Render every clip again; an existing video stays until its replacement is complete."""
    verify: bool = False
    """Decode every finished video completely before it counts as finished."""
    rows: RowRanges | None = None
    """Rows of the list whose clips are rendered; None for all."""
    limit: int | None = None
    """Clips that are rendered at most."""
    replaces: bool = False
    """The clips replace others in the folder, so that none of them needs to be known there (`ovi-ray retry`)."""
    reading: ReadConfig = field(default_factory=ReadConfig)
    """Number of tries at a finished video that cannot be read."""
    executor: "ExecutorConfig | None" = None
    """When a worker counts as dead; None for the usual limits."""
    driver: DriverConfig = field(default_factory=DriverConfig)
    record: RecordConfig = field(default_factory=RecordConfig)
    progress: WriteInterval = field(default_factory=lambda: WriteInterval(seconds=3.0))
    """Interval between writes of `progress.json`."""
    report: WriteInterval = field(default_factory=lambda: WriteInterval(seconds=30.0, share=0.02))
    """Interval between writes of the report while the job runs."""


@dataclass(kw_only=True, slots=True, frozen=True)
class JobResult:
    """The outcome of a job."""

    clips: int
    """Clips of the manifest."""
    done: int
    """Rendered in this run."""
    failed: int
    """Given up in this run; each clip's row has the reason."""
    finished_before: int
    """Rendered by earlier runs and left as they were."""
    seconds: float
    """Of rendering, as in `run.log`, the report and `ovi-ray explain`; starting and stopping Ray are left out."""
    noted: int = 0
    """Finished clips of the folder with a note in their row, such as one colour or silence throughout."""
    superseded: int = 0
    """Finished clips of the folder that the list does not ask for; they are kept, and stand apart."""
    left: int = 0
    """Not rendered, because the run was to render other rows, or not so many clips."""
    bad_rows: int = 0
    """Rows of the list that were left out: they stand in `rejected.csv`."""
    unreadable: int = 0
    """Not rendered, because there is a video that could not be read; it was left as it is, and the next run looks again."""


def _ray_executor(job: JobSpec, config: "ExecutorConfig | None") -> AbstractContextManager[Executor]:
    if job.address:
        check_joinable(job.address)
    from ovi_ray.runtime.ray_executor import ray_executor  # with Ray and torch, which a finished job does without

    return ray_executor(job, config)


def render(
    prepared: PreparedJob,
    *,
    options: RenderOptions | None = None,
    stop: StopRequest | None = None,
    observer: JobObserver | None = None,
    open_executor: OpenExecutor = _ray_executor,
    clock: Clock | None = None,
) -> JobResult:
    """Render the missing clips of a checked job into its output folder, and write its report.

    `stop` ends the job safely from a signal handler or another thread; `observer` is called on this thread. Raises OutputError
    when the folder is in use, belongs to another job, was written by a newer version or is removed meanwhile, ClusterError when
    Ray cannot serve the job, WorkersLost when no worker is left, and JobStopped.
    """
    observer, stop, output_dir = observer or JobObserver(), stop or StopRequest(), prepared.job.output_dir

    def folder_lost() -> None:
        stop.ask("another driver has taken the folder over", grace_s=0.0)

    with ExitStack() as held:
        with usable(output_dir, also_away=True):
            output_dir.mkdir()
            held.enter_context(output_lock(output_dir, on_lost=folder_lost, tell=observer.message))
            # Nothing of the folder is read before it is held: a driver that ends now may still write to it.
            run = _Run(prepared=prepared, options=options or RenderOptions(), stop=stop, observer=observer)
        return run.to_the_end(open_executor, clock)


def _with_latents_policy(job: JobSpec) -> JobSpec:
    """The job with its choice whether latents are kept: where it makes none, a run must not remove what another one kept."""
    if job.keep_latents is not None:
        return job
    saved = read_job_file(job.output_dir).get("job")
    keeps = isinstance(saved, dict) and saved.get("keep_latents") is True
    return job.model_copy(update={"keep_latents": keeps})


class _Run:
    """One run of a job, on a locked folder."""

    def __init__(
        self, *, prepared: PreparedJob, options: RenderOptions, stop: StopRequest, observer: JobObserver
    ) -> None:
        self._job = _with_latents_policy(prepared.job)
        self._manifest = prepared.manifest
        self._damaged = prepared.damaged
        self._keeps_seeds = prepared.keeps_seeds
        self._options = options
        self._stop = stop
        self._observer = observer
        self._results = Results(prepared.job.output_dir)
        self._intermediates = Intermediates(
            output_dir=prepared.job.output_dir,
            keep_latents=bool(self._job.keep_latents),
            checkpoint_s=prepared.job.checkpoint_s,
        )
        self._started_at = datetime.now(UTC)
        self._seconds = 0.0
        self._bad_rows = prepared.bad_rows
        self._done = self._failed = self._noted = self._superseded = self._left = 0
        self._unreadable: set[str] = set()
        self._is_gone = False
        """Another folder may have the place of the output now."""
        self._workers: tuple[WorkerTime, ...] = ()
        self._job_report: JobReport | None = None

    def to_the_end(self, open_executor: OpenExecutor, clock: Clock | None) -> JobResult:
        """Find the missing clips, render them, write the report."""
        with usable(self._job.output_dir, also_away=True):
            notes = self._compared()
        with run_record(self._job.output_dir, self._observer.message, self._options.record) as record:
            self._observer = Observers([self._observer, record])
            for note in notes:
                self._observer.message(note)
            return self._recorded(open_executor, clock)

    def _compared(self) -> list[str]:
        """Notes on the clips in the folder, for the user to read before any is rendered.

        Raises OutputOfOtherJob, SeedsDiffer and ResultsTooNew: nothing was changed then.
        """
        table, folder = self._manifest.table, read_folder(self._job.output_dir)
        comparison = compare(table, folder)
        self._superseded = comparison.superseded
        check_format(folder)
        if not self._options.replaces:
            check_owner(table, folder, comparison)
            check_seeds(folder, comparison, keep_seeds=self._job.keep_seeds)
        return list(comparison.notes(replaces=self._options.replaces))

    def _recorded(self, open_executor: OpenExecutor, clock: Clock | None) -> JobResult:
        with usable(self._job.output_dir, also_away=True):
            missing = self._chosen(self._missing())
            self._failed_before = self._failures_of(missing)
            token = write_job(self._job.output_dir, self._job, self._manifest, keeps_seeds=self._keeps_seeds)
            # The list keeps the reasons of clips that are rendered again, until they end: their rows are dropped.
            write_failed(self._job.output_dir, self._manifest, self._failed_before.to_batches())
            if not self._options.replaces:
                write_rejected(self._job.output_dir, self._bad_rows)
            self._results.drop(missing.table.column("clip_id"))
            missing = self._without_damaged(missing)
        finished_before = len(self._manifest) - len(missing) - len(self._unreadable) - self._failed - self._left
        try:
            with self._watchable(finished_before, token, has_work=len(missing) > 0):
                if len(missing):
                    self._render(TaskTable.of(missing), open_executor, clock, token)
                else:
                    self._record_nothing_to_do(TaskTable.of(missing))
            with suppress(OSError):  # the next `--overwrite` finds every clip replaced, and goes on from there
                end_overwrite(self._job.output_dir)
        except OutputGone:
            self._is_gone = True
            raise
        finally:
            self._try_to_report()
        return JobResult(
            clips=len(self._manifest),
            done=self._done,
            failed=self._failed,
            finished_before=finished_before,
            seconds=self._seconds,
            noted=self._noted,
            superseded=self._superseded,
            left=self._left,
            bad_rows=len(self._bad_rows),
            unreadable=len(self._unreadable),
        )

    @contextmanager
    def _watchable(self, finished_before: int, token: str, *, has_work: bool) -> Iterator[None]:
        """Tell whoever watches from elsewhere how far the run is, for the time of the block."""
        output_dir = self._job.output_dir

        def write(progress: JobProgress) -> None:
            if read_token(output_dir) == token:  # else another folder has the place of the output now
                write_progress(output_dir, progress)

        counts = JobCounts(clips=len(self._manifest), done=finished_before, failed=self._failed)
        tell = self._observer.message
        with usable(output_dir, also_away=True):
            report = self._job_report = JobReport(
                self._job,
                self._manifest.table,
                started_at=self._started_at,
                finished_before=finished_before,
                token=token,
                interval=self._options.report,
                message=tell,
            )
        with ProgressWriter(write, counts, self._options.progress, tell) as writer:
            self._observer = Observers([self._observer, writer, report])
            if has_work:
                report.begin()
            try:
                yield
            finally:
                report.stop()

    # -- earlier runs ----------------------------------------------------------------------------------------------

    def _missing(self) -> Manifest:
        """The clips to render. Leftovers of finished clips are removed on the way."""
        self._intermediates.prepare()
        ids = self._manifest.table.column("clip_id")
        newer_than = self._begin_overwrite(ids) if self._options.overwrite else 0.0
        found = self._resumed(newer_than)
        for note in found.notes:
            self._observer.message(note)
        if self._options.verify and self._verify(found.finished):
            found = self._resumed(newer_than)
        if self._recover(found.videos):
            found = self._resumed(newer_than)
        if self._unreadable:
            count = counted(len(self._unreadable), "video")
            self._observer.message(f"{count} could not be read; run the command again once they can be")
        self._intermediates.remove_all_committed(found.finished)
        done = pc.is_in(ids, value_set=pa.concat_arrays([found.finished, pa.array(self._unreadable, pa.string())]))
        has_failed = pc.is_in(ids, value_set=self._ids_failed_before(found))
        table = self._manifest.table
        # Clips that failed before come last: those that kill their workers must not keep others from being rendered.
        parts = [table.filter(pc.invert(pc.or_(done, has_failed))), table.filter(pc.and_not(has_failed, done))]
        return Manifest(table=pa.concat_tables(parts), notes=self._manifest.notes)

    def _chosen(self, missing: Manifest) -> Manifest:
        """The clips that this run is to render, of those that are missing."""
        table = missing.table
        if self._options.rows is not None:
            table = table.filter(self._options.rows.among(table.column("row")))
        table = table.slice(0, self._options.limit)
        self._left = len(missing) - len(table)
        return Manifest(table=table, notes=missing.notes)

    def _resumed(self, newer_than: float) -> ResumeState:
        table = self._manifest.table
        return self._results.resume(table.column("clip_id"), newer_than=newer_than, listed=table)

    def _begin_overwrite(self, ids: pa.ChunkedArray) -> float:
        """The time since when videos count, for `--overwrite`: that of an earlier run which was stopped, else now."""
        since, is_new = begin_overwrite(self._job.output_dir)
        if is_new:
            for clip_id in ids.filter(pc.is_in(ids, value_set=self._intermediates.clip_ids())).to_pylist():
                self._intermediates.remove(clip_id)
        return since

    def _ids_failed_before(self, found: ResumeState) -> pa.Array:
        listed = read_failed(self._job.output_dir).column("clip_id").combine_chunks()
        return pa.concat_arrays([found.failed, listed])

    def _failures_of(self, missing: Manifest) -> pa.Table:
        """Why clips that are rendered now failed before: by their row, else by the list of an earlier run."""
        rows = only_failed(self._results.current(FAILED_COLUMNS))
        listed = read_failed(self._job.output_dir)
        listed = listed.filter(pc.invert(pc.is_in(listed.column("clip_id"), value_set=rows.column("clip_id"))))
        failures = pa.concat_tables([rows, listed])
        is_missing = pc.is_in(failures.column("clip_id"), value_set=missing.table.column("clip_id"))
        return failures.filter(is_missing)

    def _verify(self, finished: pa.Array) -> int:
        """Read finished videos to their end. Returns how many are damaged, and were set aside."""
        checks = self._checked(finished)
        return sum(check.state is VideoState.DAMAGED for check in checks)

    def _recover(self, videos: pa.Array) -> int:
        """Write the rows of whole videos that have none. Returns the number of rows."""
        recovered = recover_rows(self._checked(videos), self._results, self._job.numerics)
        if recovered:
            self._observer.message(f"recovered the missing rows of {counted(recovered, 'finished video')}")
        return recovered

    def _checked(self, videos: pa.Array) -> Iterator[VideoCheck]:
        """Check videos, set damaged ones aside, and note those that cannot be read, which are left as they are."""
        for check in check_videos(self._manifest, videos, self._results, self._options.reading):
            clip_id = check.clip.clip_id
            if check.state is VideoState.DAMAGED:
                kept = set_aside(self._results.video_path(clip_id))
                self._observer.message(f"{check.problem}; it is kept as {kept}, and the clip is rendered again")
            elif check.state is VideoState.UNREADABLE:
                self._unreadable.add(clip_id)
                if len(self._unreadable) <= MAX_SHOWN:
                    self._observer.message(f"{check.problem}; it is left as it is, and the clip is not rendered")
            yield check

    # -- this run --------------------------------------------------------------------------------------------------

    def _without_damaged(self, missing: Manifest) -> Manifest:
        """The clips whose weights are right. The others fail now: rendered, they would be black and silent."""
        models = pa.array(self._damaged, pa.string())
        is_damaged = pc.is_in(missing.table.column("model_name"), value_set=models)
        tasks = TaskTable.of(Manifest(table=missing.table.filter(is_damaged)))
        for index in range(len(tasks)):
            clip = tasks.clip(index)
            error = f"its frames and sound would not be finite numbers: {self._damaged[clip.model_name]}"
            facts = {"dtype": self._job.numerics}
            self._results.append(
                result_row(clip, facts, status=ClipStatus.FAILED, error=error, finished_at=datetime.now(UTC))
            )
        self._results.flush()
        self._failed += len(tasks)
        for model, damage in self._damaged.items():
            self._observer.message(
                f"clips of {model} fail: their frames and sound would not be finite numbers, because its weights are"
                f" damaged: {damage}; fetch them again"
            )
        return Manifest(table=missing.table.filter(pc.invert(is_damaged)), notes=missing.notes)

    @contextmanager
    def _stopped_while_ray_starts(self) -> Iterator[None]:
        """SIGTERM asks the job to stop also while Ray's own handler, which ends the process, has the place of the driver's."""
        try:
            yield
        except SystemExit as end:
            if end.code != signal.SIGTERM:
                raise
            self._stop.ask(signal.SIGTERM.name)
            raise JobStopped(f"stopped by {self._stop.reason}") from None

    def _render(self, tasks: TaskTable, open_executor: OpenExecutor, clock: Clock | None, token: str) -> None:
        driver_config = self._options.driver
        job = _as_workers_plan(self._job, tasks)
        with self._stopped_while_ray_starts(), open_executor(job, self._options.executor) as executor:
            with usable(self._job.output_dir, also_away=True):
                driver = Driver(
                    tasks,
                    executor,
                    self._results,
                    dtype=self._job.numerics,
                    intermediates=self._intermediates,
                    stop=self._stop,
                    observer=self._observer,
                    config=replace(driver_config, scheduler=scheduler_config(self._job, driver_config.scheduler)),
                    clock=clock,
                    token=token,
                )
            try:
                driver.run()
            finally:
                executor.shutdown()
                progress = driver.progress()
                self._done, self._workers = progress.done, driver.worker_times()
                self._failed += progress.failed
                self._seconds = driver.seconds

    def _record_nothing_to_do(self, tasks: TaskTable) -> None:
        ids = tasks.clips.column("clip_id").combine_chunks()
        scheduler = self._options.driver.scheduler
        self._observer.started(RunStarted(workload=workload_of(tasks), config=scheduler, clip_ids=ids))
        self._observer.ended(RunEnded(now=0.0, done=0, failed=0, error=""))

    def _try_to_report(self) -> None:
        if self._is_gone:
            return
        # What workers that were killed left half written: no worker lives any more.
        self._try("what is half written cannot be removed", self._results.remove_unfinished)
        self._try("what is half written cannot be removed", self._intermediates.remove_unfinished)
        self._try("the failed clips cannot be listed", self._list_failed)
        self._try("the report cannot be written", self._report)

    def _try(self, complaint: str, write: Callable[[], None]) -> None:
        """Do something at the end of the run, where a failing storage must not hide how the job ended."""
        for attempt in range(1, _END_TRIES + 1):
            try:
                write()
            except OSError as error:
                if attempt == _END_TRIES:
                    self._observer.message(f"{complaint}: {reason_with_file(error)}; the next run does it")
                else:
                    time.sleep(_PAUSE_BETWEEN_TRIES_S)
            else:
                break

    @property
    def _written(self) -> Results:
        """The rows at the end of the run; the report has read most of them already."""
        return self._results if self._job_report is None else self._job_report.results

    def _list_failed(self) -> None:
        rows = list(self._written.current(FAILED_COLUMNS))
        ended = pa.chunked_array([batch.column("clip_id") for batch in rows], pa.string())
        before = self._failed_before
        not_ended = before.filter(pc.invert(pc.is_in(before.column("clip_id"), value_set=ended)))
        write_failed(self._job.output_dir, self._manifest, [*not_ended.to_batches(), *rows])

    def _report(self) -> None:
        self._noted = count_noted(self._written.current)
        if self._job_report is None:
            return
        if self._done or self._failed or self._workers:
            self._job_report.write_end(self._seconds, self._workers)
        else:
            self._job_report.write_again()


def _as_workers_plan(job: JobSpec, tasks: TaskTable) -> JobSpec:
    """The job with the quality of its clips that takes the most memory."""
    qualities = map(Quality, tasks.clips.column(QUALITY_COLUMN).unique().to_pylist())
    return job.model_copy(update={"quality": max(qualities, key=computes_in_fp8)})

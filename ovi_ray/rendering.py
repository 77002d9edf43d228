"""Renders a job from beginning to end; `ovi-ray render` is a thin layer over `render`.

    lock the folder -> check its owner -> find finished clips -> recover videos without a row -> render the rest -> report

However it ends, finished clips are kept, and the same call continues from there. Every run appends to `run.log` and
`events.jsonl` in the output folder.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from ovi_ray.errors import OutputError
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.inputs.manifest import Manifest
from ovi_ray.inputs.task_table import TaskTable, workload_of
from ovi_ray.output.intermediates import Intermediates
from ovi_ray.output.job_files import FAILED_COLUMNS, check_owner, write_failed, write_job
from ovi_ray.output.lock import output_lock
from ovi_ray.output.record_files import RecordConfig
from ovi_ray.output.recovery import VideoCheck, check_videos, recover_rows
from ovi_ray.output.results import Results
from ovi_ray.preparation import PreparedJob
from ovi_ray.protocol.observer import JobObserver, Observers, RunEnded, RunStarted
from ovi_ray.protocol.progress import WorkerTime
from ovi_ray.report.html import ReportSummary, write_report
from ovi_ray.runtime.clock import Clock
from ovi_ray.runtime.driver import Driver, DriverConfig
from ovi_ray.runtime.executor import Executor
from ovi_ray.runtime.ray_executor import ExecutorConfig, ray_executor
from ovi_ray.runtime.run_record import run_record
from ovi_ray.runtime.shutdown import StopRequest
from ovi_ray.scheduling.config import RetryConfig
from ovi_ray.storage.paths import Location

OpenExecutor = Callable[[JobSpec, ExecutorConfig], AbstractContextManager[Executor]]
"""Starts the workers of a job, and stops them at the end of the block."""


@dataclass(kw_only=True, slots=True, frozen=True)
class RenderOptions:
    """What happens to files of earlier runs, what is kept, and how the runtime is tuned."""

    overwrite: bool = False
    """Render every clip again; an existing video stays until its replacement is complete."""
    verify: bool = False
    """Decode every finished video completely before it counts as finished."""
    replaces: bool = False
    """The clips replace others in the folder, so that none of them needs to be known there (`ovi-ray retry`)."""
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    driver: DriverConfig = field(default_factory=DriverConfig)
    record: RecordConfig = field(default_factory=RecordConfig)


@dataclass(kw_only=True, slots=True, frozen=True)
class JobResult:
    """How a job ended."""

    clips: int
    """Clips of the manifest."""
    done: int
    """Rendered in this run."""
    failed: int
    """Given up in this run; each clip's row has the reason."""
    finished_before: int
    """Rendered by earlier runs and left as they were."""
    seconds: float


def render(
    prepared: PreparedJob,
    *,
    options: RenderOptions | None = None,
    stop: StopRequest | None = None,
    observer: JobObserver | None = None,
    open_executor: OpenExecutor = ray_executor,
    clock: Clock | None = None,
) -> JobResult:
    """Render the missing clips of a checked job into its output folder, and write its report.

    `stop` ends the job safely from a signal handler or another thread; `observer` is called on this thread. Raises OutputError
    when the folder is in use, belongs to another job or was written by a newer version, ClusterError when Ray cannot serve the
    job, WorkersLost when no worker is left, and JobStopped.
    """
    observer = observer or JobObserver()
    with _usable(prepared.job.output_dir):
        run = _Run(prepared=prepared, options=options or RenderOptions(), stop=stop or StopRequest(), observer=observer)
    with ExitStack() as held:
        with _usable(prepared.job.output_dir):
            held.enter_context(output_lock(prepared.job.output_dir, on_lost=run.folder_lost, tell=observer.message))
        return run.to_the_end(open_executor, clock)


@contextmanager
def _usable(output_dir: Location) -> Iterator[None]:
    """Storage errors before rendering starts are the user's to fix: raises OutputError for them."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{output_dir} cannot be used: {error.strerror or error}") from error


class _Run:
    """One run of a job, on a locked folder."""

    def __init__(
        self, *, prepared: PreparedJob, options: RenderOptions, stop: StopRequest, observer: JobObserver
    ) -> None:
        self._job = prepared.job
        self._manifest = prepared.manifest
        self._options = options
        self._stop = stop
        self._observer = observer
        self._results = Results(prepared.job.output_dir)
        self._intermediates = Intermediates(
            output_dir=prepared.job.output_dir,
            keep_latents=prepared.job.keep_latents,
            checkpoint_s=prepared.job.checkpoint_s,
        )
        self._started, self._started_at = time.monotonic(), datetime.now(UTC)
        self._done = self._failed = 0
        self._workers: tuple[WorkerTime, ...] = ()

    def to_the_end(self, open_executor: OpenExecutor, clock: Clock | None) -> JobResult:
        """Find the missing clips, render them, write the report."""
        with _usable(self._job.output_dir):
            if not self._options.replaces:
                check_owner(self._job.output_dir, self._manifest, self._results.done_ids())
        with run_record(self._job.output_dir, self._observer.message, self._options.record) as record:
            self._observer = Observers([self._observer, record])
            return self._recorded(open_executor, clock)

    def folder_lost(self) -> None:
        """Another driver took the folder over, because this one had been silent for too long."""
        self._stop.ask("another driver has taken the folder over", grace_s=0.0)

    def _recorded(self, open_executor: OpenExecutor, clock: Clock | None) -> JobResult:
        with _usable(self._job.output_dir):
            missing = self._missing()
            write_job(self._job.output_dir, self._job, self._manifest)
        finished_before = len(self._manifest) - len(missing)
        try:
            if len(missing):
                self._render(TaskTable.of(missing), open_executor, clock)
            else:
                self._record_nothing_to_do(TaskTable.of(missing))
        finally:
            self._try_to_report(finished_before)
        return JobResult(
            clips=len(self._manifest),
            done=self._done,
            failed=self._failed,
            finished_before=finished_before,
            seconds=time.monotonic() - self._started,
        )

    # -- earlier runs ----------------------------------------------------------------------------------------------

    def _missing(self) -> Manifest:
        """The clips to render. Leftovers of finished clips are removed on the way."""
        self._intermediates.prepare()
        ids = self._manifest.table.column("clip_id")
        found = self._results.resume(wanted=ids)
        for note in found.notes:
            self._observer.message(note)
        if self._options.overwrite:
            for clip_id in ids.filter(pc.is_in(ids, value_set=self._intermediates.clip_ids())).to_pylist():
                self._intermediates.remove(clip_id)
            return self._manifest
        if self._options.verify and self._remove_broken(found.finished):
            found = self._results.resume(wanted=ids)
        if self._recover(found.videos):
            found = self._results.resume(wanted=ids)
        self._intermediates.remove_all_committed(found.finished)
        is_finished, has_failed = (pc.is_in(ids, value_set=those) for those in (found.finished, found.failed))
        table = self._manifest.table
        # Clips that failed before come last: those that kill their workers must not keep others from being rendered.
        parts = [table.filter(pc.invert(pc.or_(is_finished, has_failed))), table.filter(has_failed)]
        return Manifest(table=pa.concat_tables(parts), notes=self._manifest.notes)

    def _remove_broken(self, finished: pa.Array) -> int:
        broken = [check for check in check_videos(self._manifest, finished, self._results) if check.info is None]
        for check in broken:
            self._observer.message(f"{check.problem}; it is rendered again")
            self._results.video_path(check.clip.clip_id).unlink(missing_ok=True)
        return len(broken)

    def _recover(self, videos: pa.Array) -> int:
        """Write the rows of complete videos that have none; others are removed. Returns the number of rows."""
        recovered = recover_rows(self._checked(videos), self._results, self._job.numerics)
        if recovered:
            self._observer.message(f"recovered the missing rows of {recovered} finished video{'s'[: recovered != 1]}")
        return recovered

    def _checked(self, videos: pa.Array) -> Iterator[VideoCheck]:
        for check in check_videos(self._manifest, videos, self._results):
            if check.problem:
                self._observer.message(f"{check.problem}; it is rendered again")
            yield check

    # -- this run --------------------------------------------------------------------------------------------------

    def _render(self, tasks: TaskTable, open_executor: OpenExecutor, clock: Clock | None) -> None:
        with open_executor(self._job, self._options.executor) as executor:
            driver = Driver(
                tasks,
                executor,
                self._results,
                dtype=self._job.numerics,
                intermediates=self._intermediates,
                stop=self._stop,
                observer=self._observer,
                config=_with_retries(self._options.driver, self._job.retries),
                clock=clock,
            )
            try:
                driver.run()
            finally:
                executor.shutdown()
                progress = driver.progress()
                self._done, self._failed, self._workers = progress.done, progress.failed, driver.worker_times()

    def _record_nothing_to_do(self, tasks: TaskTable) -> None:
        ids = tasks.clips.column("clip_id").combine_chunks()
        scheduler = self._options.driver.scheduler
        self._observer.started(RunStarted(workload=workload_of(tasks), config=scheduler, clip_ids=ids))
        self._observer.ended(RunEnded(now=0.0, done=0, failed=0, error=""))

    def _try_to_report(self, finished_before: int) -> None:
        try:
            self._report(finished_before)
        except OSError as error:  # must not hide how the job ended
            self._observer.message(f"the report cannot be written: {error.strerror or error}; the next run writes it")

    def _report(self, finished_before: int) -> None:
        summary = ReportSummary(
            clips=len(self._manifest),
            finished_before=finished_before,
            started_at=self._started_at,
            seconds=time.monotonic() - self._started,
            workers=self._workers,
        )
        write_failed(self._job.output_dir, self._manifest, self._results.batches(FAILED_COLUMNS))
        write_report(self._job.output_dir, self._results.batches, title=_title(self._job), summary=summary)


def _with_retries(config: DriverConfig, retries: int | None) -> DriverConfig:
    """The configuration with the number of retries that a job asks for, after errors and after workers that died."""
    if retries is None:
        return config
    retry = RetryConfig(max_attempts=retries + 1, max_crashes=retries + 1)
    return replace(config, scheduler=replace(config.scheduler, retry=retry))


def _title(job: JobSpec) -> str:
    return job.prompts.stem if job.prompts is not None else "one prompt"

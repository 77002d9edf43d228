"""Rendering a job from beginning to end: what `ovi-ray render` does, as a function.

    lock the folder -> check whose it is -> see what is finished -> adopt videos without a row -> render the rest -> report

However it ends, what is finished is kept and told, and the same call goes on from there.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from ovi_ray.errors import OutputError
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.inputs.manifest import Manifest
from ovi_ray.inputs.task_table import TaskTable
from ovi_ray.output.intermediates import CHECKPOINT_S, Intermediates
from ovi_ray.output.job_files import FAILED_COLUMNS, check_owner, write_failed, write_job
from ovi_ray.output.lock import output_lock
from ovi_ray.output.recovery import VideoCheck, check_videos, recover_rows
from ovi_ray.output.results import Results
from ovi_ray.preparation import PreparedJob
from ovi_ray.protocol.progress import Observer, WorkerTime
from ovi_ray.report.html import ReportSummary, write_report
from ovi_ray.runtime.driver import Driver, Explain, Tell
from ovi_ray.runtime.placement import placements
from ovi_ray.runtime.ray_executor import SILENCE_S, Executor
from ovi_ray.runtime.ray_session import ray_session
from ovi_ray.runtime.shutdown import Stop
from ovi_ray.storage.paths import Location


@dataclass(kw_only=True, slots=True, frozen=True)
class RenderOptions:
    """What is done with what is there already, and what is kept."""

    overwrite: bool = False
    """Render every clip of the list again; its video stays until the new one replaces it."""
    verify: bool = False
    """Read every finished video to its end before it counts as finished."""
    keep_latents: bool = False
    """Keep the latents of finished clips."""
    checkpoint_s: float = CHECKPOINT_S
    """Seconds of denoising that a lost worker may cost."""
    silence_s: float = SILENCE_S
    """Seconds after which a busy worker that does not answer is replaced."""
    replaces: bool = False
    """The clips take the place of others in the folder, so they need not be known there."""


@dataclass(kw_only=True, slots=True, frozen=True)
class JobResult:
    """How a job ended."""

    clips: int
    """Clips of the manifest."""
    done: int
    """Rendered in this run."""
    failed: int
    """In this run; the reason is in each clip's row."""
    finished_before: int
    """Done by an earlier run and left as they were."""
    seconds: float


def render(
    prepared: PreparedJob,
    *,
    options: RenderOptions | None = None,
    stop: Stop | None = None,
    tell: Tell = lambda text: None,
    observer: Observer | None = None,
    explain: Explain | None = None,
) -> JobResult:
    """Render what is missing of a checked job into its output folder, and write its report.

    `tell` gets what the user should know while it runs; `stop` ends the job safely. Raises OutputError when the folder is
    in use, of another job or of a newer version, ClusterError when Ray cannot serve the job, WorkersLost when no worker is
    left, and JobStopped.
    """
    with _usable(prepared.job.output_dir):
        run = _Run(prepared=prepared, options=options or RenderOptions(), stop=stop or Stop(), tell=tell)
    with output_lock(prepared.job.output_dir, on_lost=run.folder_lost, tell=tell):
        return run.to_the_end(observer, explain)


@contextmanager
def _usable(output_dir: Location) -> Iterator[None]:
    """What storage refuses before anything is rendered is for the user to mend."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{output_dir} cannot be used: {error.strerror or error}") from error


class _Run:
    """One run of a job. The folder is locked."""

    def __init__(self, *, prepared: PreparedJob, options: RenderOptions, stop: Stop, tell: Tell) -> None:
        self._job = prepared.job
        self._manifest = prepared.manifest
        self._options = options
        self._stop = stop
        self._tell = tell
        self._ledger = Results(prepared.job.output_dir)
        self._keep = Intermediates(
            output_dir=prepared.job.output_dir, keep_latents=options.keep_latents, checkpoint_s=options.checkpoint_s
        )
        self._started, self._started_at = time.monotonic(), datetime.now(UTC)
        self._done = self._failed = 0
        self._workers: tuple[WorkerTime, ...] = ()

    def to_the_end(self, observer: Observer | None, explain: Explain | None) -> JobResult:
        """Find out what is missing, render it, report."""
        with _usable(self._job.output_dir):
            if not self._options.replaces:
                check_owner(self._job.output_dir, self._manifest, self._ledger.done_ids())
            missing = self._missing()
            write_job(self._job.output_dir, self._job, self._manifest)
        finished_before = len(self._manifest) - len(missing)
        try:
            if len(missing):
                self._render(TaskTable.of(missing), observer, explain)
        finally:
            self._try_to_report(finished_before)
        return JobResult(
            clips=len(self._manifest),
            done=self._done,
            failed=self._failed,
            finished_before=finished_before,
            seconds=time.monotonic() - self._started,
        )

    def folder_lost(self) -> None:
        """Another driver took this one for dead."""
        self._stop.ask("another driver has taken the folder over", grace_s=0.0)

    # -- what there is to do ---------------------------------------------------------------------------------------

    def _missing(self) -> Manifest:
        """The clips that are not finished; what other runs left of the finished ones is cleared away."""
        self._keep.prepare()
        ids = self._manifest.table.column("clip_id")
        found = self._ledger.resume(wanted=ids)
        for note in found.notes:
            self._tell(note)
        if self._options.overwrite:
            for clip_id in ids.filter(pc.is_in(ids, value_set=self._keep.clip_ids())).to_pylist():
                self._keep.remove(clip_id)
            return self._manifest
        if self._options.verify and self._remove_broken(found.finished):
            found = self._ledger.resume(wanted=ids)
        if self._adopt(found.videos):
            found = self._ledger.resume(wanted=ids)
        self._keep.remove_all_committed(found.finished)
        is_finished, has_failed = (pc.is_in(ids, value_set=those) for those in (found.finished, found.failed))
        table = self._manifest.table
        # What failed comes last: clips that kill their workers must not keep the others from being rendered.
        parts = [table.filter(pc.invert(pc.or_(is_finished, has_failed))), table.filter(has_failed)]
        return Manifest(table=pa.concat_tables(parts), notes=self._manifest.notes)

    def _remove_broken(self, finished: pa.Array) -> int:
        broken = [check for check in check_videos(self._manifest, finished, self._ledger) if check.info is None]
        for check in broken:
            self._tell(f"{check.problem}: it is rendered again")
            self._ledger.video_path(check.clip.clip_id).unlink(missing_ok=True)
        return len(broken)

    def _adopt(self, videos: pa.Array) -> int:
        adopted = recover_rows(self._told(videos), self._ledger, self._job.numerics)
        if adopted:
            one = adopted == 1
            self._tell(
                f"{adopted} finished video{'' if one else 's'} had no row: {'it is' if one else 'they are'} taken over"
            )
        return adopted

    def _told(self, videos: pa.Array) -> Iterator[VideoCheck]:
        for check in check_videos(self._manifest, videos, self._ledger):
            if check.problem:
                self._tell(f"{check.problem}: it is rendered again")
            yield check

    # -- doing it --------------------------------------------------------------------------------------------------

    def _render(self, plan: TaskTable, observer: Observer | None, explain: Explain | None) -> None:
        with ray_session(self._job):
            executor = Executor(placements(self._job), silence_s=self._options.silence_s)
            driver = Driver(
                plan,
                executor,
                self._ledger,
                dtype=self._job.numerics,
                keep=self._keep,
                stop=self._stop,
                tell=self._tell,
                observer=observer,
                explain=explain,
            )
            try:
                driver.run()
            finally:
                executor.shutdown()
                progress = driver.progress()
                self._done, self._failed, self._workers = progress.done, progress.failed, driver.worker_times()

    def _try_to_report(self, finished_before: int) -> None:
        try:
            self._report(finished_before)
        except OSError as error:  # how the job ended matters more
            self._tell(f"the report cannot be written: {error.strerror or error}; the next run writes it")

    def _report(self, finished_before: int) -> None:
        summary = ReportSummary(
            clips=len(self._manifest),
            finished_before=finished_before,
            started_at=self._started_at,
            seconds=time.monotonic() - self._started,
            workers=self._workers,
        )
        write_failed(self._job.output_dir, self._manifest, self._ledger.batches(FAILED_COLUMNS))
        write_report(self._job.output_dir, self._ledger.batches, title=_title(self._job), summary=summary)


def _title(job: JobSpec) -> str:
    return job.prompts.stem if job.prompts is not None else "one prompt"

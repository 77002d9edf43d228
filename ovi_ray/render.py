"""Rendering a job from beginning to end: what `ovi-ray render` does, as a function."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute

from ovi_ray.cluster import placements, ray_session
from ovi_ray.driver import Driver, Explain, Observer
from ovi_ray.executor import Executor
from ovi_ray.job import JobSpec
from ovi_ray.ledger import Ledger
from ovi_ray.manifest import Manifest
from ovi_ray.plan import JobPlan
from ovi_ray.preflight import PreparedJob
from ovi_ray.report.html import ReportSummary, write_report
from ovi_ray.usage import WorkerTime

MANIFEST = "manifest.parquet"


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


def render(prepared: PreparedJob, *, observer: Observer | None = None, explain: Explain | None = None) -> JobResult:
    """Render what is missing of a checked job into its output folder, and write its report.

    Raises ClusterError when Ray cannot serve it and WorkersLost when no worker is left. However it ends, what is finished
    is kept and reported, and the same job goes on from there.
    """
    started, started_at = time.monotonic(), datetime.now(UTC)
    job, manifest = prepared.job, prepared.manifest
    ledger = Ledger(job.output_dir)
    manifest.write(job.output_dir / MANIFEST)
    missing = _without(manifest, ledger.resume())
    outcome = _Outcome()
    try:
        if len(missing):
            _run(job, JobPlan.of(missing), ledger, outcome, observer, explain)
    finally:
        summary = ReportSummary(
            clips=len(manifest),
            finished_before=len(manifest) - len(missing),
            started_at=started_at,
            seconds=time.monotonic() - started,
            workers=outcome.workers,
        )
        write_report(job.output_dir, ledger.read(), title=_title(job), summary=summary)
    return JobResult(
        clips=len(manifest),
        done=outcome.done,
        failed=outcome.failed,
        finished_before=len(manifest) - len(missing),
        seconds=time.monotonic() - started,
    )


@dataclass(kw_only=True, slots=True)
class _Outcome:
    """What there is to report of a run, however it ended."""

    done: int = 0
    failed: int = 0
    workers: tuple[WorkerTime, ...] = ()


def _run(
    job: JobSpec, plan: JobPlan, ledger: Ledger, outcome: _Outcome, observer: Observer | None, explain: Explain | None
) -> None:
    with ray_session(job):
        executor = Executor(placements(job))
        driver = Driver(plan, executor, ledger, dtype=job.dtype, observer=observer, explain=explain)
        try:
            driver.run()
        finally:
            executor.shutdown()
            progress = driver.progress()
            outcome.done, outcome.failed, outcome.workers = progress.done, progress.failed, driver.worker_times()


def _title(job: JobSpec) -> str:
    return job.prompts.stem if job.prompts is not None else "one prompt"


def _without(manifest: Manifest, finished: frozenset[str]) -> Manifest:
    if not finished:
        return manifest
    is_finished = pa.compute.is_in(manifest.table.column("clip_id"), value_set=pa.array(sorted(finished), pa.string()))
    return Manifest(table=manifest.table.filter(pa.compute.invert(is_finished)), notes=manifest.notes)

"""Rendering a job from beginning to end: what `ovi-ray render` does, as a function."""

import time
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute

from ovi_ray.cluster import placements, ray_session
from ovi_ray.driver import Driver, Explain, Observer
from ovi_ray.executor import Executor
from ovi_ray.ledger import Ledger
from ovi_ray.manifest import Manifest
from ovi_ray.plan import JobPlan
from ovi_ray.preflight import PreparedJob

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
    """Render what is missing of a checked job into its output folder.

    Raises ClusterError when Ray cannot serve it and WorkersLost when no worker is left. However it ends, what is finished
    is kept, and the same job goes on from there.
    """
    started = time.monotonic()
    job, manifest = prepared.job, prepared.manifest
    ledger = Ledger(job.output_dir)
    manifest.write(job.output_dir / MANIFEST)
    finished = ledger.resume()
    missing = _without(manifest, finished)
    done = failed = 0
    if len(missing):
        with ray_session(job):
            executor = Executor(placements(job))
            try:
                plan = JobPlan.of(missing)
                progress = Driver(plan, executor, ledger, dtype=job.dtype, observer=observer, explain=explain).run()
            finally:
                executor.shutdown()
        done, failed = progress.done, progress.failed
    return JobResult(
        clips=len(manifest),
        done=done,
        failed=failed,
        finished_before=len(manifest) - len(missing),
        seconds=time.monotonic() - started,
    )


def _without(manifest: Manifest, finished: frozenset[str]) -> Manifest:
    if not finished:
        return manifest
    is_finished = pa.compute.is_in(manifest.table.column("clip_id"), value_set=pa.array(sorted(finished), pa.string()))
    return Manifest(table=manifest.table.filter(pa.compute.invert(is_finished)), notes=manifest.notes)

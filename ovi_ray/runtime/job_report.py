"""The report of a job from the first minute of a run to its end."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

import pyarrow as pa

from ovi_ray.inputs.cluster_profile import read_profile
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.output.job_files import read_token
from ovi_ray.output.results import Results
from ovi_ray.protocol.messages import WorkerInfo
from ovi_ray.protocol.observer import Cycle, JobObserver, RunStarted
from ovi_ray.protocol.progress import JobSnapshot, WorkerTime
from ovi_ray.report.html import REPORT, ReportSummary, write_report
from ovi_ray.report.last_run import LastRun, read_last_run, write_last_run
from ovi_ray.report.run_charts import ChartRecorder, RunCharts
from ovi_ray.runtime.background_writer import BackgroundWriter, WriteInterval
from ovi_ray.storage.diagnostics import reason_with_file

_REMEMBERED_BYTES = 64 << 20
"""Rows that are held between two writes: some ten thousand."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Prices:
    """Price of a device an hour, by device class."""

    by_class: dict[str, float | None]
    currency: str

    @classmethod
    def of(cls, job: JobSpec) -> "Prices":
        """The prices of a job's cluster profile; none without one. Raises InputError."""
        if job.cluster is None:
            return cls(by_class={}, currency="")
        profile = read_profile(job.cluster).priced(job.prices)
        prices = {name: devices.price_per_hour for name, devices in profile.devices.items()}
        return cls(by_class=prices, currency=profile.currency)

    def cost(self, workers: tuple[WorkerTime, ...], charts: RunCharts) -> float | None:
        """Of the time that the workers were held; None where one of them has no price."""
        prices = [self.by_class.get(charts.classes.get(worker.worker, "")) for worker in workers]
        known = [price for price in prices if price is not None]
        if not workers or len(known) < len(prices):
            return None
        return sum(price * worker.held_s / 3600 for price, worker in zip(known, workers, strict=True))


class JobReport(JobObserver):
    """Writes the report in the background while a run goes on, and once more at its end.

    A run that renders nothing writes the report of the last run that did, for the list as it is now.
    """

    def __init__(
        self,
        job: JobSpec,
        manifest: pa.Table,
        *,
        started_at: datetime,
        finished_before: int,
        token: str,
        interval: WriteInterval,
        message: Callable[[str], None],
    ) -> None:
        """`token` is the folder's: nothing is written into another one that has its place. Raises OSError."""
        self._job = job
        self._manifest = manifest
        self._started_at = started_at
        self._finished_before = finished_before
        self._token = token
        self.results = Results(job.output_dir, remembers_bytes=_REMEMBERED_BYTES)
        """The rows in the folder for readers: for the thread of the writes, and after `stop` for the driver's."""
        self._prices = Prices.of(job)
        self._recorder = ChartRecorder()
        self._writer = BackgroundWriter(
            "report",
            interval,
            lambda error: message(f"the report cannot be written ({reason_with_file(error)}); the job goes on"),
        )

    def begin(self) -> None:
        """Write the first report."""
        self._start_if_due(0.0)

    def started(self, run: RunStarted) -> None:
        """See JobObserver."""
        self._recorder.started(run)

    def worker_started(self, worker: str, slot: str, info: WorkerInfo) -> None:
        """See JobObserver."""
        self._recorder.worker_started(worker, slot, info)

    def cycle(self, cycle: Cycle) -> None:
        """See JobObserver."""
        self._recorder.cycle(cycle)

    def progress(self, snapshot: JobSnapshot) -> None:
        """Write the report if it is due."""
        self._recorder.progress(snapshot)
        self._start_if_due(snapshot.elapsed_s)

    def stop(self) -> None:
        """Wait for the write that runs."""
        self._writer.close()

    def write_end(self, seconds: float, workers: tuple[WorkerTime, ...]) -> None:
        """Write the report of a run that is over. Raises OSError."""
        self._write(self._run(seconds, workers, is_running=False))

    def write_again(self) -> None:
        """Write the report of a run that had nothing to do. Raises OSError."""
        last = read_last_run(self._job.output_dir)
        if last is not None:
            summary = replace(last.summary, clips=len(self._manifest), is_running=False)
            self._write(replace(last, summary=summary))
        elif not (self._job.output_dir / REPORT).exists():
            self.write_end(0.0, ())

    def _start_if_due(self, seconds: float) -> None:
        if self._writer.is_due:
            run = self._run(seconds, self._recorder.workers(seconds), is_running=True)
            self._writer.start(lambda: self._write_if_in_place(run))

    def _run(self, seconds: float, workers: tuple[WorkerTime, ...], *, is_running: bool) -> LastRun:
        charts = self._recorder.charts()
        summary = ReportSummary(
            clips=len(self._manifest),
            finished_before=self._finished_before,
            started_at=self._started_at,
            seconds=seconds,
            workers=workers,
            is_running=is_running,
            cost=self._prices.cost(workers, charts),
            currency=self._prices.currency,
        )
        return LastRun(summary=summary, charts=charts)

    def _write_if_in_place(self, run: LastRun) -> None:
        if read_token(self._job.output_dir) == self._token:
            self._write(run)

    def _write(self, run: LastRun) -> None:
        output_dir = self._job.output_dir
        write_last_run(output_dir, run)
        write_report(
            output_dir,
            self.results.batches,
            title=_title(self._job),
            summary=run.summary,
            manifest=self._manifest,
            meta_columns=self.results.meta_columns,
            charts=run.charts,
            key=self._token,
        )


def _title(job: JobSpec) -> str:
    return job.prompts.stem if job.prompts is not None else "one prompt"

"""The record that a run leaves in its output folder: `run.log` to read, `events.jsonl` to explain and replay it."""

import logging
import os
import shlex
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from ovi import __version__
from ovi.errors import OviError
from ovi_ray.errors import JobStopped, OviRayError, hide_passwords
from ovi_ray.logs import JOB, RUN_LOG_FILES, run_log
from ovi_ray.output.event_log import (
    EVENTS_FILE,
    EndEntry,
    IdleEntry,
    MessageEntry,
    RunIdentity,
    WorkerEntry,
    cycle_line,
    entry_line,
    header_line,
)
from ovi_ray.output.record_files import AppendedFile, RecordConfig, RecordFolder
from ovi_ray.protocol.messages import WorkerInfo
from ovi_ray.protocol.observer import Cycle, JobObserver, Observers, RunEnded, RunStarted
from ovi_ray.protocol.progress import JobSnapshot
from ovi_ray.runtime.job_log import JobLog
from ovi_ray.scheduling.task import Reason
from ovi_ray.storage.diagnostics import reason_with_file
from ovi_ray.storage.paths import Location, PathOrUri, to_location

logger = logging.getLogger(JOB)


@contextmanager
def run_record(
    output_dir: PathOrUri, message: Callable[[str], None], config: RecordConfig | None = None
) -> Iterator[JobObserver]:
    """An observer that records a run in its output folder. Never raises OSError: a job is not failed for its record.

    `message` is told, once, if the record cannot be written.
    """
    with ExitStack() as resources:
        try:
            observer = _open_record(to_location(output_dir), message, config or RecordConfig(), resources)
        except OSError as error:
            message(f"this run leaves no record: {reason_with_file(error)}")
            observer = JobObserver()
        try:
            yield observer
        except BaseException as error:
            _log_error(error)
            raise


def _open_record(
    output_dir: Location, message: Callable[[str], None], config: RecordConfig, resources: ExitStack
) -> JobObserver:
    folder = RecordFolder(output_dir, (EVENTS_FILE, *RUN_LOG_FILES), config, message)
    resources.callback(folder.close)
    resources.enter_context(run_log(folder.path, message))
    events = AppendedFile(folder.path / EVENTS_FILE, config, message)
    resources.callback(events.close)
    identity = run_identity()
    return Observers([JobLog(identity), EventRecorder(events, identity, after_write=folder.sync_if_due)])


def _log_error(error: BaseException) -> None:
    """Log the error that ends a run; a traceback is logged for unexpected errors only."""
    is_bug = isinstance(error, Exception) and not isinstance(error, OviRayError | OviError)
    level = logging.INFO if isinstance(error, JobStopped | KeyboardInterrupt) else logging.ERROR
    logger.log(level, "%s: %s", type(error).__name__, error, exc_info=error if is_bug else None)


def run_identity() -> RunIdentity:
    """This process."""
    return RunIdentity(
        version=__version__,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        host=socket.gethostname(),
        pid=os.getpid(),
        command=hide_passwords(shlex.join(_command())),
    )


def _command() -> list[str]:
    """The command line of this process, to be run again."""
    program, *arguments = sys.argv
    if Path(program).name == "__main__.py":
        return ["python", "-m", Path(program).parent.name, *arguments]
    return [program, *arguments]


class EventRecorder(JobObserver):
    """Writes a run to an event log."""

    def __init__(self, file: AppendedFile, identity: RunIdentity, *, after_write: Callable[[], None]) -> None:
        """`after_write` is called about once a cycle."""
        self._file = file
        self._identity = identity
        self._after_write = after_write
        self._clip_ids: Sequence[str] = ()
        self._has_started = False
        self._idle: Mapping[str, Reason] = {}
        self._now = 0.0

    def started(self, run: RunStarted) -> None:
        """See JobObserver."""
        self._has_started = True
        self._clip_ids = run.clip_ids.to_pylist()
        self._file.append(header_line(self._identity, config=run.config, workload=run.workload, clip_ids=run.clip_ids))

    def worker_started(self, worker: str, slot: str, info: WorkerInfo) -> None:
        """See JobObserver."""
        entry = WorkerEntry(
            worker=worker, slot=slot, node=info.node, pid=info.pid, device=info.device, vendor=info.vendor
        )
        self._file.append(entry_line(entry))

    def cycle(self, cycle: Cycle) -> None:
        """See JobObserver."""
        self._now = cycle.now
        self._file.append(cycle_line(cycle, self._clip_ids))
        self._file.flush_if_due()
        self._after_write()

    def progress(self, snapshot: JobSnapshot) -> None:
        """Record the workers whose reason to be idle changed."""
        reasons: dict[str, str | None] = {
            worker: str(reason) for worker, reason in snapshot.idle.items() if self._idle.get(worker) is not reason
        }
        reasons |= dict.fromkeys(self._idle.keys() - snapshot.idle.keys())
        self._idle = snapshot.idle
        if reasons:
            self._file.append(entry_line(IdleEntry(at_s=snapshot.elapsed_s, reasons=reasons)))

    def message(self, text: str) -> None:
        """Record a message; those before the run's header are in the log only."""
        if self._has_started:
            self._file.append(entry_line(MessageEntry(at_s=self._now, text=text)))

    def ended(self, run: RunEnded) -> None:
        """See JobObserver."""
        self._file.append(entry_line(EndEntry(at_s=run.now, done=run.done, failed=run.failed, error=run.error)))
        self._file.flush()

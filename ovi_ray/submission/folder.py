"""A job whose output folder is known, whoever started it: its state, its log, and how it is stopped."""

import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

from ovi_ray.errors import InputError, Problem, StorageUnavailable
from ovi_ray.logs import RUN_LOG
from ovi_ray.output.event_log import EVENTS_FILE
from ovi_ray.output.lease import LeaseConfig, last_owner
from ovi_ray.output.owner import Owner
from ovi_ray.output.progress_file import JobProgress, RunState, read_progress
from ovi_ray.printing import counted
from ovi_ray.storage.paths import Location
from ovi_ray.submission.states import JobState, JobStatus

_TAIL_BYTES = 1 << 20
_LOOK_S = 1.0
_OUTPUT_FOLDER = "an output folder of `ovi-ray render`, or the id of a job (see `ovi-ray jobs`)"


class FolderJob:
    """The job of an output folder. Raises OSError where the folder cannot be read, and InputError where it holds no job.

    A folder that cannot be read from the start is an InputError, too.
    """

    def __init__(self, folder: Location) -> None:
        self._folder = folder
        try:
            self._owner()
        except StorageUnavailable:
            raise
        except OSError as error:
            found = f"cannot be read ({error.strerror or error})"
            raise InputError([Problem(file=str(folder), value=found, expected=_OUTPUT_FOLDER)]) from None

    def status(self) -> JobStatus:
        """Running while a driver has the folder; else how the last run ended."""
        owner = self._owner()
        end = self._last_end()
        if owner is None and end is None and not (self._folder / RUN_LOG).exists():
            raise InputError([Problem(file=str(self._folder), value="no job", expected=_OUTPUT_FOLDER)])
        state, message = (JobState.RUNNING, str(owner)) if owner else _how_it_ended(end)
        return JobStatus(
            job_id=self._folder.name,
            state=state,
            target=str(self._folder),
            output_dir=str(self._folder),
            message=message,
            exit_code=_exit_code(state, end),
        )

    def progress(self) -> JobProgress | None:
        """Progress of its last run, or its state when it ended; None for a job of an older version."""
        return read_progress(self._folder)

    def logs(self, *, follow: bool) -> Iterator[bytes]:
        """The log of its runs; with `follow` until no driver has the folder."""
        shown = 0
        while True:
            is_over = (
                self.status().state is not JobState.RUNNING or not follow
            )  # the state is asked first: is it a job?
            log = self._folder / RUN_LOG
            content = log.read_bytes() if log.exists() else b""
            if len(content) > shown:
                yield content[shown:]
                shown = len(content)
            if is_over:
                return
            time.sleep(_LOOK_S)

    def stop(self) -> JobStatus:
        """Ask the driver to save what runs and to end. Raises InputError for one on another machine, or of another user."""
        status, owner = self.status(), self._owner()
        if owner is None:
            return status
        if not owner.is_here:
            expected = f"the id of the job, or this command on {owner.host}: a driver is stopped from its own machine"
            raise InputError([Problem(file=str(self._folder), value=f"in use by {owner}", expected=expected)])
        try:
            os.kill(owner.pid, signal.SIGTERM)
        except ProcessLookupError:  # it has ended meanwhile
            return self.status()
        except PermissionError:
            expected = "this command by the user who started the job"
            raise InputError([Problem(file=str(self._folder), value=f"in use by {owner}", expected=expected)]) from None
        return status

    def _owner(self) -> Owner | None:
        """The driver that renders into the folder now."""
        found = last_owner(self._folder)
        if found is None or found[0].is_dead:
            return None
        owner, renewed_at = found
        is_silent = time.time() - renewed_at > LeaseConfig().stale_s
        return None if is_silent and not owner.is_here else owner

    def _last_end(self) -> dict[str, Any] | None:
        """Outcome of the last run; None where it did not end, or there is none."""
        if (progress := self.progress()) is not None:
            has_ended = progress.state is RunState.ENDED
            return {"error": progress.error, "failed": progress.failed} if has_ended else None
        events = self._folder / EVENTS_FILE
        if not events.exists():
            return None
        lines = events.read_bytes()[-_TAIL_BYTES:].splitlines()
        try:
            end = json.loads(lines[-1]).get("end") if lines else None
        except ValueError:  # a killed run's last line may be cut off
            return None
        return end if isinstance(end, dict) else None


def _exit_code(state: JobState, end: dict[str, Any] | None) -> int | None:
    """Of the last run's driver, where its record tells: a driver that was killed, or that no worker served, had another one."""
    match state:
        case JobState.SUCCEEDED:
            return 0
        case JobState.FAILED if end is not None and not end.get("error"):
            return 1  # some clips failed
        case _:
            return None


def _how_it_ended(end: dict[str, Any] | None) -> tuple[JobState, str]:
    if end is None:
        return JobState.FAILED, "the last run did not end: its driver was killed"
    error, failed = str(end.get("error", "")), int(end.get("failed", 0))
    if not error:
        return (JobState.FAILED, f"{counted(failed, 'clip')} failed") if failed else (JobState.SUCCEEDED, "")
    return (JobState.STOPPED if error.startswith("stopped") else JobState.FAILED), error

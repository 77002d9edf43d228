"""Posts JSON to a URL when a job pauses, ends or fails."""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import requests

from ovi_ray.errors import COMMAND_LINE, InputError, JobStopped, Problem
from ovi_ray.protocol.observer import JobObserver, RunEnded


class JobEvent(StrEnum):
    """The event that is notified."""

    PAUSED = "paused"
    RESUMED = "resumed"
    FINISHED = "finished"
    """Every clip of the run is rendered."""
    FAILED = "failed"
    """Clips failed, or the run ended before its last clip."""
    STOPPED = "stopped"
    """By a signal; the same command continues the job."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Notification:
    """The posted JSON object."""

    event: JobEvent
    text: str
    """One line for people, under the name that chat programs show."""
    job: str
    output_dir: str
    done: int = 0
    """Clips rendered in this run."""
    failed: int = 0
    seconds: float = 0.0
    reason: str = ""


@dataclass(kw_only=True, slots=True, frozen=True)
class NotifyConfig:
    """Limits on the tries of a post."""

    tries: int = 3
    pause_s: float = 2.0
    timeout_s: float = 10.0


def check_url(url: str) -> str:
    """The host of a URL. Raises InputError for what is none."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        expected = "an http:// or https:// URL"
        raise InputError([Problem(file=COMMAND_LINE, field="--notify", value=repr(url[:40]), expected=expected)])
    return parts.hostname


class Notifier(JobObserver):
    """Posts on a thread of its own; what cannot be delivered is told once and fails nothing. For the time of a `with` block."""

    def __init__(
        self,
        url: str,
        *,
        job: str,
        output_dir: str,
        message: Callable[[str], None],
        config: NotifyConfig = NotifyConfig(),
    ) -> None:
        """Raises InputError for what is no URL."""
        self._place = check_url(url)  # the path of such a URL is often a secret
        self._url = url
        self._job = job
        self._output_dir = output_dir
        self._message = message
        self._config = config
        self._end: RunEnded | None = None
        self._has_told = False
        self._waiting: queue.SimpleQueue[Notification | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._deliver, name="notify", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._post_end(error)
        self._waiting.put(None)
        self._thread.join(self._config.tries * (self._config.timeout_s + self._config.pause_s))

    def paused(self, reason: str) -> None:
        """See JobObserver."""
        self._post(JobEvent.PAUSED, f"paused: {reason}", reason=reason)

    def resumed(self) -> None:
        """See JobObserver."""
        self._post(JobEvent.RESUMED, "goes on")

    def ended(self, run: RunEnded) -> None:
        """See JobObserver."""
        self._end = run

    def _post_end(self, error: BaseException | None) -> None:
        end = self._end or RunEnded(now=0.0, done=0, failed=0)
        counts = f"{end.done} rendered, {end.failed} failed"
        if isinstance(error, JobStopped | KeyboardInterrupt):
            event, text = JobEvent.STOPPED, f"was stopped: {counts}"
        elif error is not None:
            event, text = JobEvent.FAILED, f"failed: {error or type(error).__name__}; {counts}"
        elif end.failed:
            event, text = JobEvent.FAILED, f"ended with failures: {counts}"
        else:
            event, text = JobEvent.FINISHED, f"is finished: {counts}"
        reason = "" if error is None else str(error) or type(error).__name__
        self._post(event, text, reason=reason, done=end.done, failed=end.failed, seconds=end.now)

    def _post(
        self, event: JobEvent, text: str, *, reason: str = "", done: int = 0, failed: int = 0, seconds: float = 0.0
    ) -> None:
        self._waiting.put(
            Notification(
                event=event,
                text=f"{self._job} {text}",
                job=self._job,
                output_dir=self._output_dir,
                done=done,
                failed=failed,
                seconds=seconds,
                reason=reason,
            )
        )

    def _deliver(self) -> None:
        while (notification := self._waiting.get()) is not None:
            problem = self._tried(notification)
            if problem and not self._has_told:
                self._has_told = True
                self._message(f"{self._place} could not be notified ({problem}); the job goes on")

    def _tried(self, notification: Notification) -> str:
        """Post, a few times where that fails; why it failed at last, or an empty string."""
        problem = ""
        for number in range(self._config.tries):
            if number:
                time.sleep(self._config.pause_s)
            try:
                answer = requests.post(self._url, json=asdict(notification), timeout=self._config.timeout_s)
            except requests.RequestException as error:
                problem = type(error).__name__
                continue
            if answer.ok:
                return ""
            problem = f"status {answer.status_code}"
        return problem

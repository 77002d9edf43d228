"""Logs the notable events of a run, one line each."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence

from ovi_ray.logs import JOB, MESSAGES
from ovi_ray.output.event_log import RunIdentity
from ovi_ray.protocol.messages import WorkerInfo
from ovi_ray.protocol.observer import Cycle, JobObserver, RunEnded, RunStarted
from ovi_ray.scheduling.actions import Finish
from ovi_ray.scheduling.events import TaskFailed, WorkerLost
from ovi_ray.scheduling.task import BreakerChange, ClipStatus, FailureKind

logger = logging.getLogger(JOB)


class JobLog(JobObserver):
    """An observer that writes to the standard log."""

    def __init__(self, identity: RunIdentity) -> None:
        self._identity = identity
        self._clip_ids: Sequence[str] = ()
        self._varied: Callable[[int], str] | None = None
        self._ended: Counter[ClipStatus] = Counter()

    def started(self, run: RunStarted) -> None:
        """See JobObserver."""
        self._clip_ids = run.clip_ids.to_pylist()
        self._varied = run.varied
        who = self._identity
        logger.info(
            "run started: ovi-ray %s on %s, process %d, %d clips: %s",
            who.version,
            who.host,
            who.pid,
            run.workload.clips,
            who.command,
        )

    def worker_started(self, worker: str, slot: str, info: WorkerInfo) -> None:
        """See JobObserver."""
        logger.info(
            "worker %s started in slot %s: %s on %s, process %d", worker, slot, info.device, info.node, info.pid
        )

    def cycle(self, cycle: Cycle) -> None:
        """See JobObserver."""
        for event in cycle.events:
            match event:
                case WorkerLost(worker=worker, crashed=crashed, log=log):
                    died = f" (its process died{f'; its log: {log}' if log else ''})" if crashed else ""
                    logger.warning("worker %s lost%s", worker, died)
                case TaskFailed(worker=worker, task=task, kind=kind, message=message):
                    level = logging.DEBUG if kind is FailureKind.CANCELLED else logging.WARNING
                    logger.log(level, "%s failed on %s, attempt %d: %s", task.stage, worker, task.attempt, message)
        for action in cycle.actions:
            match action:
                case Finish():
                    self._finished(action)
                case BreakerChange():
                    logger.warning("%s", action)

    def message(self, text: str) -> None:
        """See JobObserver."""
        logging.getLogger(MESSAGES).info("%s", text)

    def ended(self, run: RunEnded) -> None:
        """See JobObserver."""
        level, outcome = (logging.ERROR, f": {run.error}") if run.error else (logging.INFO, "")
        logger.log(level, "run ended after %.0f s, %d clips done, %d failed%s", run.now, run.done, run.failed, outcome)

    def _finished(self, end: Finish) -> None:
        self._ended[end.status] += 1
        count = f"{sum(self._ended.values())} of {len(self._clip_ids)}"
        clip = self._clip_ids[end.clip] + (f", {self._varied(end.clip)}," if self._varied else "")
        if end.status is ClipStatus.DONE:
            logger.info("clip %s done (%s)", clip, count)
        else:
            logger.warning("clip %s failed (%s): %s", clip, count, end.error)

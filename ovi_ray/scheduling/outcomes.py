"""The meaning of a task's end: for its items (done, retried, given up), for its device, and for other devices."""

from ovi.stages import STAGES, Stage
from ovi_ray.scheduling.actions import Action
from ovi_ray.scheduling.dispatcher import Dispatcher
from ovi_ray.scheduling.events import TaskDone, TaskFailed, WorkerLost
from ovi_ray.scheduling.job_state import JobState
from ovi_ray.scheduling.memory_limits import SEVERAL_DEVICES
from ovi_ray.scheduling.quarantine import Quarantine
from ovi_ray.scheduling.ready_work import ReadyWork
from ovi_ray.scheduling.retry_tracker import RetryTracker
from ovi_ray.scheduling.speculation import SpeculativeExecution
from ovi_ray.scheduling.task import FailureKind, Reason, Task
from ovi_ray.scheduling.worker_pool import WorkerPool, WorkerState


class TaskOutcomes:
    """Applies TaskDone, TaskFailed and WorkerLost. Answers from workers that were given up are ignored."""

    def __init__(
        self,
        *,
        job: JobState,
        pool: WorkerPool,
        retries: RetryTracker,
        ready: ReadyWork,
        speculation: SpeculativeExecution,
        dispatcher: Dispatcher,
        quarantine: Quarantine,
    ) -> None:
        self._job = job
        self._pool = pool
        self._retries = retries
        self._ready = ready
        self._speculation = speculation
        self._dispatcher = dispatcher
        self._quarantine = quarantine

    def succeeded(self, event: TaskDone, now: float) -> list[Action]:
        """Learn its times, close the breaker if it was a probe, and complete its items."""
        worker = self._release(event.worker, event.task)
        if worker is None:
            return []
        task = event.task
        self._pool.costs.observe_load(worker.device_class, worker.load_s, event.load_seconds)
        if not task.items:
            return []
        self._pool.learn(worker, task.stage, event.seconds)
        self._pool.memory_limits.finished(task.stage, worker.kind, worker.profile.memory_gb)
        actions = self._quarantine.record_success(worker, task.stage)
        if self._pool.memory_limits or self._pool.capabilities.limits:
            self._dispatcher.apply_memory_limits()
        for item in task.items:
            actions += self._complete(task.stage, item)
            if self._retries:
                actions += self._quarantine.refute((task.stage, item), worker, now)
                self._retries.clear((task.stage, item))
        return actions

    def failed(self, event: TaskFailed, now: float) -> list[Action]:
        """Charge the device or the items, then retry or give up each item at fault; requeue the others."""
        worker = self._release(event.worker, event.task)
        if worker is None:
            return []
        task = event.task
        worker.preload_failed = not task.items
        at_fault = set(event.items or task.items)
        is_known = bool(event.items) or len(task.items) == 1  # of several, it is not known which one is at fault
        actions = self._blame_device(event, worker, now)
        is_faulty = bool(actions)
        for item in reversed(task.items):
            if item not in at_fault:
                actions += self._requeue(task.stage, item)
            elif is_known:
                actions += self._retry_or_give_up(event, item, worker, charged=not is_faulty)
            else:
                actions += self._suspect(event, item, worker)
        return actions

    def _blame_device(self, event: TaskFailed, worker: WorkerState, now: float) -> list[Action]:
        """Collect evidence against the device, and take it off the stage if that suffices.

        Out of memory is evidence only of a single item with nothing beside it: the plan may have allowed too much.
        """
        task, kind = event.task, worker.kind
        if event.kind not in (FailureKind.ERROR, FailureKind.OUT_OF_MEMORY) or not task.items:
            return []
        if event.kind is FailureKind.OUT_OF_MEMORY:
            if len(task.items) > 1 or worker.resident != STAGES[task.stage].components:
                return []
            if not STAGES[task.stage].batched:  # texts differ in length
                self._pool.memory_limits.ran_out(task.stage, kind, worker.slot, self._pool.memory_gb(worker))
        worker.health.of(task.stage).record_failure(task.items, event.message)
        self._dispatcher.apply_memory_limits()
        return self._quarantine.trip_if_faulty(worker, task.stage, kind, now)

    def worker_lost(self, event: WorkerLost, now: float) -> list[Action]:
        """Requeue its task. A crash is charged to the device, or to the item if it ran alone."""
        worker = self._pool.find(event.worker)
        if worker is None:
            return []
        run, actions = worker.running, list[Action]()
        self._dispatcher.worker_unavailable(worker)
        self._pool.remove(worker)
        if run is None:
            return actions
        task = run.task
        if event.crashed and task.items:
            message = f"the worker died during {task.stage}{f'; its log: {event.log}' if event.log else ''}"
            worker.health.of(task.stage).record_failure(task.items, message, crashed=True)
            actions += self._quarantine.trip_if_faulty(worker, task.stage, worker.kind, now)
        charged = not actions
        for item in reversed(task.items):
            if not event.crashed or self._survives_crash(task, item, worker, charged=charged):
                actions += self._retry(task.stage, item, worker.kind)
            else:
                actions += self._give_up(task.stage, item, self._poison_message(task.stage, event.log))
        return actions

    def _release(self, name: str, task: Task) -> WorkerState | None:
        """Make the worker idle; None when it was not running this task (any more)."""
        worker = self._pool.find(name)
        if worker is None or worker.running is None or worker.running.task != task:
            return None
        self._dispatcher.task_ended(worker)
        return worker

    # --- items

    def _complete(self, stage: Stage, item: int) -> list[Action]:
        if not self._job.is_running(stage, item):  # a copy was faster
            return []
        return [*self._speculation.cancel(stage, item, Reason.SUPERSEDED), *self._job.complete(stage, item)]

    def _retry_or_give_up(self, event: TaskFailed, item: int, worker: WorkerState, *, charged: bool) -> list[Action]:
        stage, key = event.task.stage, (event.task.stage, item)
        match event.kind:
            case FailureKind.BAD_INPUT:
                again = False
            case FailureKind.CANCELLED:
                again = True
            case FailureKind.ERROR:
                again = self._retries.record_error(key, worker.slot, charged=charged)
                again = again or self._quarantine.may_be_at_fault(worker, key)
            case FailureKind.OUT_OF_MEMORY:
                memory_gb = self._pool.memory_gb(worker)
                again = self._retries.record_out_of_memory(key, worker.slot, memory_gb, charged=charged)
                again = again or self._quarantine.may_have_too_little_memory(worker, key)
                is_hopeless = self._retries.tries(key, worker.slot) > 1 and self._ran_out_everywhere(stage, worker)
                again = again and not is_hopeless  # a worker that gets an item again tries its last resort
        may_be_done = event.kind is not FailureKind.BAD_INPUT and self._speculation.runs_elsewhere(stage, item)
        if again or may_be_done:
            return self._retry(stage, item, worker.kind)
        return self._give_up(stage, item, event.message or f"{stage} failed: {event.kind}")

    def _suspect(self, event: TaskFailed, item: int, worker: WorkerState) -> list[Action]:
        """An item of a batch that failed, in which others may be at fault: it runs alone next time."""
        if event.kind is not FailureKind.CANCELLED:
            out_of_memory = event.kind is FailureKind.OUT_OF_MEMORY
            self._retries.record_suspicion((event.task.stage, item), out_of_memory=out_of_memory)
        return self._retry(event.task.stage, item, worker.kind)

    def _ran_out_everywhere(self, stage: Stage, worker: WorkerState) -> bool:
        """Whether all devices that should be able to run the stage of this kind ran out of memory, and no other may come."""
        if self._pool.expected:
            return False
        slots = self._pool.memory_limits.slots(stage, worker.kind)
        able = [w for w in self._pool.workers.values() if w.profile.fits(stage, self._pool.costs.kinds[worker.kind])]
        return len(able) >= SEVERAL_DEVICES and all(w.slot in slots for w in able)

    def _survives_crash(self, task: Task, item: int, worker: WorkerState, *, charged: bool) -> bool:
        """Whether an item is tried again after its worker died."""
        if len(task.items) == 1:
            return self._retries.record_crash((task.stage, item), worker.slot, charged=charged)
        self._retries.record_suspicion((task.stage, item))
        return True

    def _retry(self, stage: Stage, item: int, kind: int) -> list[Action]:
        """Requeue an item, which may run anywhere again if it avoids every worker, and no other is expected."""
        if not self._pool.expected and not self._ready.may_run_somewhere(stage, kind, item):
            self._retries.lift_restrictions((stage, item))
        return self._requeue(stage, item)

    def _requeue(self, stage: Stage, item: int) -> list[Action]:
        """The item is ready again, unless a copy of it still runs or has finished."""
        if not self._job.is_running(stage, item) or self._speculation.runs_elsewhere(stage, item):
            return []
        return list(self._job.requeue(stage, item, last=(stage, item) in self._retries.last_items))

    def _give_up(self, stage: Stage, item: int, message: str) -> list[Action]:
        """The item can never be done: the clips that need it fail."""
        self._quarantine.exonerate((stage, item))
        self._retries.clear((stage, item))
        if not self._job.is_running(stage, item):
            return []
        cancels = self._speculation.cancel(stage, item, Reason.CLIP_ENDED)
        return [*cancels, *self._job.give_up(stage, item, message)]

    def _poison_message(self, stage: Stage, log: str) -> str:
        crashes = self._retries.config.max_crashes
        last = f"; the log of the last one: {log}" if log else ""
        return f"poison: {crashes} workers died one after the other, each while it ran the {stage} of this clip alone{last}"

"""The meaning of a task's end: for its items (done, retried, given up), for its device, and for other devices."""

from ovi.stages import CLIP_STAGES, STAGES, Stage
from ovi_ray.scheduling.actions import Action
from ovi_ray.scheduling.dispatcher import Dispatcher
from ovi_ray.scheduling.events import DeviceFree, StepsTimed, TaskDone, TaskFailed, WorkerLost
from ovi_ray.scheduling.job_state import JobState
from ovi_ray.scheduling.memory_limits import SEVERAL_DEVICES
from ovi_ray.scheduling.pairing import PairedDenoises
from ovi_ray.scheduling.quarantine import Quarantine
from ovi_ray.scheduling.ready_work import ReadyWork
from ovi_ray.scheduling.retry_tracker import Item, RetryTracker
from ovi_ray.scheduling.speculation import SpeculativeExecution
from ovi_ray.scheduling.task import FailureKind, Reason, Task
from ovi_ray.scheduling.worker_pool import WorkerPool, WorkerState


class TaskOutcomes:
    """Applies DeviceFree, TaskDone, TaskFailed and WorkerLost. Answers from workers that were given up are ignored."""

    def __init__(
        self,
        *,
        job: JobState,
        pool: WorkerPool,
        retries: RetryTracker,
        ready: ReadyWork,
        speculation: SpeculativeExecution,
        pairing: PairedDenoises,
        dispatcher: Dispatcher,
        quarantine: Quarantine,
        max_writes: int,
    ) -> None:
        """`max_writes` is that of SchedulerConfig."""
        self._job = job
        self._pool = pool
        self._retries = retries
        self._ready = ready
        self._speculation = speculation
        self._pairing = pairing
        self._dispatcher = dispatcher
        self._quarantine = quarantine
        self._max_writes = max_writes

    def device_free(self, event: DeviceFree) -> None:
        """Learn its times, and let the worker take the next task.

        One that writes enough files already stays busy. So does one whose item has failed before: if the worker dies, it must
        be known at which clip. Raises ValueError for another task than a decode: a denoise, which may have copies, is over
        when its device is.
        """
        worker, task = self._pool.find(event.worker), event.task
        if task.stage is not Stage.DECODE or not task.items:
            raise ValueError(f"{event.worker} cannot write the file of {task}; only decodes have one")
        if worker is None or not _runs(worker, task) or self._retries.has_failed((task.stage, task.items[0])):
            return
        if len(worker.writing) >= self._max_writes:
            return
        self._learn(worker, event)
        self._dispatcher.task_ended(worker)
        worker.writing.append(task)

    def steps_timed(self, event: StepsTimed) -> None:
        """Learn the pace of a denoise, where it is a surprise, decides a trial or ends a doubt; else its end is soon enough."""
        worker, task = self._pool.find(event.worker), event.task
        if worker is None or not _runs(worker, task):
            return
        if task.assists or worker.is_assisted or worker.saved_s > 0:  # what it takes alone is known at its end
            return
        is_doubted = self._pool.costs.doubt_of_declared(worker.device_class, task.stage) > 1
        if self._dispatcher.is_news(worker, event.seconds / worker.work_s) or is_doubted:
            self._pool.learn(worker, task.stage, event.seconds)

    def succeeded(self, event: TaskDone, now: float) -> list[Action]:
        """Learn its times, close the breaker if it was a probe, and complete its items."""
        worker, task = self._pool.find(event.worker), event.task
        if worker is None:
            return []
        if task.assists:
            return self._assist_done(event, worker, now)
        cancels: list[Action] = []
        if _runs(worker, task):
            cancels = self._leader_ended(worker, task, now)
            self._learn(worker, event)
        if not self._release(worker, task) or not task.items:
            return cancels
        self._pool.memory_limits.finished(task.stage, self._kind(task, worker), worker.profile.memory_gb)
        actions = [*cancels, *self._quarantine.record_success(worker, task.stage)]
        if self._pool.memory_limits or self._pool.capabilities.limits:
            self._dispatcher.apply_memory_limits()
        for item in task.items:
            actions += self._complete(task.stage, item, now)
            if self._retries:
                actions += self._quarantine.refute((task.stage, item), worker, now)
                self._retries.clear((task.stage, item))
        return actions

    def failed(self, event: TaskFailed, now: float) -> list[Action]:
        """Charge the device or the items, then retry or give up each item at fault; requeue the others."""
        worker, task = self._pool.find(event.worker), event.task
        if worker is None or not self._release(worker, task):
            return []
        if task.assists:
            return self._assist_failed(event, worker, now)
        cancels = self._leader_ended(worker, task, now)
        worker.preload_failed = not task.items
        at_fault = set(event.items or task.items)
        is_known = bool(event.items) or len(task.items) == 1  # of several, it is not known which one is at fault
        blame = self._blame_device(event, worker, now)
        is_faulty = bool(blame)
        actions = [*cancels, *blame]
        for item in reversed(task.items):
            if item not in at_fault:
                actions += self._requeue(task.stage, item)
            elif is_known:
                actions += self._retry_or_give_up(event, item, worker, now, charged=not is_faulty)
            else:
                actions += self._suspect(event, item, worker)
        return actions

    def _blame_device(self, event: TaskFailed, worker: WorkerState, now: float) -> list[Action]:
        """Collect evidence against the device, and take it off the stage if that suffices.

        Out of memory is evidence only of a single item with nothing beside it: the plan may have allowed too much.
        """
        task, kind = event.task, self._kind(event.task, worker)
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
        """Requeue its tasks. A crash is charged to the device, or to the item if there was no other."""
        worker = self._pool.find(event.worker)
        if worker is None:
            return []
        running = [] if worker.running is None else [worker.running.task]
        tasks = [task for task in (*running, *worker.writing) if task.items]
        self._dispatcher.worker_unavailable(worker)
        self._pool.remove(worker)
        actions: list[Action] = []
        for task in tasks:
            if task.assists:
                self._pairing.helper_ended(worker, task.items[0], now, failed=event.crashed)
            else:
                actions += self._leader_ended(worker, task, now)
        blame = self._blame_for_crash(tasks[0], worker, event.log, now) if event.crashed and tasks else []
        actions += blame
        charged, is_alone = not blame, len(tasks) == 1 and len(tasks[0].items) == 1
        for task in tasks:
            if task.assists:  # its clip goes on with its leader
                continue
            kind = self._kind(task, worker)
            for item in reversed(task.items):
                key = (task.stage, item)
                if not event.crashed or self._survives_crash(key, worker, charged=charged, is_alone=is_alone):
                    actions += self._retry(task.stage, item, kind)
                else:
                    actions += self._give_up(task.stage, item, self._poison_message(task.stage, event.log), now)
        return actions

    def _blame_for_crash(self, task: Task, worker: WorkerState, log: str, now: float) -> list[Action]:
        message = f"the worker died during {task.stage}{f'; its log: {log}' if log else ''}"
        worker.health.of(task.stage).record_failure(task.items, message, crashed=True)
        return self._quarantine.trip_if_faulty(worker, task.stage, self._kind(task, worker), now)

    def _learn(self, worker: WorkerState, event: DeviceFree | TaskDone) -> None:
        """Learn from the times of the task that a worker runs."""
        self._pool.costs.observe_load(worker.device_class, worker.load_s, event.load_seconds)
        if event.task.items:
            self._pool.learn(worker, event.task.stage, event.seconds)

    def _release(self, worker: WorkerState, task: Task) -> bool:
        """A worker is done with a task; false when it neither ran nor wrote it (any more)."""
        if task in worker.writing:
            worker.writing.remove(task)
            return True
        if not _runs(worker, task):
            return False
        self._dispatcher.task_ended(worker)
        return True

    def _kind(self, task: Task, worker: WorkerState) -> int:
        """The kind of a task that a worker has run, which may have begun another one since."""
        is_of_clip = task.items and task.stage in CLIP_STAGES
        return self._job.kind_of(task.items[0]) if is_of_clip else worker.kind

    # --- denoises on two devices

    def _leader_ended(self, worker: WorkerState, task: Task, now: float) -> list[Action]:
        """A task that may have been assisted has ended."""
        is_clip = task.stage is Stage.DENOISE and bool(task.items)
        return list(self._pairing.leader_ended(worker, task.items[0], now)) if is_clip else []

    def _assist_done(self, event: TaskDone, helper: WorkerState, now: float) -> list[Action]:
        task = event.task
        if not _runs(helper, task):
            return []
        self._pool.costs.observe_load(helper.device_class, helper.load_s, event.load_seconds)
        self._release(helper, task)
        self._pairing.helper_ended(helper, task.items[0], now, failed=False)
        return self._quarantine.record_success(helper, task.stage)

    def _assist_failed(self, event: TaskFailed, helper: WorkerState, now: float) -> list[Action]:
        """The device is charged, the clip is not: it goes on elsewhere."""
        self._pairing.helper_ended(helper, event.task.items[0], now, failed=True)
        return self._blame_device(event, helper, now)

    def _let_helper_go(self, stage: Stage, item: int, now: float) -> list[Action]:
        """The denoise of a clip is done or given up, by its leader or by another worker."""
        if stage is not Stage.DENOISE:
            return []
        self._pairing.forget(item)
        return list(self._pairing.let_go(item, now))

    # --- items

    def _complete(self, stage: Stage, item: int, now: float) -> list[Action]:
        if not self._job.is_running(stage, item):  # a copy was faster
            return []
        cancels = self._speculation.cancel(stage, item, Reason.SUPERSEDED)
        return [*cancels, *self._let_helper_go(stage, item, now), *self._job.complete(stage, item)]

    def _retry_or_give_up(
        self, event: TaskFailed, item: int, worker: WorkerState, now: float, *, charged: bool
    ) -> list[Action]:
        stage, key = event.task.stage, (event.task.stage, item)
        match event.kind:
            case FailureKind.BAD_INPUT:
                again = False
            case FailureKind.CANCELLED:
                again = True
            case FailureKind.ERROR:
                again = self._retries.record_error(key, worker.slot, charged=charged)
                again = again or self._quarantine.may_be_at_fault(worker, key)
                again = again or self._quarantine.is_owed_a_try(worker, key)
            case FailureKind.OUT_OF_MEMORY:
                memory_gb = self._pool.memory_gb(worker)
                again = self._retries.record_out_of_memory(key, worker.slot, memory_gb, charged=charged)
                again = again or self._quarantine.may_have_too_little_memory(worker, key)
                again = again or self._quarantine.is_owed_a_try(worker, key)
                kind = self._kind(event.task, worker)
                is_hopeless = self._retries.tries(key, worker.slot) > 1 and self._ran_out_everywhere(stage, kind)
                again = again and not is_hopeless  # a worker that gets an item again tries its last resort
        may_be_done = event.kind is not FailureKind.BAD_INPUT and self._goes_on_elsewhere(stage, item)
        if again or may_be_done:
            return self._retry(stage, item, self._kind(event.task, worker))
        return self._give_up(stage, item, event.message or f"{stage} failed: {event.kind}", now)

    def _suspect(self, event: TaskFailed, item: int, worker: WorkerState) -> list[Action]:
        """An item of a batch that failed, in which others may be at fault: it runs alone next time."""
        if event.kind is not FailureKind.CANCELLED:
            out_of_memory = event.kind is FailureKind.OUT_OF_MEMORY
            self._retries.record_suspicion((event.task.stage, item), out_of_memory=out_of_memory)
        return self._retry(event.task.stage, item, self._kind(event.task, worker))

    def _ran_out_everywhere(self, stage: Stage, kind: int) -> bool:
        """Whether all devices that should be able to run the stage of this kind ran out of memory, and no other may come."""
        if self._pool.expected:
            return False
        slots = self._pool.memory_limits.slots(stage, kind)
        able = [w for w in self._pool.workers.values() if w.profile.fits(stage, self._pool.costs.kinds[kind])]
        return len(able) >= SEVERAL_DEVICES and all(w.slot in slots for w in able)

    def _survives_crash(self, key: Item, worker: WorkerState, *, charged: bool, is_alone: bool) -> bool:
        """Whether an item is tried again after its worker died."""
        if is_alone:
            return self._retries.record_crash(key, worker.slot, charged=charged)
        self._retries.record_suspicion(key)
        return True

    def _retry(self, stage: Stage, item: int, kind: int) -> list[Action]:
        """Requeue an item, which may run anywhere again if it avoids every worker, and no other is expected."""
        if not self._pool.expected and not self._ready.may_run_somewhere(stage, kind, item):
            self._retries.lift_restrictions((stage, item))
        return self._requeue(stage, item)

    def _requeue(self, stage: Stage, item: int) -> list[Action]:
        """The item is ready again, unless a copy of it still runs or has finished."""
        if not self._job.is_running(stage, item) or self._goes_on_elsewhere(stage, item):
            return []
        return list(self._job.requeue(stage, item, last=(stage, item) in self._retries.last_items))

    def _goes_on_elsewhere(self, stage: Stage, item: int) -> bool:
        """Whether another worker runs a copy of an item, or writes its file, after the caller's has ended."""
        return self._speculation.runs_elsewhere(stage, item) or self._pool.is_written(stage, item)

    def _give_up(self, stage: Stage, item: int, message: str, now: float) -> list[Action]:
        """The item can never be done: the clips that need it fail."""
        self._quarantine.exonerate((stage, item))
        self._retries.clear((stage, item))
        if not self._job.is_running(stage, item):
            return []
        cancels = self._speculation.cancel(stage, item, Reason.CLIP_ENDED)
        return [*cancels, *self._let_helper_go(stage, item, now), *self._job.give_up(stage, item, message)]

    def _poison_message(self, stage: Stage, log: str) -> str:
        crashes = self._retries.config.max_crashes
        last = f"; the log of the last one: {log}" if log else ""
        return f"poison: {crashes} workers died one after the other, each while it ran the {stage} of this clip alone{last}"


def _runs(worker: WorkerState, task: Task) -> bool:
    return worker.running is not None and worker.running.task == task

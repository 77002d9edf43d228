"""An executor without Ray, and a clock without waiting, for tests of what drives them."""

from dataclasses import dataclass, replace

from ovi.config import Component
from ovi_ray.protocol.messages import Decode, Failure, FailureCause, TaskReport, WorkerInfo
from ovi_ray.runtime.executor import Submission, TaskEnded, WorkerReplaced, WorkerStarted
from ovi_ray.runtime.slot_history import SlotHistory, causes_of
from ovi_ray.scheduling.events import DeviceFree, TaskDone, TaskFailed, WorkerLost
from ovi_ray.scheduling.task import FailureKind

SIZES = dict.fromkeys(Component, 0.01)


def info(**changes):
    facts = {
        "node": "host",
        "pid": 1,
        "device": "cpu",
        "vendor": "cpu",
        "architecture": "",
        "memory_gb": 100.0,
        "component_gb": SIZES,
        "log": "/logs/worker.err",
    }
    return WorkerInfo(**facts | changes)


class FakeClock:
    """Time that passes only when somebody sleeps."""

    def __init__(self):
        self.time = 0.0

    def now(self):
        return self.time

    def sleep(self, seconds):
        self.time += seconds


@dataclass(kw_only=True, frozen=True)
class Fails:
    """The end of a task that fails. `cause` tells failures of the environment apart."""

    kind: FailureKind = FailureKind.ERROR
    message: str = "it broke"
    cause: FailureCause = FailureCause.TASK
    ends_worker: bool = False
    items: tuple[int, ...] = ()


DIES = "dies"
"""The end of a task whose worker dies."""
HANGS = "hangs"
"""A task that does not end before it is stopped."""


GOES_ON = "goes on"
"""A task that succeeds, but not before the driver has looked once."""
WRITES = "writes"
"""A task that succeeds, but whose file is durable only when nothing else happens any more."""


class FakeExecutor:
    """Ends every task at once, as `script(worker, task, tries)` says: Fails, DIES, HANGS, GOES_ON or WRITES; None succeeds."""

    def __init__(self, workers=("w0",), script=None, *, replaces=False, clock=None, max_failures=None):
        self.clock = clock or FakeClock()
        self.script = script or (lambda worker, task, tries: None)
        self.replaces = replaces
        self.max_failures = max_failures  # in a row, after which a slot is given up; None for never
        self.submissions = []
        self.stops = []
        self.needed = None
        self.progress = None  # an Activity that every busy worker reports
        self.data = set()
        self.last_death = ""
        self.slots = {}
        self.deaths = {}
        self.histories = {}
        self.running = {}
        self.writing = []
        self.going_on = []
        self.tries = {}
        self.events = []
        for worker in workers:
            self._start(worker, worker)

    @property
    def is_empty(self):
        return not self.slots and not self.events

    def submit(self, submission):
        assert set(submission.inputs) <= self.data, "a task was given data that is not there"
        assert submission.worker not in self.running, "a worker was given two tasks"
        self.submissions.append(submission)
        task, worker = submission.task, submission.worker
        tries = self.tries[task.stage, task.items] = self.tries.get((task.stage, task.items), 0) + 1
        self.running[worker] = submission
        match self.script(worker, task, tries):
            case None:
                self._succeed(submission)
            case Fails() as failure:
                self._fail(submission, failure)
            case "dies":
                self.kill(worker)
            case "goes on":
                self.going_on.append(submission)
            case "writes":
                self.writing.append(self.running.pop(worker))
                self.events.append(DeviceFree(worker=worker, task=task, seconds=1.0, load_seconds=0.5))

    def stop(self, worker, task, *, save=False):
        submission = self.running.get(worker)
        if submission is not None and submission.task == task:
            self.stops.append((worker, task, save))
            self._fail(submission, Fails(kind=FailureKind.CANCELLED, message="stopped"))

    def kill(self, worker, *, crashed=True):
        """Let a worker die, as a machine would."""
        submission = self.running.pop(worker, None)
        self.writing = [written for written in self.writing if written.worker != worker]
        slot = self.slots.pop(worker)
        self.last_death = "killed"
        self.deaths[slot] = self.deaths.get(slot, 0) + 1
        causes = set() if submission is None else causes_of([submission.task])
        self.histories[slot] = self.histories.get(slot, SlotHistory()).failed_at(causes)
        is_broken = self.max_failures is not None and self.histories[slot].is_broken(self.max_failures)
        successor = f"{slot}.{self.deaths[slot]}" if self.replaces and not is_broken else ""
        log = self.info_of(slot).log_place if crashed else ""
        self.events.append(WorkerLost(worker=worker, crashed=crashed, log=log))
        self.events.append(WorkerReplaced(worker=worker, slot=slot, reason="died", successor=successor, log=log))
        if successor:
            self._start(successor, slot)

    def need(self, workers):
        self.needed = workers

    def holds(self, key):
        return key in self.data

    def drop(self, key):
        self.data.discard(key)

    def poll(self, timeout_s):
        if not self.events and self.writing:
            self._succeed(self.writing.pop(0))
        if not self.events:
            self.clock.sleep(timeout_s)
        events, self.events = self.events, []
        while self.going_on:
            self._succeed(self.going_on.pop())
        return events

    def activities(self):
        return {worker: self.progress for worker in self.slots if self.progress is not None}

    def shutdown(self):
        self.slots.clear()
        self.running.clear()
        self.writing.clear()
        self.data.clear()
        self.events.clear()

    def decode(self, work):
        """Do what a decode does; returns its facts."""
        return {"num_frames": 121}

    def notes(self, work):
        """Messages of a task to the user."""
        return ()

    def works(self, kind):
        """The work of every submission of a kind."""
        return [submission.work for submission in self.submissions if isinstance(submission.work, kind)]

    def _start(self, worker, slot):
        self.slots[worker] = slot
        self.events.append(WorkerStarted(worker=worker, slot=slot, info=self.info_of(slot)))

    def info_of(self, slot):
        """The device of a slot."""
        return info()

    def _succeed(self, submission: Submission):
        if self.running.get(submission.worker) is submission:
            del self.running[submission.worker]
        slot = self.slots[submission.worker]
        self.histories[slot] = self.histories.get(slot, SlotHistory()).succeeded()
        self.data |= set(submission.outputs)
        facts = self.decode(submission.work) if isinstance(submission.work, Decode) else {}
        done = TaskDone(worker=submission.worker, task=submission.task, seconds=1.0, load_seconds=0.5)
        report = TaskReport(seconds=1.0, load_seconds=0.5, facts=facts, notes=self.notes(submission.work))
        self.events.append(TaskEnded(event=done, report=report))

    def _fail(self, submission: Submission, fails: Fails):
        worker = submission.worker
        del self.running[worker]
        traceback = f"Traceback of {worker}\n{fails.message}"
        failure = Failure(
            kind=fails.kind,
            message=fails.message,
            traceback=traceback,
            cause=fails.cause,
            ends_worker=fails.ends_worker,
        )
        failed = TaskFailed(worker=worker, task=submission.task, kind=fails.kind, message=fails.message)
        event = replace(failed, items=fails.items)
        self.events.append(TaskEnded(event=event, report=TaskReport(seconds=0.0, failure=failure)))
        if fails.ends_worker:
            self.kill(worker)

"""An executor without Ray, for tests of what drives it."""

from ovi.config import Component
from ovi_ray.protocol.messages import Cause, Decode, Failure, Report, WorkerInfo
from ovi_ray.runtime.executor import Outcome, WorkerStarted
from ovi_ray.scheduling.events import TaskDone, TaskFailed
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
    }
    return WorkerInfo(**facts | changes)


HANGS = "hangs"


class FakeExecutor:
    """Ends every task at once; `script` may turn a task's end into another event, or into HANGS: it ends when stopped."""

    def __init__(self, workers=("w0",), script=None):
        self.alive = set(workers)
        self.events = [WorkerStarted(worker=worker, info=info()) for worker in workers]
        self.script = script or (lambda worker, task, tries: None)
        self.orders = []
        self.stops = []
        self.causes = {}
        """What made the n-th try of each task fail, where that is not the task."""
        self.data = set()
        self.last_death = "killed"
        self.tries = {}

    @property
    def is_empty(self):
        return not self.alive and not self.events

    def run(self, worker, task, work, *, model_name, components, inputs, outputs):
        assert set(inputs) <= self.data, "a task was given data that is not there"
        self.orders.append((worker, task, work))
        tries = self.tries[task.stage, task.items] = self.tries.get((task.stage, task.items), 0) + 1
        event = self.script(worker, task, tries) or TaskDone(worker=worker, task=task, seconds=1.0, load_seconds=0.5)
        if event == HANGS:
            return
        if isinstance(event, TaskDone):
            self.data |= set(outputs)
            facts = self.decode(work) if isinstance(work, Decode) else {}
            self.events.append(Outcome(event=event, report=Report(seconds=1.0, load_seconds=0.5, facts=facts)))
        elif isinstance(event, TaskFailed):
            cause = self.causes.get(tries, Cause.TASK)
            traceback = f"Traceback of {worker}\n{event.message}"
            failure = Failure(kind=event.kind, message=event.message, traceback=traceback, cause=cause)
            self.events.append(Outcome(event=event, report=Report(seconds=0.0, failure=failure)))
        else:
            self.alive.discard(worker)
            self.events.append(Outcome(event=event))

    def decode(self, work):
        """What a decode does; gives its facts."""
        return {"num_frames": 121}

    def shutdown(self):
        self.alive.clear()

    def holds(self, key):
        return key in self.data

    def stop(self, worker, task, *, save=False):
        self.stops.append((worker, task, save))
        event = TaskFailed(worker=worker, task=task, kind=FailureKind.CANCELLED)
        failure = Failure(kind=event.kind, message="stopped")
        self.events.append(Outcome(event=event, report=Report(seconds=0.0, failure=failure)))

    def drop(self, key):
        self.data.discard(key)

    def poll(self, timeout_s):
        events, self.events = self.events, []
        return events

    def activities(self):
        return {}

"""The scheduler's decisions in words."""

from ovi_ray.printing import Console
from ovi_ray.protocol.observer import Cycle, JobObserver
from ovi_ray.scheduling.actions import Action, Cancel, Drop, Finish, RunTask, WakeAt
from ovi_ray.scheduling.task import BreakerChange, ClipStatus


class DecisionPrinter(JobObserver):
    """Prints every decision as it is taken, for `ovi-ray render --explain`."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def cycle(self, cycle: Cycle) -> None:
        """Print a line per decision: seconds since the start of the run, and the decision."""
        for action in cycle.actions:
            line = explain(action)
            if line:
                self._console.print(f"{cycle.now:8.2f} s  {line}", soft_wrap=True)


def explain(action: Action) -> str:
    """An action in words; empty for one that does not concern placement."""
    match action:
        case RunTask(worker=worker, task=task, reason=reason, leader=leader) if task.assists:
            return f"{worker}: assist {leader} with {task.stage} {_items(task.items)}, because {reason}"
        case RunTask(worker=worker, task=task, reason=reason):
            what = f"{task.stage} {_items(task.items)}" if task.items else "load components"
            retry = f" (attempt {task.attempt})" if task.attempt > 1 else ""
            return f"{worker}: {what}{retry}, because {reason}"
        case Cancel(worker=worker, task=task, reason=reason):
            assisting = "assisting " * task.assists
            return f"{worker}: stop {assisting}{task.stage} {_items(task.items)}, because {reason}"
        case Finish(clip=clip, status=status, error=error):
            return f"clip {clip} {status}{f': {error}' if status is ClipStatus.FAILED else ''}"
        case BreakerChange():
            return str(action)
        case Drop() | WakeAt():
            return ""


def _items(items: tuple[int, ...]) -> str:
    return str(items[0]) if len(items) == 1 else f"{len(items)} items"

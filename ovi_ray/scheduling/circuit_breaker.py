"""Which places fail what others finish: each is taken out for a while, tried again, and let back in when it is well. Pure.

A place is where workers run one after the other: its device, in effect. What is held against it outlives its workers.
"""

from collections import defaultdict
from dataclasses import dataclass, field

from ovi.stages import Stage
from ovi_ray.scheduling.task import BreakerReason

_IN_A_ROW = 3  # different tasks
_REFUTED = 1.5  # tasks that others finished; each success of the place's own since halves the sum
_MAX_DOUBLINGS = 20


@dataclass(slots=True)
class Health:
    """What is held against one place."""

    failed: defaultdict[Stage, set[tuple[int, ...]]] = field(default_factory=lambda: defaultdict(set))
    """Tasks that failed there since one of their stage went well."""
    refuted: defaultdict[Stage, float] = field(default_factory=lambda: defaultdict(float))
    """Tasks that failed there and that others finished."""
    trial: set[Stage] = field(default_factory=set)
    """Stages that have to go well before it is trusted again."""
    rests: int = 0
    """In a row."""
    rest_until_s: float = float("-inf")
    last_failure: str = ""

    def fails(self, stage: Stage, items: tuple[int, ...], message: str) -> None:
        """A task failed there."""
        self.failed[stage].add(items)
        self.last_failure = message

    def is_refuted(self, stage: Stage) -> None:
        """Another place finished what failed there."""
        self.refuted[stage] += 1

    def absolve(self, stage: Stage, item: int) -> None:
        """The item fails everywhere, which says nothing of the place."""
        self.failed[stage].discard((item,))

    def works(self, stage: Stage) -> bool:
        """A task went well there. True when it is trusted again for that."""
        self.failed.pop(stage, None)
        if self.refuted:
            self.refuted[stage] /= 2
        if stage not in self.trial:
            return False
        self.trial.remove(stage)
        if not self.trial:
            self.rests = 0
        return not self.trial

    def verdict(self) -> BreakerReason | None:
        """Why it should be taken out; None for a place that may go on."""
        if self.trial and any(self.failed.values()):
            return BreakerReason.PROBE_FAILED
        if any(tasks >= _REFUTED for tasks in self.refuted.values()):
            return BreakerReason.REFUTED
        if any(len(tasks) >= _IN_A_ROW for tasks in self.failed.values()):
            return BreakerReason.IN_A_ROW
        return None

    def rest(self, now: float, first_s: float, longest_s: float) -> float:
        """It is taken out, each time for longer. Gives the seconds."""
        seconds = min(longest_s, first_s * 2 ** min(self.rests, _MAX_DOUBLINGS))
        self.trial.update(stage for stage, tasks in self.failed.items() if tasks)
        self.trial.update(stage for stage, tasks in self.refuted.items() if tasks >= _REFUTED)
        self.failed.clear()
        self.refuted.clear()
        self.rests += 1
        self.rest_until_s = now + seconds
        return seconds

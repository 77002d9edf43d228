"""Replays the recorded cycles of a run: the scheduler is deterministic, so the same events must give the same actions."""

from collections.abc import Iterable
from dataclasses import dataclass

from ovi_ray.protocol.observer import Cycle
from ovi_ray.scheduling.actions import Action
from ovi_ray.scheduling.config import SchedulerConfig
from ovi_ray.scheduling.scheduler import Scheduler
from ovi_ray.scheduling.workload import Workload


@dataclass(kw_only=True, slots=True, frozen=True)
class Divergence:
    """The first cycle whose actions were different."""

    cycle: int
    """From 1."""
    now: float
    recorded: tuple[Action, ...]
    replayed: tuple[Action, ...]

    @property
    def first_difference(self) -> tuple[Action | None, Action | None]:
        """The first recorded and replayed action that differ; None where one list is shorter."""
        longest = max(len(self.recorded), len(self.replayed))
        padding = (None,) * longest
        pairs = zip((*self.recorded, *padding)[:longest], (*self.replayed, *padding)[:longest], strict=True)
        return next(pair for pair in pairs if pair[0] != pair[1])


@dataclass(kw_only=True, slots=True, frozen=True)
class Replay:
    """The outcome of a replay."""

    cycles: int
    """Cycles that were compared."""
    actions: int
    """Actions in them."""
    divergence: Divergence | None
    """None if every action was the same."""


def replay(workload: Workload, config: SchedulerConfig, cycles: Iterable[Cycle]) -> Replay:
    """Feed the events of all cycles to a new scheduler and compare its actions, until they differ."""
    scheduler = Scheduler(workload, config=config)
    compared = actions = 0
    for cycle in cycles:
        replayed = tuple(scheduler.handle(cycle.events, cycle.now))
        compared, actions = compared + 1, actions + len(replayed)
        if replayed != cycle.actions:
            divergence = Divergence(cycle=compared, now=cycle.now, recorded=cycle.actions, replayed=replayed)
            return Replay(cycles=compared, actions=actions, divergence=divergence)
    return Replay(cycles=compared, actions=actions, divergence=None)

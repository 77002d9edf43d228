"""Projects the end of a job: runs the production policy's own rules ahead in time, on expected seconds.

List scheduling on unrelated devices has no rule that is good in every tail, but a tail is short enough to try several: the
policy is projected for several targets and preferences, and follows the one that ends first (a rollout).
"""

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ovi.stages import Stage
from ovi_ray.scheduling.allocation_lp import FloatArray
from ovi_ray.scheduling.policies.base import Cluster, Holding, Preferences

_WEIGHT_OF_MEAN = 0.05
_MUCH_LATER = 1.05  # times the target after which it is chosen anew
_MOST_TIGHTENINGS = 5
_LONG_SWAP = 0.02  # of the time until the end, from which a swap may be worth avoiding


def _for_others_to_decode(preferences: Preferences) -> Preferences:
    """Devices that hold a transformer denoise first: the others, which wait rather than load one, have latents early."""
    return replace(preferences, decode_weight=0.25)


_OTHER_PREFERENCES: tuple[Callable[[Preferences], Preferences], ...] = (
    lambda preferences: replace(preferences, longest_first=True),
    _for_others_to_decode,
    lambda preferences: replace(preferences, decode_weight=4.0),
    lambda preferences: replace(preferences, least_use=0.0),
)
NO_ADVANTAGE_KNOWN = 0.5  # for work that the program has no price for


@dataclass(kw_only=True, slots=True, frozen=True)
class Rules:
    """Weights with which the uses of a device are compared, in projections and in decisions alike."""

    swap_batch: int = 8
    """Tasks over which the cost of a swap is spread at most."""
    low_latents: float = 0.85
    """Weight of a decode when no latents wait; below 1, the queue fills before devices leave denoise."""
    latents_slope: float = 0.8
    """Growth of that weight with the queue."""
    most_fill: float = 2.0
    """Latents in the queue, over those at which it is worth draining, beyond which the weight stays as it is."""

    def is_poor(self, advantage: float, work_s: float, swap_s: float, preferences: Preferences) -> bool:
        """Whether a device that begins a task loses more than by waiting for what it is better at or holds components for."""
        is_worse = advantage < preferences.least_use and (1 - advantage) * work_s > preferences.wait_s
        return is_worse or swap_s > preferences.longest_swap_s

    def use(
        self, advantage: float, stage: Stage, work_s: float, swap_s: float, waiting: int, fill: float, weight: float
    ) -> float:
        """Worth of a task on a device, relative to the device's best use."""
        use = advantage * work_s / (work_s + swap_s / min(waiting, self.swap_batch)) if swap_s else advantage
        if stage is Stage.DECODE:
            use *= weight * (self.low_latents + self.latents_slope * fill)
        return use


@dataclass(slots=True)
class _Type:
    """A work type of the projection."""

    stage: Stage
    kind: int
    length_s: float
    """Seconds on the fastest device."""
    follows: int = -1
    """Work type that a task of this one makes ready."""
    after_s: float = 0.0
    """Seconds that a clip needs at least after a task of this type."""


class _Cost(NamedTuple):
    """A work type on idle workers that are alike."""

    work_type: int
    work_s: float
    swap_s: float
    latest_s: float
    """Seconds that swap and work may take, as far as is known."""
    advantage: float
    after: Holding
    """The components that the worker holds afterwards."""


_Key = tuple[int, float, Holding]


class Projection:
    """The rest of a job, as expected now."""

    def __init__(
        self, cluster: Cluster, advantage: Mapping[tuple[int, Stage, int], float], rules: Rules, wait_s: float
    ) -> None:
        self._cluster = cluster
        self._advantage = advantage
        self._rules = rules
        self._columns = [
            j
            for j, (stage, _) in enumerate(cluster.work_types)
            if stage in (Stage.DENOISE, Stage.DECODE) and _possible(cluster, j)
        ]
        self._types = [self._type(j) for j in self._columns]
        self._link()
        self.wait_s = wait_s
        self.inputs_s = cluster.inputs_s
        self._groups: dict[_Key, tuple[_Cost, ...]] = {}
        self._workers = [
            (c, f, h)
            for c, f, h in zip(cluster.classes.tolist(), _rounded(cluster.factors), cluster.holdings, strict=True)
        ]

    def _type(self, j: int) -> _Type:
        stage, kind = self._cluster.work_types[j]
        return _Type(stage, kind, float(self._cluster.seconds[:, j].min()))

    def _link(self) -> None:
        """A denoise makes a decode ready, and leaves time for it."""
        of = {(t.stage, t.kind): i for i, t in enumerate(self._types)}
        for t in self._types:
            if t.stage is Stage.DENOISE:
                t.follows = of.get((Stage.DECODE, t.kind), -1)
                t.after_s = self._types[t.follows].length_s if t.follows >= 0 else 0.0

    def long_swaps_s(self, end_s: float) -> list[float]:
        """The swaps of idle workers that take a part of the time until an end which matters, but for the longest of them."""
        costs = (cost for key in set(self._workers) for cost in self.costs(key))
        return sorted({cost.swap_s for cost in costs if cost.swap_s > _LONG_SWAP * end_s})[:-1]

    def run(self, preferences: Preferences) -> "Ends":
        """When the tasks would end."""
        return _Run(self, preferences).run()

    def costs(self, key: _Key) -> tuple[_Cost, ...]:
        """Seconds of each work type on a worker."""
        if key not in self._groups:
            self._groups[key] = tuple(self._costs(*key))
        return self._groups[key]

    def _costs(self, device_class: int, factor: float, holding: Holding) -> list[_Cost]:
        found = []
        for i, (j, t) in enumerate(zip(self._columns, self._types, strict=True)):
            seconds = float(self._cluster.seconds[device_class, j]) * factor
            if math.isfinite(seconds):
                swap_s, after = self._cluster.swap(device_class, holding, t.stage, t.kind)
                advantage = self._advantage.get((device_class, t.stage, t.kind), NO_ADVANTAGE_KNOWN)
                latest_s = swap_s + seconds * self._cluster.doubt(device_class, t.stage)
                found.append(_Cost(i, seconds, swap_s, latest_s, advantage, after))
        return found


def _rounded(factors: FloatArray) -> list[float]:
    """To 3%, so that devices of a class are alike unless one differs."""
    return (2.0 ** (np.round(np.log2(factors) * 20) / 20)).tolist()


def _possible(cluster: Cluster, j: int) -> bool:
    return bool(cluster.amounts[j] > 0 and math.isfinite(cluster.seconds[cluster.classes, j].min(initial=math.inf)))


class Ends(NamedTuple):
    """When the tasks of a projection end."""

    last_s: float
    """Seconds until the last one; infinite when one can never be started."""
    mean_s: float
    """Mean seconds until each."""

    @property
    def score(self) -> float:
        """Lower is better. The mean decides where a straggler determines the end: it may be copied, or end sooner."""
        return self.last_s + _WEIGHT_OF_MEAN * self.mean_s


class _Run:
    """One projection."""

    def __init__(self, projection: Projection, preferences: Preferences) -> None:
        self._p = projection
        self._preferences = preferences
        cluster, types = projection._cluster, projection._types
        amounts = [int(cluster.amounts[j]) for j in projection._columns]
        self._left = sum(amounts)
        self._waiting = amounts[:]
        self._deadline = [preferences.target_s - t.after_s for t in types]
        self._idle: dict[_Key, list[int]] = {}
        self._heap: list[tuple[float, int, int, int]] = []  # (end, worker, work type made ready or -1, tasks of it)
        self._holding = [holding for _, _, holding in projection._workers]
        self._hold_back(amounts)
        self._undecoded = sum(n for n, t in zip(self._waiting, types, strict=True) if t.stage is Stage.DECODE)
        self._last = self._sum = 0.0
        self._started = 0

    def _hold_back(self, amounts: list[int]) -> None:
        """Decodes wait for their denoises, denoises for the first inputs, and workers for the end of their tasks."""
        cluster, types = self._p._cluster, self._p._types
        of = {(t.stage, t.kind): i for i, t in enumerate(types)}
        for t, amount in zip(types, amounts, strict=True):
            if t.follows >= 0:
                self._waiting[t.follows] -= amount
        for worker, (running, available_s) in enumerate(
            zip(cluster.running, cluster.available_s.tolist(), strict=True)
        ):
            made = of.get((Stage.DECODE, running[1]), -1) if running and running[0] is Stage.DENOISE else -1
            if made >= 0:
                self._waiting[made] -= 1
            self._heap.append((available_s, worker, made, 1))
        if cluster.inputs_s > 0:
            for i, t in enumerate(types):
                if t.stage is Stage.DENOISE:
                    self._heap.append((cluster.inputs_s, -1, i, self._waiting[i]))
                    self._waiting[i] = 0
        self._waiting = [max(0, n) for n in self._waiting]
        self._ready = sum(self._waiting)
        heapq.heapify(self._heap)

    def run(self) -> Ends:
        heap = self._heap
        while heap and self._left:
            now = heap[0][0]
            while heap and heap[0][0] == now:
                self._ended(*heapq.heappop(heap)[1:])
            while self._ready and self._idle and self._assign(now):
                pass
            if not heap:  # nothing would ever be started: what is left is too late in any case
                self._deadline = [math.inf] * len(self._deadline)
                self._preferences = replace(self._preferences, least_use=0.0, longest_swap_s=math.inf)
                while self._ready and self._idle and self._assign(now):
                    pass
        return Ends(math.inf if self._left else self._last, self._sum / max(1, self._started))

    def _ended(self, worker: int, made: int, tasks: int) -> None:
        if made >= 0:
            self._waiting[made] += tasks
            self._ready += tasks
            if self._p._types[made].stage is Stage.DECODE:
                self._undecoded += tasks
        if worker >= 0:
            device_class, factor, _ = self._p._workers[worker]
            self._idle.setdefault((device_class, factor, self._holding[worker]), []).append(worker)

    def _assign(self, now: float) -> bool:
        """Give the best task to the worker it is best for. Returns whether there was one."""
        best: tuple[float, float, float, int, int] | None = None
        found: tuple[_Key, float, Holding] | None = None
        types, waiting, rules, preferences = self._p._types, self._waiting, self._p._rules, self._preferences
        fill = min(self._undecoded / self._p._cluster.latents_scale, rules.most_fill)
        for key in self._idle:
            for i, work_s, swap_s, latest_s, advantage, after in self._p.costs(key):
                if waiting[i] <= 0 or now + latest_s > self._deadline[i]:
                    continue
                if rules.is_poor(advantage, work_s, swap_s, preferences):
                    continue
                t = types[i]
                use = rules.use(advantage, t.stage, work_s, swap_s, waiting[i], fill, preferences.decode_weight)
                rank = order(preferences, use, t.length_s, swap_s + work_s)
                if best is None or (*rank, i, 0) < best:
                    best, found = (*rank, i, 0), (key, swap_s + work_s, after)
        if best is None or found is None:
            return False
        key, seconds, after = found
        self._start(key, best[3], now + seconds, after)
        return True

    def _start(self, key: _Key, i: int, end: float, after: Holding) -> None:
        members = self._idle[key]
        worker = members.pop(0)
        if not members:
            del self._idle[key]
        self._holding[worker] = after
        self._waiting[i] -= 1
        self._ready -= 1
        self._left -= 1
        if self._p._types[i].stage is Stage.DECODE:
            self._undecoded -= 1
        self._last = max(self._last, end)
        self._sum += end
        self._started += 1
        heapq.heappush(self._heap, (end, worker, self._p._types[i].follows, 1))


def order(preferences: Preferences, use: float, length_s: float, seconds: float) -> tuple[float, float, float]:
    """Sort key of a task, lower first: by use, then longest clip first, then where it ends first."""
    use = round(use, 3)
    return (-length_s, -use, seconds) if preferences.longest_first else (-use, -length_s, seconds)


def best_preferences(
    projection: Projection, least_s: float, previous: Preferences | None = None
) -> tuple[Preferences, float]:
    """The preferences that end first, and when; infinite when none is known that ends.

    `least_s` is a lower bound; `previous` are those in force, near which a few are tried instead of all.
    """
    search = _Search(projection)
    if previous is not None:
        search.try_targets(previous, [previous.target_s * share for share in (1.0, 0.99, 1.02, 1.1)])
    if previous is None or search.ends.last_s > _MUCH_LATER * search.best.target_s:
        search.try_all(least_s)
    search.tighten()
    return search.best, search.ends.last_s


def end_if_followed(projection: Projection, preferences: Preferences) -> tuple[Preferences, float]:
    """The preferences in force, with the target that they reach now, and when the tasks then end."""
    search = _Search(projection)
    search.try_targets(preferences, [preferences.target_s * share for share in (1.0, 1.02)])
    return search.best, search.ends.last_s


class _Search:
    """The best preferences tried so far."""

    def __init__(self, projection: Projection) -> None:
        self._projection = projection
        self.best = Preferences()
        self.ends = Ends(math.inf, 0.0)

    def try_targets(self, base: Preferences, targets: Sequence[float]) -> bool:
        """Whether one of them is better than the best so far.

        An end that is reached before the target becomes the target: with it, every decision would be the same.
        """
        before = self.ends
        for target in targets:
            ends = self._projection.run(replace(base, target_s=target))
            if ends.score < self.ends.score * (1 - 1e-6):
                self.best, self.ends = replace(base, target_s=min(target, ends.last_s)), ends
        return self.ends is not before

    def try_all(self, least_s: float) -> None:
        """Targets from the lower bound to the end without one, then the other preferences."""
        self.try_targets(Preferences(wait_s=self._projection.wait_s), [math.inf])
        ratio = self.ends.last_s / least_s if least_s > 0 else math.inf
        if math.isfinite(ratio):
            self.try_targets(self.best, [least_s * ratio ** (i / 8) * 1.001 for i in range(8)])
        for change in (*_OTHER_PREFERENCES, self._wait_for_inputs):
            self._try_near(change(self.best))
        for swap_s in self._projection.long_swaps_s(self.ends.last_s):
            base = replace(self.best, longest_swap_s=swap_s)
            self._try_near(base)
            self._try_near(_for_others_to_decode(base))

    def _try_near(self, preferences: Preferences) -> None:
        self.try_targets(preferences, [math.inf, *(self.ends.last_s * share for share in (1.03, 1.0, 0.97, 0.92))])

    def _wait_for_inputs(self, preferences: Preferences) -> Preferences:
        """Devices that are better at denoise wait for the first inputs rather than begin to decode."""
        return replace(preferences, wait_s=self._projection.inputs_s)

    def tighten(self) -> None:
        """A lower target may be reached too."""
        for _ in range(_MOST_TIGHTENINGS):
            if not self.try_targets(self.best, [0.985 * self.best.target_s, 0.995 * self.best.target_s]):
                return

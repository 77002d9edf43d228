"""The slots of the executor on Ray: their workers are started, replaced, paused and given up. Knows nothing of tasks.

In a cluster that was joined, nodes that join get slots, and nodes that do not fit the job get none (`changing_cluster`).
"""

import dataclasses
import itertools
import socket
import time
from collections import Counter, deque
from collections.abc import Hashable, Sequence, Set
from contextlib import suppress

import psutil
import ray
from ray.util.placement_group import NODE_ID_LABEL_KEY

from ovi.stages import Stage
from ovi_ray.errors import ClusterError
from ovi_ray.runtime.changing_cluster import ChangingCluster
from ovi_ray.runtime.cluster_watch import host_of, node_of, process_of
from ovi_ray.runtime.executor import ExecutorEvent, NodeRefused, SlotsUnplaceable, WorkerReplaced, WorkerStarting
from ovi_ray.runtime.placement import Placement
from ovi_ray.runtime.slot_history import SlotHistory
from ovi_ray.runtime.slots import PausedSlot, Slot
from ovi_ray.runtime.unplaceable import Asked, PlaceFinder, held_by
from ovi_ray.workers.actor import CONTROL, MAX_WRITES, WRITES, Worker


class RaySlots:
    """The slots and the actors in them."""

    def __init__(
        self,
        *,
        max_failures: int,
        unplaceable_after_s: float,
        start_timeout_s: float,
        cluster: ChangingCluster | None = None,
        finder: PlaceFinder | None = None,
    ) -> None:
        """The numbers are fields of ExecutorConfig; `max_failures` is its `max_consecutive_failures`."""
        self.occupied: dict[str, Slot] = {}
        """Worker -> its slot."""
        self.starting: dict[ray.ObjectRef, str] = {}
        """Answer of a worker that is being started -> the worker."""
        self.paused: deque[PausedSlot] = deque()
        self._max_failures = max_failures
        self._unplaceable_after_s = unplaceable_after_s
        self._start_timeout_s = start_timeout_s
        self._cluster = cluster
        self._finder = finder or PlaceFinder(is_elastic=cluster is not None and cluster.autoscaling is not None)
        self._numbers = itertools.count()
        self._unfit: set[str] = set()
        """Ids of nodes that get no workers."""
        self._broken: Counter[Hashable] = Counter()
        """Kind of placement -> slots that were given up."""
        self._unplaceable: set[Hashable] = set()
        """Kinds of placement that no node had a place for."""

    def open(self, placement: Placement) -> WorkerStarting:
        """Start the first worker of a new slot."""
        name = f"w{next(self._numbers)}"
        self._launch(name, name, placement, SlotHistory())
        return WorkerStarting(worker=name, slot=name)

    def _launch(self, slot_name: str, worker: str, placement: Placement, history: SlotHistory) -> None:
        actor_class = ray.remote(concurrency_groups={CONTROL: 1, WRITES: MAX_WRITES})(Worker).options(
            num_cpus=placement.num_cpus,
            num_gpus=placement.num_gpus,
            label_selector=self._selector(placement) or None,
            scheduling_strategy="DEFAULT" if placement.num_gpus else "SPREAD",
            runtime_env={"env_vars": placement.environment} if placement.environment else None,
            max_restarts=0,  # Ray would restart it silently, and the scheduler would not know of the loss
        )
        actor = actor_class.remote(placement.config, self._cluster.requires if self._cluster else None)
        now = time.monotonic()
        self.occupied[worker] = Slot(
            name=slot_name,
            placement=placement,
            worker=worker,
            actor=actor,
            history=history,
            asked_at=now,
            looked_at=now,
        )
        self.starting[actor.describe.remote()] = worker

    def _selector(self, placement: Placement) -> dict[str, str]:
        unfit = {NODE_ID_LABEL_KEY: f"!in({','.join(sorted(self._unfit))})"} if self._unfit else {}
        return {**placement.labels, **unfit}

    def replace(self, worker: str, reason: str, causes: Set[Hashable]) -> WorkerReplaced:
        """Start the successor of a worker that has ended, unless its slot is broken. `causes` is as in SlotHistory."""
        slot = self.occupied[worker]
        history = slot.history.failed_at(causes)
        if history.is_broken(self._max_failures):
            self._broken[slot.placement.kind] += 1
            return self.close(worker, reason)
        del self.occupied[worker]
        successor = f"{slot.name}.{slot.history.workers}"
        self._launch(slot.name, successor, slot.placement, history)
        return WorkerReplaced(worker=worker, slot=slot.name, reason=reason, successor=successor)

    def close(self, worker: str, reason: str) -> WorkerReplaced:
        """Give up the slot of a worker that has ended."""
        slot = self.occupied.pop(worker)
        return WorkerReplaced(worker=worker, slot=slot.name, reason=reason, successor="")

    def replace_frozen(self) -> list[ExecutorEvent]:
        """Kill and replace workers whose process started and has not answered for long."""
        now, frozen = time.monotonic(), list[Slot]()
        for slot in self.occupied.values():
            if slot.info is None and slot.looked_at + self._start_timeout_s <= now:
                slot.looked_at, before = now, slot.process
                slot.process = process_of(slot.actor)
                if slot.process and slot.process == before:
                    frozen.append(slot)
        for slot in frozen:
            self.end(slot)
            _kill_here(slot.process, host_of(node_of(slot.actor)))
        reason = f"did not answer for {self._start_timeout_s:.0f} s while it was started"
        return [self.replace(slot.worker, reason, {slot.history.workers}) for slot in frozen]

    def end(self, slot: Slot) -> None:
        """End a worker that runs nothing."""
        ray.kill(slot.actor, no_restart=True)
        self.starting = {ref: worker for ref, worker in self.starting.items() if worker != slot.worker}

    def end_all(self) -> None:
        """End every worker now."""
        for slot in self.occupied.values():
            kill(slot)
        self.occupied.clear()
        self.starting.clear()
        self.paused.clear()

    def abandon_all(self) -> None:
        """End every worker without the head, which Ray asks to kill one: each ends itself when it is done with its task."""
        for slot in self.occupied.values():
            slot.actor.__ray_terminate__.remote()
        self.occupied.clear()

    def pause(self, slot: Slot) -> WorkerReplaced:
        """End a worker; its successor starts when there is room."""
        self.end(slot)
        del self.occupied[slot.worker]
        successor = f"{slot.name}.{slot.history.workers}"
        history = slot.history.failed_at(set())
        self.paused.append(PausedSlot(name=slot.name, placement=slot.placement, worker=successor, history=history))
        reason = "makes way for another job"
        return WorkerReplaced(worker=slot.worker, slot=slot.name, reason=reason, successor=successor, waits=True)

    def resume(self, kind: str, count: int) -> None:
        """Start workers again in slots that paused longest."""
        for paused in [paused for paused in self.paused if paused.placement.occupies == kind][: max(0, count)]:
            self.paused.remove(paused)
            self._launch(paused.name, paused.worker, paused.placement, paused.history)

    def _room(self) -> Counter[Hashable]:
        """Kind of placement -> workers that the cluster has room for, those that are there included."""
        try:
            return Counter(placement.kind for placement in self._placed())
        except ClusterError:  # nodes have left as well
            return Counter()

    def _placed(self) -> Sequence[Placement]:
        return self._cluster.place(self._unfit) if self._cluster else ()

    def grow(self) -> list[ExecutorEvent]:
        """Open slots for what the nodes have room for beyond the slots that there are."""
        try:
            wanted = self._placed()
        except ClusterError:
            return []
        taken = self._broken + Counter(placement.kind for placement in self.placements())
        held, events = self._held(), list[ExecutorEvent]()
        for placement in wanted:
            if taken[placement.kind] > 0:
                taken[placement.kind] -= 1
            elif placement.kind not in self._unplaceable or self._finder.has_place(self._asked(placement), held):
                events.append(self.open(placement))
        return events

    def refuse(self, worker: str, node: str, reason: str) -> list[ExecutorEvent]:
        """Start no worker any more on a node that does not fit; this one's slot stays where others have room for it."""
        refused = [] if node in self._unfit else [NodeRefused(node=host_of(node), reason=reason)]
        self._unfit.add(node)
        slot = self.occupied[worker]
        slots = sum(other.placement.kind == slot.placement.kind for other in self.occupied.values())
        has_room = self._room()[slot.placement.kind] >= slots
        replaced = self.replace(worker, reason, set()) if has_room else self.close(worker, reason)
        return [*refused, dataclasses.replace(replaced, is_told=True)]

    def placements(self) -> list[Placement]:
        """Of the slots that have a worker, or are to have one."""
        return [slot.placement for slot in self.occupied.values()] + [paused.placement for paused in self.paused]

    # -- slots that no node has a place for --------------------------------------------------------------------------

    def close_unplaceable(self) -> list[ExecutorEvent]:
        """Give up slots that have waited long for their first worker, and that no node could have a place for."""
        now = time.monotonic()
        due = [
            slot
            for slot in self.occupied.values()
            if slot.info is None and not slot.history.was_placed and slot.asked_at + self._unplaceable_after_s <= now
        ]
        by_kind: dict[Hashable, list[Slot]] = {}
        for slot in due:
            slot.asked_at = now  # it is looked at again after as long
            by_kind.setdefault(slot.placement.kind, []).append(slot)
        held = self._held() if due else {}
        return [
            self._give_up(slots)
            for slots in by_kind.values()
            if not self._finder.has_place(self._asked(slots[0].placement), held)
        ]

    def _give_up(self, slots: Sequence[Slot]) -> SlotsUnplaceable:
        placement = slots[0].placement
        for slot in slots:
            self.end(slot)
            del self.occupied[slot.worker]
        self._unplaceable.add(placement.kind)
        declared = placement.config.declared
        return SlotsUnplaceable(
            slots=tuple(slot.name for slot in slots),
            asked=str(self._asked(placement)),
            nodes=self._finder.nodes_in_words(),
            waited_s=self._unplaceable_after_s,
            stages=frozenset(Stage) if declared is None else declared.stages,
        )

    def _asked(self, placement: Placement) -> Asked:
        return Asked(resources=placement.resources, labels=self._selector(placement))

    def _held(self) -> dict[str, dict[str, float]]:
        """Resources held by the workers that stay: node id -> amounts by name."""
        return held_by(
            (slot.info.node_id, slot.placement.resources)
            for slot in self.occupied.values()
            if slot.info is not None and not slot.leaves and not slot.pauses
        )


def kill(slot: Slot) -> None:
    """End an actor. A frozen process does not react to Ray, so a local one is also killed by its pid."""
    ray.kill(slot.actor, no_restart=True)
    if slot.info is not None:
        _kill_here(slot.info.pid, slot.info.node)


def _kill_here(pid: int, host: str) -> None:
    if host == socket.gethostname():
        with suppress(psutil.Error):
            psutil.Process(pid).kill()

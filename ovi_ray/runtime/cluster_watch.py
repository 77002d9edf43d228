"""Notices nodes that join a cluster, and nodes that are about to leave it.

A node that gets SIGTERM under `ray start --block`, or that `ray drain-node` is called for, is *drained*: Ray places nothing
new on it, and keeps it for about half a minute.
"""

import time
from collections.abc import Callable, Set
from dataclasses import dataclass

import ray
from ray._private.state import actors, state
from ray.exceptions import RayError

UNREACHABLE = (RayError, RuntimeError, OSError)
"""Errors that Ray raises while the head does not answer."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Changes:
    """Ids of nodes since the last look."""

    joined: Set[str] = frozenset()
    leaving: Set[str] = frozenset()


class ClusterWatch:
    """Compares the nodes of the cluster with those at the last look, at most every `interval_s`."""

    def __init__(
        self,
        *,
        interval_s: float,
        alive: Callable[[], Set[str]] | None = None,
        draining: Callable[[], Set[str]] | None = None,
        answers: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`answers` says whether the head does; one that does not is not asked, because Ray would wait for it."""
        self._interval_s = interval_s
        self._alive = alive or alive_nodes
        self._draining = draining or draining_nodes
        self._answers = answers
        self._clock = clock
        self._looked_at = clock()
        self._known, self._leaving = self._alive(), frozenset[str]()

    def is_leaving(self, node: str) -> bool:
        """Whether a node was being drained at the last look."""
        return node in self._leaving

    def look(self) -> Changes | None:
        """The changes since the last look; None before the next is due, and while the head does not answer."""
        now = self._clock()
        if now < self._looked_at + self._interval_s:
            return None
        self._looked_at = now
        if not self._answers():
            return None
        try:
            alive, leaving = self._alive(), self._draining()
        except UNREACHABLE:
            return None
        changes = Changes(joined=alive - self._known, leaving=leaving - self._leaving)
        self._known, self._leaving = alive, frozenset(leaving)
        return changes


def alive_nodes() -> Set[str]:
    """Ids of the nodes that are alive."""
    return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])


def draining_nodes() -> Set[str]:
    """Ids of the nodes that are being drained; Ray has no public call for it."""
    return frozenset(state.get_draining_nodes())


def node_of(actor: ray.actor.ActorHandle) -> str:
    """Id of the node that an actor was placed on, dead or alive; empty while it has none, or the head does not answer."""
    try:
        return str(actors(actor._actor_id.hex()).get("Address", {}).get("NodeID", ""))
    except UNREACHABLE:
        return ""


def process_of(actor: ray.actor.ActorHandle) -> int:
    """Pid of an actor's process; 0 while no node has a place for it, or the head does not answer."""
    try:
        return int(actors(actor._actor_id.hex()).get("Pid", 0))
    except UNREACHABLE:
        return 0


def host_of(node_id: str) -> str:
    """Host name of a node, dead or alive; its id while the head does not answer."""
    try:
        return next((str(node["NodeManagerHostname"]) for node in ray.nodes() if node["NodeID"] == node_id), node_id)
    except UNREACHABLE:
        return node_id

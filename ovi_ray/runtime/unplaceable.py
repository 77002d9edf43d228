"""Finds out that Ray can place a worker on no node, whatever ends meanwhile."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
from ray.core.generated.autoscaler_pb2 import AutoscalingState, GetClusterStatusReply
from ray.core.generated.common_pb2 import LabelSelectorConstraint, LabelSelectorOperator

from ovi_ray.printing import counted
from ovi_ray.runtime.cluster_watch import UNREACHABLE

_ANSWER_S = 10.0


@dataclass(kw_only=True, slots=True, frozen=True)
class Asked:
    """Resources and labels that a worker requires of its node."""

    resources: Mapping[str, float]
    labels: Mapping[str, str]
    """Ray label selectors: a value, `in(a,b)`, or either with a leading `!`."""

    def __str__(self) -> str:
        return _in_words(self.resources, _shown(self.labels))


@dataclass(kw_only=True, slots=True, frozen=True)
class Node:
    """A node that is alive."""

    node_id: str
    resources: Mapping[str, float]
    """In total, those in use included."""
    labels: Mapping[str, str] = field(default_factory=dict)


def alive_nodes() -> list[Node]:
    """The nodes of the cluster."""
    return [
        Node(node_id=node["NodeID"], resources=node["Resources"], labels=node["Labels"])
        for node in ray.nodes()
        if node["Alive"]
    ]


def infeasible_requests() -> list[Asked] | None:
    """Requests that the cluster's autoscaler reports as infeasible; None where no autoscaler reports."""
    reply = GetClusterStatusReply()
    client = GcsClient(ray.get_runtime_context().gcs_address)
    reply.ParseFromString(client.get_cluster_status(timeout_s=_ANSWER_S))
    state: AutoscalingState = reply.autoscaling_state
    if not state.autoscaler_state_version:
        return None
    return [
        Asked(
            resources=dict(request.resources_bundle),
            labels={
                constraint.label_key: _selector(constraint)
                for selector in request.label_selectors
                for constraint in selector.label_constraints
            },
        )
        for request in state.infeasible_resource_requests
    ]


class PlaceFinder:
    """Says whether there can be a place for a worker. What it cannot find out counts as a place."""

    def __init__(
        self,
        *,
        is_elastic: bool = False,
        nodes: Callable[[], Sequence[Node]] = alive_nodes,
        infeasible: Callable[[], Sequence[Asked] | None] = infeasible_requests,
    ) -> None:
        """`is_elastic` says that nodes are added for the job, whether or not an autoscaler reports to Ray."""
        self._is_elastic = is_elastic
        self._nodes = nodes
        self._infeasible = infeasible

    def has_place(self, asked: Asked, held: Mapping[str, Mapping[str, float]]) -> bool:
        """Whether a node has it beside what the job's other workers hold (by node id), or an autoscaler may bring one."""
        try:
            infeasible = self._infeasible()
            nodes = self._nodes()
        except UNREACHABLE:
            return True
        if any(_fits(asked, node, held.get(node.node_id, {})) for node in nodes):
            return True
        if infeasible is None:
            return self._is_elastic
        return not any(_is_same(asked, request) for request in infeasible)

    def nodes_in_words(self) -> str:
        """The nodes, equal ones together: "2 nodes with CPU 8, GPU 1, vendor=nvidia"."""
        try:
            nodes = self._nodes()
        except UNREACHABLE:
            return "the cluster does not answer"
        counts = Counter(_in_words(_shown(node.resources), _shown(node.labels)) for node in nodes)
        return "; ".join(f"{counted(count, 'node')} with {has}" for has, count in counts.items())


def held_by(workers: Iterable[tuple[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Node id -> resources that workers hold there, from the node id and the resources of each."""
    held: dict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for node_id, resources in workers:
        for name, count in resources.items():
            held[node_id][name] += count
    return {node_id: dict(resources) for node_id, resources in held.items()}


def _fits(asked: Asked, node: Node, held: Mapping[str, float]) -> bool:
    has_room = all(node.resources.get(name, 0) - held.get(name, 0) >= count for name, count in asked.resources.items())
    return has_room and all(_is_met(wanted, node.labels.get(key)) for key, wanted in asked.labels.items())


def _is_met(selector: str, label: str | None) -> bool:
    """Whether a label, None where a node has none of the name, meets a selector."""
    is_negated, values = _parsed(selector)
    return (label in values) != is_negated


def _parsed(selector: str) -> tuple[bool, frozenset[str]]:
    positive = selector.removeprefix("!")
    values = positive[3:-1].split(",") if positive.startswith("in(") else [positive]
    return selector.startswith("!"), frozenset(value.strip() for value in values)


def _is_same(asked: Asked, request: Asked) -> bool:
    selectors = [{key: _parsed(value) for key, value in one.labels.items()} for one in (asked, request)]
    return dict(asked.resources) == dict(request.resources) and selectors[0] == selectors[1]


def _selector(constraint: LabelSelectorConstraint) -> str:
    negation = "!" if constraint.operator == LabelSelectorOperator.LABEL_OPERATOR_NOT_IN else ""
    return f"{negation}in({','.join(constraint.label_values)})"


def _shown(values: Mapping[str, object]) -> dict[str, object]:
    """By name, without what Ray adds of its own and no worker asks for."""
    added = ("node:", "ray.io/", "memory", "object_store_memory")
    return {name: value for name, value in sorted(values.items()) if not name.startswith(added)}


def _in_words(resources: Mapping[str, object], labels: Mapping[str, object]) -> str:
    amounts = [f"{name} {value:g}" for name, value in resources.items() if isinstance(value, int | float)]
    return ", ".join([*amounts, *(f"{key}={value}" for key, value in labels.items())]) or "nothing"

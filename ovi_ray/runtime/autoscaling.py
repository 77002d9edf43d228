"""Asks Ray's autoscaler for the nodes that a job needs. Without an autoscaler the requests have no effect."""

from collections.abc import Callable, Sequence
from contextlib import suppress

from ray.autoscaler.sdk import request_resources

from ovi_ray.runtime.cluster_watch import UNREACHABLE
from ovi_ray.runtime.placement import Placement

Bundle = dict[str, float]
Selector = dict[str, str]


def _ask_ray(bundles: list[Bundle], selectors: list[Selector]) -> None:
    request_resources(bundles=bundles, bundle_label_selectors=selectors)


class Autoscaling:
    """The job's standing request: nodes for so many workers. It is the cluster's only one: another job's would replace it,
    whose waiting workers are a demand of their own."""

    def __init__(self, ask: Callable[[list[Bundle], list[Selector]], object] = _ask_ray) -> None:
        self._ask = ask
        self._requested: tuple[Placement, ...] = ()

    def request(self, placements: Sequence[Placement]) -> None:
        """Ask that the cluster have room for these workers at the same time; does nothing if it was asked for the same."""
        wanted = tuple(placements)
        if wanted != self._requested:
            self._ask([placement.resources for placement in wanted], [placement.labels for placement in wanted])
            self._requested = wanted

    def release(self) -> None:
        """Take the request back, so that idle nodes may go; a head that does not answer has forgotten it."""
        with suppress(*UNREACHABLE):
            self.request(())

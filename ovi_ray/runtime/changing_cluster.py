"""A cluster whose nodes come and go while a job runs, and that other jobs use too."""

import functools
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.runtime.autoscaling import Autoscaling
from ovi_ray.runtime.cluster_watch import ClusterWatch, alive_nodes, draining_nodes
from ovi_ray.runtime.fair_share import FairShare, HeadTable, ended_drivers, this_driver
from ovi_ray.runtime.head_calls import HeadCalls
from ovi_ray.runtime.placement import Placement, devices
from ovi_ray.weights.cache import local_checkpoint
from ovi_ray.workers.requirements import NodeRequirements, requirements_here


@dataclass(kw_only=True, slots=True, frozen=True)
class ChangingCluster:
    """A cluster whose nodes come and go while a job runs."""

    watch: ClusterWatch
    place: Callable[[Set[str]], Sequence[Placement]]
    """The workers of the job that the cluster has room for now, without nodes of these ids. Raises ClusterError for too few."""
    requires: NodeRequirements | None = None
    """Versions and weights that each node must share with the driver."""
    autoscaling: Autoscaling | None = None
    """Requests to the autoscaler; None where no nodes are added for the job."""
    share: FairShare | None = None
    """The share of the cluster beside other jobs; None where the job takes what is free."""

    def leave(self) -> None:
        """Take back what the job has asked of the cluster."""
        if self.autoscaling is not None:
            self.autoscaling.release()
        if self.share is not None:
            self.share.leave()


def joined_cluster(
    job: JobSpec, place: Callable[..., Sequence[Placement]], *, interval_s: float, answers: Callable[[], bool]
) -> ChangingCluster | None:
    """The cluster at the address of a job, once Ray has joined it; None for a Ray of the job's own, where nothing changes.

    `answers` says whether the cluster's head does.

    A job that nodes are added for takes no share: what it may have depends on what it asks for.
    """
    if not job.address:
        return None
    calls = HeadCalls()
    return ChangingCluster(
        watch=ClusterWatch(
            interval_s=interval_s,
            alive=lambda: calls(alive_nodes),
            draining=lambda: calls(draining_nodes),
            answers=answers,
        ),
        place=functools.partial(place, job),
        requires=requirements_here(local_checkpoint(job.ckpt_dir), job.weight_format),
        autoscaling=Autoscaling() if job.elastic else None,
        share=None if job.elastic else _share(job, calls),
    )


def _share(job: JobSpec, calls: HeadCalls) -> FairShare:
    return FairShare(
        priority=job.priority,
        table=HeadTable(calls),
        devices=lambda: calls(devices),
        driver=this_driver(),
        ended=lambda: calls(ended_drivers),
    )

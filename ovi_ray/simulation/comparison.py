"""Comparison of placements on a cluster: a job as it is placed, with a queue of whole clips, and without helpers."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ovi.stages import Stage, stages_of
from ovi_ray.scheduling.config import SchedulerConfig
from ovi_ray.scheduling.scheduler import Scheduler
from ovi_ray.scheduling.workload import NO_FRAME, Workload
from ovi_ray.simulation.virtual_cluster import VirtualDevice, simulate
from ovi_ray.simulation.whole_clip_queue import dynamic_queue

MOST_CLIPS = 2_000
"""Clips of a job that are compared: more take longer and change the shares little."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Comparison:
    """Times of one job on one cluster. None where that way cannot render the job."""

    clips: int
    """The first ones of the job, at most `MOST_CLIPS`."""
    placed_s: float
    """Seconds with each stage placed where it is done best."""
    whole_clips_s: float | None
    """Seconds when each device that can denoise and decode pulls the next clip, swapping components in place; devices that
    cannot do both encode, where no other can."""
    helpers: tuple[str, ...]
    """Classes that cannot denoise."""
    without_helpers_s: float | None
    """Seconds as `placed_s`, without the devices of those classes."""

    @property
    def placement_saves(self) -> float | None:
        """Share of the time of whole clips that placement saves; negative when it takes longer."""
        return 1 - self.placed_s / self.whole_clips_s if self.whole_clips_s else None

    @property
    def helpers_save(self) -> float | None:
        """Share of the time without helpers that they save."""
        return 1 - self.placed_s / self.without_helpers_s if self.without_helpers_s else None


def compare(
    workload: Workload, devices: Sequence[VirtualDevice], placed_s: float, config: SchedulerConfig | None = None
) -> Comparison:
    """Simulate a job, or its first clips, in the other ways.

    `placed_s` is the time of the whole job as placed with this configuration.
    """
    if workload.clips > MOST_CLIPS:
        workload = first_clips(workload, MOST_CLIPS)
        placed_s = _makespan(devices, Scheduler(workload, config=config))
    able = [d for d in devices if any(d.profile.fits(Stage.DENOISE, kind) for kind in workload.kinds)]
    helpers = dict.fromkeys(d.profile.name for d in devices if d not in able)
    return Comparison(
        clips=workload.clips,
        placed_s=placed_s,
        whole_clips_s=_makespan(devices, dynamic_queue(workload, config)) if _has_queue(workload, devices) else None,
        helpers=tuple(helpers),
        without_helpers_s=(
            _makespan(able, Scheduler(workload, config=config)) if helpers and _can_render(workload, able) else None
        ),
    )


def _makespan(devices: Sequence[VirtualDevice], scheduler: Scheduler) -> float:
    return simulate(scheduler.workload, devices, scheduler=scheduler).makespan_s


def _has_queue(workload: Workload, devices: Sequence[VirtualDevice]) -> bool:
    """Whether each kind can be denoised and decoded on one device."""
    return _can_render(workload, devices) and all(
        any(d.profile.fits(Stage.DENOISE, kind) and d.profile.fits(Stage.DECODE, kind) for d in devices)
        for kind in workload.kinds
    )


def _can_render(workload: Workload, devices: Sequence[VirtualDevice]) -> bool:
    """Whether each stage of each kind fits on one of the devices."""
    return all(
        any(d.profile.fits(stage, kind) for d in devices)
        for kind in workload.kinds
        for stage in stages_of(has_image=kind.has_image)
    )


def first_clips(workload: Workload, clips: int) -> Workload:
    """The job of the first clips, with the texts and first frames that they need."""
    texts, of_clips = np.unique(workload.clip_texts[:clips], return_inverse=True)
    frames, of_frames = np.unique(workload.frames_of_clips[:clips], return_inverse=True)
    has_none = int(len(frames) > 0 and frames[0] == NO_FRAME)  # then -1 is the first of them
    return dataclasses.replace(
        workload,
        clip_kind=workload.clip_kind[:clips],
        clip_texts=of_clips.reshape(clips, -1),
        text_tokens=workload.text_tokens[texts],
        clip_first_frame=of_frames.reshape(clips) - has_none,
        first_frame_kind=workload.first_frame_kind[frames[has_none:]],
        clips_with_latents=workload.clips_with_latents[workload.clips_with_latents < clips],
    )

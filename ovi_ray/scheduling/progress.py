"""Counts of a job's progress, for display."""

from dataclasses import dataclass

from ovi.stages import CLIP_STAGES, Stage
from ovi_ray.scheduling.job_state import JobState
from ovi_ray.scheduling.states import CLIP_STAGE_STATES, ClipState


@dataclass(kw_only=True, slots=True, frozen=True)
class StageProgress:
    """Items of one stage."""

    done: int
    running: int
    ready: int
    """Items that could start now, if a device were free."""
    total: int


@dataclass(kw_only=True, slots=True, frozen=True)
class Progress:
    """Counts of a job's clips and its expected end."""

    clips: int
    done: int
    failed: int
    stages: dict[Stage, StageProgress]
    eta_s: float | None
    """Expected seconds until the end; None before the first allocation."""
    workers: int
    """Present, in service or quarantined."""
    busy: int
    """Workers with a task."""


def stage_progress(job: JobState) -> dict[Stage, StageProgress]:
    """The counts of every stage."""
    return {stage: _of_clips(job, stage) if stage in CLIP_STAGES else _of_inputs(job, stage) for stage in Stage}


def _of_inputs(job: JobState, stage: Stage) -> StageProgress:
    table = job.inputs[stage]
    return StageProgress(done=table.encoded, running=table.running, ready=table.queued, total=len(table))


def _of_clips(job: JobState, stage: Stage) -> StageProgress:
    states, totals = CLIP_STAGE_STATES[stage], job.totals
    done = sum(totals[states.finished : ClipState.FAILED])
    return StageProgress(
        done=done, running=totals[states.running], ready=totals[states.queued], total=job.workload.clips
    )

"""The state of a submitted job, in the same words for every target."""

import re
from dataclasses import dataclass
from enum import StrEnum

JOB_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
"""The form of a job's id."""


class JobState(StrEnum):
    """State of a submitted job."""

    PENDING = "pending"
    """It waits for machines."""
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    UNKNOWN = "unknown"
    """The target knows nothing of it any more."""

    @property
    def is_over(self) -> bool:
        """Whether the job will not change its state by itself."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.STOPPED, JobState.UNKNOWN)


@dataclass(kw_only=True, slots=True, frozen=True)
class JobStatus:
    """State and details of a job, as its target reports them."""

    job_id: str
    state: JobState
    target: str
    """The name or address that it was submitted to."""
    native_id: str = ""
    """The target's own id, such as a Slurm job number."""
    output_dir: str = ""
    submitted_at: str = ""
    """ISO 8601, UTC; empty where the target does not tell."""
    exit_code: int | None = None
    """Of the driver, once it has ended and the target knows."""
    message: str = ""
    """Why it waits or failed, in the target's words."""
    restarts: int = 0
    """Number of restarts."""

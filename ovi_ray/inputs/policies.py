"""The scheduler's configuration for a job, with the policies of its job file."""

from dataclasses import replace

from ovi_ray.inputs.job_spec import BatchSpec
from ovi_ray.scheduling.config import Pairing, RetryConfig, SchedulerConfig


def scheduler_config(job: BatchSpec, config: SchedulerConfig | None = None) -> SchedulerConfig:
    """A configuration with the retries of a job, after errors and after workers that died, its copies and pairs."""
    config = config or SchedulerConfig()
    if job.retries is not None:
        config = replace(config, retry=RetryConfig(max_attempts=job.retries + 1, max_crashes=job.retries + 1))
    if not job.speculation:
        config = replace(config, speculation=replace(config.speculation, enabled=False))
    return replace(config, pairing=replace(config.pairing, when=_pairing(job)))


def _pairing(job: BatchSpec) -> Pairing:
    if job.latency:
        return Pairing.ALWAYS
    return Pairing.TAIL if job.pairing else Pairing.OFF

"""Admission of clips: the number whose inputs are encoded ahead of denoise."""

from ovi_ray.scheduling.actions import Action
from ovi_ray.scheduling.config import AdmissionConfig
from ovi_ray.scheduling.job_state import JobState
from ovi_ray.scheduling.replanner import Replanner
from ovi_ray.scheduling.states import ClipState
from ovi_ray.scheduling.worker_pool import WorkerPool


class Admission:
    """Admits pending clips, the kinds in proportion, up to the memory for embeddings."""

    def __init__(self, job: JobState, pool: WorkerPool, replanner: Replanner, config: AdmissionConfig) -> None:
        self._job = job
        self._pool = pool
        self._replanner = replanner
        self._config = config

    def admit(self) -> list[Action]:
        """Admit as many clips as may be encoded ahead. Those that need a bad input fail at once."""
        job = self._job
        if not job.totals[ClipState.PENDING]:
            return []
        pending = {kind: job.pending(kind) for kind, placeable in enumerate(self._replanner.placeable) if placeable}
        total, ahead = sum(pending.values()), self._clips_ahead()
        actions: list[Action] = []
        for kind, left in pending.items():
            counts = job.counts[kind]
            share = max(self._config.min_clips_per_kind, ahead * left // total) if left else 0
            room = share - counts[ClipState.WAITING] - counts[ClipState.READY]
            for _ in range(min(room, left)):
                actions += job.admit(kind)
        return actions

    def _clips_ahead(self) -> int:
        config, replanner = self._config, self._replanner
        gb = config.embeddings_gb + config.embeddings_gb_per_worker * len(self._pool.workers)
        in_memory = int(gb / (config.embedding_gb_per_token * replanner.mean_tokens))
        return max(2 * replanner.denoisers, in_memory)

"""Checkpoints of a running denoise: its solver state at intervals, its latents at the end."""

import time
from contextlib import suppress

from torch import Tensor

from ovi.sampling.denoise import DenoiseState
from ovi.types import Latents
from ovi_ray.errors import LatentsUnusable
from ovi_ray.protocol.messages import Denoise
from ovi_ray.storage.diagnostics import storage_error
from ovi_ray.storage.paths import to_location
from ovi_ray.workers.tensor_files import Facts, load_tensors, save_tensors


class DenoiseKeeper:
    """Keeps one denoise safe: its state every so often, its latents at the end. Storage that fails never fails a denoise."""

    def __init__(self, work: Denoise) -> None:
        self._work = work
        self._started_at = self._saved_at = time.monotonic()
        self._saved_step = 0
        self._steps_begun = 0
        self._spent_before_s = 0.0
        self.notes: list[str] = []
        """What the user should know."""
        self.storage_error = ""
        """Why something could not be kept."""

    def finished(self) -> tuple[Latents, Facts] | None:
        """The latents, where this clip's denoise was finished before."""
        found = self._load(self._work.latents_path)
        return None if found is None else (Latents(**found[0]), found[1])

    def state(self) -> DenoiseState | None:
        """Where an earlier denoise of this clip stood."""
        found = self._load(self._work.checkpoint_path)
        if found is None:
            return None
        state = DenoiseState.from_tensors(found[0])
        self._saved_step = state.step
        self._spent_before_s = float(found[1]["denoise_s"])
        return state

    @property
    def spent_s(self) -> float:
        """Seconds of denoising that this clip took, on all the workers whose work is in it."""
        return self._spent_before_s + time.monotonic() - self._started_at

    def is_due(self) -> bool:
        """Asked before every step: whether the state is to be saved first. A step is taken between two saves at least."""
        self._steps_begun += 1
        is_late = time.monotonic() - self._saved_at >= self._work.checkpoint_s
        return bool(self._work.checkpoint_path) and self._steps_begun > 1 and is_late

    def save_state(self, state: DenoiseState) -> None:
        """Keep where the denoise stands."""
        self._saved_at = time.monotonic()
        self._steps_begun = 0
        if state.step > self._saved_step and self._save(
            self._work.checkpoint_path, state.tensors(), {"denoise_s": self.spent_s}
        ):
            self._saved_step = state.step

    def save_latents(self, latents: Latents, facts: Facts) -> None:
        """Keep what the denoise gave; its state has served."""
        if self._save(self._work.latents_path, {"video": latents.video, "audio": latents.audio}, facts):
            with suppress(OSError):  # storage out of reach: it goes with the clip's latents
                to_location(self._work.checkpoint_path).unlink(missing_ok=True)

    def _load(self, path: str) -> tuple[dict[str, Tensor], Facts] | None:
        if not path or not to_location(path).exists():
            return None
        try:
            return load_tensors(to_location(path), clip_id=self._work.clip_id)
        except LatentsUnusable as error:
            self.notes.append(f"{error}; the clip is denoised again")
            to_location(path).unlink(missing_ok=True)
            return None

    def _save(self, path: str, tensors: dict[str, Tensor], facts: Facts) -> bool:
        if not path:
            return False
        try:
            save_tensors(to_location(path), tensors, clip_id=self._work.clip_id, facts=facts)
        except OSError as error:
            self.storage_error = storage_error(error) or str(error)
            return False
        return True

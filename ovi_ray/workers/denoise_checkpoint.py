"""Checkpoints of a running denoise: its solver state at intervals, written beside the next steps; its latents at the end."""

import errno
import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

import torch
from torch import Tensor

from ovi.sampling.denoise import DenoiseState
from ovi.types import Latents
from ovi_ray.errors import LatentsUnusable, OutputUnavailable
from ovi_ray.output.broken_files import set_aside
from ovi_ray.protocol.messages import Denoise
from ovi_ray.storage.diagnostics import storage_error
from ovi_ray.storage.paths import to_location
from ovi_ray.workers.failures import output_errors
from ovi_ray.workers.tensor_files import Facts, load_tensors, save_tensors

Start = Callable[[Callable[[], None]], Future[None]]
"""Starts a write on another thread."""


class DenoiseCheckpointer:
    """Reads and writes the checkpoint and the latents of one denoise. A failed write never fails the denoise.

    At most one checkpoint is being written: while it is, none is due.
    """

    def __init__(self, work: Denoise, *, start: Start, clock: Callable[[], float] = time.monotonic) -> None:
        self._work = work
        self._start = start
        self._clock = clock
        self._saving: Future[None] | None = None
        self._started_at = self._saved_at = clock()
        self._saved_step = 0
        self._steps_since_save = 0
        self._spent_before_s = 0.0
        self.notes: list[str] = []
        """Messages for the user."""
        self.storage_error = ""
        """Why the last file that could not be written was not; empty if all were."""

    def finished(self) -> tuple[Latents, Facts] | None:
        """The latents and their facts, if an earlier task finished this denoise."""
        found = self._load(self._work.latents_path)
        return None if found is None else (Latents(video=found[0]["video"], audio=found[0]["audio"]), found[1])

    def state(self) -> DenoiseState | None:
        """The state to resume from, if an earlier task or attempt left a checkpoint."""
        self.settle()
        found = self._load(self._work.checkpoint_path)
        if found is None:
            self._check_folder()
            return None
        state = DenoiseState.from_tensors(found[0])
        self._saved_step = state.step
        self._spent_before_s = float(found[1]["denoise_s"])
        return state

    @property
    def spent_s(self) -> float:
        """Seconds of denoising behind the current state, those of earlier tasks included."""
        return self._spent_before_s + self._clock() - self._started_at

    def step_done(self) -> None:
        """A denoising step was completed."""
        self._steps_since_save += 1

    def is_due(self) -> bool:
        """Whether the state should be saved before the next step; never twice without a step in between."""
        is_late = self._clock() - self._saved_at >= self._work.checkpoint_s
        is_saving = self._saving is not None and not self._saving.done()
        return bool(self._work.checkpoint_path) and self._steps_since_save > 0 and is_late and not is_saving

    def save_state(self, state: DenoiseState) -> None:
        """Begin to write a checkpoint, unless there is one of this step or a later one; `settle` waits for its end."""
        self.settle()
        self._saved_at = self._clock()
        self._steps_since_save = 0
        if state.step > self._saved_step:
            tensors, facts = state.to(torch.device("cpu")).tensors(), {"denoise_s": self.spent_s}
            self._saving = self._start(lambda: self._save_state(state.step, tensors, facts))

    def _save_state(self, step: int, tensors: dict[str, Tensor], facts: Facts) -> None:
        if self._save(self._work.checkpoint_path, tensors, facts):
            self._saved_step = step

    def settle(self) -> None:
        """Wait until the checkpoint that is being written is there, or could not be written."""
        if self._saving is not None:
            self._saving.result()
            self._saving = None

    def save_latents(self, latents: Latents, facts: Facts) -> None:
        """Write the latents and remove the checkpoint."""
        self.settle()
        if self._save(self._work.latents_path, {"video": latents.video, "audio": latents.audio}, facts):
            with suppress(OSError):  # storage is unreachable: the driver removes it together with the latents
                to_location(self._work.checkpoint_path).unlink(missing_ok=True)

    def _load(self, path: str) -> tuple[dict[str, Tensor], Facts] | None:
        if not path:
            return None
        with output_errors():
            file = to_location(path)
            if not file.exists():
                return None
            try:
                return load_tensors(file, clip_id=self._work.clip_id)
            except LatentsUnusable as error:
                self.notes.append(f"{error}; the clip is denoised again")
                with suppress(FileNotFoundError):
                    set_aside(file)
                return None

    def _check_folder(self) -> None:
        """Without the folder nothing is known of the checkpoint, and its steps would be lost. Raises OutputUnavailable."""
        folder = to_location(self._work.checkpoint_path).parent
        if self._work.checkpoint_path and folder.is_local and not folder.is_dir():
            raise OutputUnavailable(f"{folder}: {os.strerror(errno.ENOENT)}")

    def _save(self, path: str, tensors: dict[str, Tensor], facts: Facts) -> bool:
        if not path:
            return False
        try:
            save_tensors(to_location(path), tensors, clip_id=self._work.clip_id, facts=facts)
        except OSError as error:
            self.storage_error = storage_error(error) or str(error)
            return False
        return True

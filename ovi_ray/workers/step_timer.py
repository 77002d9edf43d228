"""The time of a denoising step, known after a few of them."""

import time

import torch

_TIMED_STEPS = 2


class StepTimer:
    """Times the steps of one denoise after its first, in which kernels are loaded and chosen."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._steps = 0
        self._since = 0.0
        self.step_s = 0.0
        """Seconds of a step; 0 until it is known."""

    def step_done(self) -> None:
        """A step was given to the device, which is waited for at the two ends of the measurement."""
        self._steps += 1
        if self._steps == 1:
            self._since = self._now()
        elif self._steps == 1 + _TIMED_STEPS:
            self.step_s = (self._now() - self._since) / _TIMED_STEPS

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

"""What passes between the stages of the pipeline. These, and never frames, may cross between processes."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(kw_only=True, slots=True, frozen=True)
class PromptEmbeds:
    """A clip's three encoded texts, each [N, text_dim] with N <= text_len, without padding."""

    positive: Tensor
    """The prompt: it serves the video and the audio."""
    video_negative: Tensor
    audio_negative: Tensor


@dataclass(kw_only=True, slots=True, frozen=True)
class Latents:
    """A clip in latent space."""

    video: Tensor
    """[48, F, h, w], normalised."""
    audio: Tensor
    """[L, 20]."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Clip:
    """A decoded clip."""

    frames: np.ndarray
    """uint8 [F, H, W, 3] at 24 fps."""
    audio: np.ndarray
    """float32 [S] at 16 kHz, in [-1, 1]."""
    latents: Latents
    """What it was decoded from."""

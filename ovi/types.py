"""Values that pass between pipeline stages. `PromptEmbeds` and `Latents` may cross processes; decoded frames never do."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(kw_only=True, slots=True, frozen=True)
class PromptEmbeds:
    """The three encoded texts of a clip, each [N, text_dim] with N <= text_len, without padding."""

    positive: Tensor
    """The prompt, used for both video and audio."""
    video_negative: Tensor
    audio_negative: Tensor


@dataclass(kw_only=True, slots=True, frozen=True)
class LossReport:
    """The lossy shortcuts of a clip, and how far they were measured to be from the exact velocities."""

    lossy_steps: int
    """Steps whose result shortcuts determined."""
    shortcuts: Mapping[str, int]
    """In how many steps each shortcut determined the result."""
    low_bit_attention: str
    """The attention backend of that shortcut; empty without it."""
    left_out: Mapping[str, str]
    """Shortcuts of the quality that were not available, and why."""
    passes: int
    """Passes of the transformer, audits included; an exact clip has two for each step."""
    audits: int
    """Steps on which the exact velocity was computed too."""
    video_loss: float | None
    """Largest relative error that an audit found; None where there was none."""
    audio_loss: float | None
    exact_from_step: int | None
    """The step, from 1, from which the clip went on exactly, because a loss was beyond its bound."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Latents:
    """A clip in latent space."""

    video: Tensor
    """[48, F, h, w], normalised per channel."""
    audio: Tensor
    """[L, 20]."""
    loss: LossReport | None = None
    """None for an exact clip."""

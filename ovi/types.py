"""Values that pass between pipeline stages. `PromptEmbeds` and `Latents` may cross processes; decoded frames never do."""

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
class Latents:
    """A clip in latent space."""

    video: Tensor
    """[48, F, h, w], normalised per channel."""
    audio: Tensor
    """[L, 20]."""

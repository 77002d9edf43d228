"""Classifier-free guidance (arXiv 2207.12598), one scale per modality, with skip-layer guidance in the negative pass."""

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ovi.attention import AttentionPlan
from ovi.models.feed_forward import Fp8Products
from ovi.models.fusion import FusionTransformer, Grid, TextContext
from ovi.sampling.partner import NegativePass
from ovi.types import PromptEmbeds

Pair = tuple[Tensor, Tensor]
"""Of video latents [48, F, h, w] and of audio latents [L, 20]."""


@dataclass(kw_only=True, slots=True, frozen=True)
class PassNumerics:
    """Settings of a pass that change its numbers: the attention of each site, and the format of products."""

    attention: AttentionPlan
    fp8: Fp8Products | None = None
    """The way of the video's feed-forward products in 8-bit floats; None for products in the weights' dtype."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Guidance:
    """Inputs of the guided velocity that are constant over a clip's steps."""

    positive: TextContext
    negative: TextContext
    grid: Grid
    first_frame_is_clean: bool
    video_scale: float
    audio_scale: float
    skip_layer: int | None
    """Index of the block that the negative pass leaves out; None for none."""


def embed_texts(transformer: FusionTransformer, embeds: PromptEmbeds) -> tuple[TextContext, TextContext]:
    """Text contexts of the positive and of the negative pass. The prompt serves both modalities."""
    positive = transformer.embed_text(video=embeds.positive, audio=embeds.positive)
    return positive, transformer.embed_text(video=embeds.video_negative, audio=embeds.audio_negative)


class StepPasses:
    """The passes of one step from one state, each computed when it is first asked for, and once."""

    def __init__(
        self,
        transformer: FusionTransformer,
        *,
        video: Tensor,
        audio: Tensor,
        t: float,
        guidance: Guidance,
        partner: NegativePass | None = None,
    ) -> None:
        """At t in [0, 1000]. A partner begins with the negative pass at once, in the numerics of all passes of the step."""
        self.sample: Pair = (video, audio)
        self.guidance = guidance
        video, audio = video.to(transformer.dtype), audio.to(transformer.dtype)
        self._partner = partner
        if partner is not None:
            partner.begin(video=video, audio=audio, t=t)
        self._velocities = partial(
            transformer,
            video=video,
            audio=audio,
            grid=guidance.grid,
            time=transformer.embed_time(t, guidance.grid, guidance.first_frame_is_clean),
        )
        self.count = 0
        """Passes computed so far on this device."""
        self._positive: dict[PassNumerics, Pair] = {}
        self._negative: dict[PassNumerics, Pair] = {}

    def positive(self, numerics: PassNumerics) -> Pair:
        """Velocities, float32, with the prompt."""
        if numerics not in self._positive:
            self._positive[numerics] = self._run(numerics, text=self.guidance.positive)
        return self._positive[numerics]

    def negative(self, numerics: PassNumerics) -> Pair:
        """Velocities, float32, with the negative prompts and without the skipped layer."""
        if numerics not in self._negative:
            self._negative[numerics] = self._of_partner() or self._run(
                numerics, text=self.guidance.negative, skip_layer=self.guidance.skip_layer
            )
        return self._negative[numerics]

    def _of_partner(self) -> Pair | None:
        """The negative pass as the partner computed it; None where there is none, or it is lost."""
        answer = self._partner.result() if self._partner is not None else None
        return None if answer is None else (answer[0].float(), answer[1].float())

    def guided(self, numerics: PassNumerics) -> Pair:
        """Guided velocities, float32."""
        positive, negative = self.positive(numerics), self.negative(numerics)
        return (
            _guide(positive=positive[0], negative=negative[0], scale=self.guidance.video_scale),
            _guide(positive=positive[1], negative=negative[1], scale=self.guidance.audio_scale),
        )

    def difference(self, numerics: PassNumerics) -> Pair:
        """Positive less negative velocities."""
        positive, negative = self.positive(numerics), self.negative(numerics)
        return positive[0] - negative[0], positive[1] - negative[1]

    def guided_by(self, difference: Pair, numerics: PassNumerics) -> Pair:
        """Guided velocities from the positive pass and a `difference` of another step: the negative pass is not run."""
        positive = self.positive(numerics)
        return (
            positive[0] + (self.guidance.video_scale - 1) * difference[0],
            positive[1] + (self.guidance.audio_scale - 1) * difference[1],
        )

    def generated(self, video: Tensor) -> Tensor:
        """The part of a tensor of the video [48, F, h, w] that is not given as a first frame."""
        return video[:, 1:] if self.guidance.first_frame_is_clean and video.shape[1] > 1 else video

    def _run(self, numerics: PassNumerics, *, text: TextContext, skip_layer: int | None = None) -> Pair:
        video, audio = self._velocities(
            text=text, skip_layer=skip_layer, attention=numerics.attention, fp8=numerics.fp8
        )
        self.count += 1
        return video.float(), audio.float()


def _guide(*, positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    return negative + scale * (positive - negative)

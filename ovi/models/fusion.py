"""Ovi's twin-backbone fusion transformer (arXiv 2510.01284, section 3): video and audio, joined in every block.

Shapes: B batch (always 1: a clip), L tokens, C width; video latents [48, F, h, w], audio latents [L, 20].
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from ovi.attention import AttentionBackend, AttentionPlan
from ovi.attention.types import TORCHS_CHOICE
from ovi.config import TransformerConfig
from ovi.models.rope import Rotation, audio_rotation, video_rotation
from ovi.models.transformer import Backbone, Block, KeyValue, TimeEmbedding, gate, modulate


@dataclass(kw_only=True, slots=True, frozen=True)
class TextContext:
    """Keys and values of a clip's texts in every block of both backbones: computed once a clip, not once a step."""

    video: tuple[KeyValue, ...]
    audio: tuple[KeyValue, ...]


@dataclass(kw_only=True, slots=True, frozen=True)
class Grid:
    """Where a clip's tokens lie: the same for every step of a clip."""

    video_shape: tuple[int, int, int]  # patches: frames, height, width
    video: Rotation
    audio: Rotation


@dataclass(kw_only=True, slots=True, frozen=True)
class TimeContext:
    """Time embeddings of both backbones: the same for both passes of a step."""

    video: TimeEmbedding
    audio: TimeEmbedding


@dataclass(kw_only=True, slots=True)
class Stream:
    """One modality on its way through the blocks."""

    x: Tensor  # B L C
    text: tuple[KeyValue, ...]
    rotation: Rotation
    time: TimeEmbedding


class FusionTransformer(nn.Module):
    """Predicts the velocities of a clip's video and audio latents."""

    def __init__(self, video: TransformerConfig, audio: TransformerConfig) -> None:
        super().__init__()
        self.video_model = Backbone(video)
        self.audio_model = Backbone(audio)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the weights compute in."""
        return self.video_model.head.modulation.dtype

    def embed_text(self, video_text: Tensor, audio_text: Tensor) -> TextContext:
        """Text context of one pass from the rows [N, text_dim] for the video's and for the audio's backbone."""
        return TextContext(video=self.video_model.embed_text(video_text), audio=self.audio_model.embed_text(audio_text))

    def embed_grid(self, video_shape: tuple[int, ...], audio_length: int, device: torch.device) -> Grid:
        """Rotations for video latents [48, F, h, w] of that shape and `audio_length` audio latents."""
        patch, config = self.video_model.config.patch_size, self.audio_model.config
        frames, height, width = (size // step for size, step in zip(video_shape[1:], patch, strict=True))
        return Grid(
            video_shape=(frames, height, width),
            video=video_rotation(frames, height, width, self.video_model.config.head_dim, device),
            audio=audio_rotation(audio_length, config.head_dim, config.temporal_rope_scaling_factor, device),
        )

    def embed_time(self, t: float, grid: Grid, first_frame_is_clean: bool) -> TimeContext:
        """Time embeddings at t in [0, 1000]; a clean first frame's tokens are at time 0."""
        frames, height, width = grid.video_shape
        first, rest = height * width, (frames - 1) * height * width
        audio_length = grid.audio.cos.shape[0]
        if not first_frame_is_clean:
            video = self.video_model.embed_time([t], (first + rest,))
        elif rest == 0:
            video = self.video_model.embed_time([0.0], (first,))
        else:
            video = self.video_model.embed_time([0.0, t], (first, rest))
        return TimeContext(video=video, audio=self.audio_model.embed_time([t], (audio_length,)))

    def forward(
        self,
        video: Tensor,
        audio: Tensor,
        text: TextContext,
        grid: Grid,
        time: TimeContext,
        skip_layer: int | None = None,
        attention: AttentionPlan = TORCHS_CHOICE,
    ) -> tuple[Tensor, Tensor]:
        """Velocities of video latents [48, F, h, w] and audio latents [L, 20], in the weights' dtype.

        `skip_layer` leaves that block out (skip-layer guidance).
        """
        video_tokens = self.video_model.patch_embedding(video.unsqueeze(0)).flatten(2).transpose(1, 2)
        v = Stream(x=video_tokens, text=text.video, rotation=grid.video, time=time.video)
        audio_tokens = self.audio_model.patch_embedding(audio.unsqueeze(0))
        a = Stream(x=audio_tokens, text=text.audio, rotation=grid.audio, time=time.audio)
        for i, blocks in enumerate(zip(self.video_model.blocks, self.audio_model.blocks, strict=True)):
            if i != skip_layer:
                _fusion_block(*blocks, v, a, i, attention)  # type: ignore[arg-type]
        patches = self.video_model.head(v.x, v.time)
        return self._unpatchify(patches, grid), self.audio_model.head(a.x, a.time).squeeze(0)

    def _unpatchify(self, patches: Tensor, grid: Grid) -> Tensor:
        f, h, w = grid.video_shape
        pf, ph, pw = self.video_model.config.patch_size
        return rearrange(
            patches.squeeze(0), "(f h w) (pf ph pw c) -> c (f pf) (h ph) (w pw)", f=f, h=h, w=w, pf=pf, ph=ph, pw=pw
        )


def _fusion_block(
    video_block: Block, audio_block: Block, video: Stream, audio: Stream, index: int, attention: AttentionPlan
) -> None:
    """Both blocks of a layer; the streams are updated in place, so that no old activations are kept alive."""
    audio_vectors = _self_attention(audio_block, audio, attention.audio_self)
    video_vectors = _self_attention(video_block, video, attention.video_self)
    audio_before = audio.x  # the video's cross step sees the audio as it was before audio's own
    to_text, to_video = attention.audio_to_text, attention.audio_to_video
    _cross_attention(audio_block, audio, video.x, video.rotation, index, to_text, to_video)
    _feed_forward(audio_block, audio, audio_vectors)
    to_text, to_audio = attention.video_to_text, attention.video_to_audio
    _cross_attention(video_block, video, audio_before, audio.rotation, index, to_text, to_audio)
    _feed_forward(video_block, video, video_vectors)


def _self_attention(block: Block, s: Stream, backend: AttentionBackend) -> tuple[Tensor, ...]:
    vectors = block.modulation(s.time.modulation).unbind(1)  # shift scale gate, shift scale gate: T C each
    y = block.self_attn(modulate(block.norm1(s.x), vectors[0], vectors[1], s.time.spans), s.rotation, backend)
    s.x = gate(s.x, y, vectors[2], s.time.spans)
    return vectors


def _cross_attention(
    block: Block,
    s: Stream,
    other: Tensor,
    other_rotation: Rotation,
    index: int,
    text_backend: AttentionBackend,
    other_backend: AttentionBackend,
) -> None:
    rotations, backends = (s.rotation, other_rotation), (text_backend, other_backend)
    s.x = s.x + block.cross_attn(block.norm3(s.x), s.text[index], other, *rotations, *backends)


def _feed_forward(block: Block, s: Stream, vectors: tuple[Tensor, ...]) -> None:
    y = block.ffn(modulate(block.norm2(s.x), vectors[3], vectors[4], s.time.spans))
    s.x = gate(s.x, y, vectors[5], s.time.spans)

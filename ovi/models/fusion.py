"""Ovi's twin-backbone fusion transformer (arXiv 2510.01284, section 3): video and audio, joined in every block.

Each fusion block runs, per modality: self-attention, attention to the text and to the other modality, feed-forward.

Shapes: B batch (always 1, one clip), L video tokens, L' audio tokens, C width; video latents [48, F, h, w], audio
latents [L', 20].
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from ovi.attention import AttentionPlan
from ovi.attention.types import SDPA_PLAN
from ovi.config import TransformerConfig
from ovi.files import user_cache_folder
from ovi.kernels import KernelPlan
from ovi.kernels.types import EAGER_PLAN
from ovi.models.block_stream import BlockStream, StreamEdge
from ovi.models.feed_forward import Fp8Products
from ovi.models.rope import audio_rotation, video_rotation
from ovi.models.transformer import Backbone, Block, KeyValue, TimeEmbedding


@dataclass(kw_only=True, slots=True, frozen=True)
class TextContext:
    """Keys and values of a clip's texts in every block of both backbones, computed once per clip, not once per step."""

    video: tuple[KeyValue, ...]
    audio: tuple[KeyValue, ...]


@dataclass(kw_only=True, slots=True, frozen=True)
class Grid:
    """Positions of a clip's tokens; constant over its steps."""

    video_shape: tuple[int, int, int]
    """(frames, height, width) in patches."""
    video: Tensor  # rotation, L 1 D/2 2
    audio: Tensor  # rotation, L' 1 D/2 2


@dataclass(kw_only=True, slots=True, frozen=True)
class TimeContext:
    """Time embeddings of both backbones, shared by the positive and the negative pass of a step."""

    video: TimeEmbedding
    audio: TimeEmbedding


class FusionTransformer(nn.Module):
    """Predicts the velocities of a clip's video and audio latents."""

    def __init__(self, video: TransformerConfig, audio: TransformerConfig) -> None:
        super().__init__()
        self.video_model = Backbone(video)
        self.audio_model = Backbone(audio)
        self._run_block: Callable[..., list[Tensor]] = run_block
        self._stream: BlockStream | None = None
        self._kernels = EAGER_PLAN

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the weights compute in; quantized matrices may be stored narrower."""
        return self.video_model.head.modulation.dtype

    def embed_text(self, *, video: Tensor, audio: Tensor) -> TextContext:
        """Text context of one pass, from encoded texts [N, text_dim] for the video and for the audio backbone."""
        if self._stream is None:
            return TextContext(video=self.video_model.embed_text(video), audio=self.audio_model.embed_text(audio))
        (video_rows, video_padding), (audio_rows, audio_padding) = (
            self.video_model.text_rows(video),
            self.audio_model.text_rows(audio),
        )
        both = [
            (
                video_block.cross_attn.text_key_value(video_rows, video_padding),
                audio_block.cross_attn.text_key_value(audio_rows, audio_padding),
            )
            for _, (video_block, audio_block) in self._blocks()
        ]
        return TextContext(video=tuple(pair[0] for pair in both), audio=tuple(pair[1] for pair in both))

    def embed_grid(self, video_shape: tuple[int, ...], audio_length: int, device: torch.device) -> Grid:
        """Positions for video latents of `video_shape` (48, F, h, w) and `audio_length` audio latents."""
        video, audio = self.video_model.config, self.audio_model.config
        frames, height, width = (size // step for size, step in zip(video_shape[1:], video.patch_size, strict=True))
        return Grid(
            video_shape=(frames, height, width),
            video=video_rotation(frames, height, width, head_dim=video.head_dim, device=device),
            audio=audio_rotation(
                audio_length, head_dim=audio.head_dim, scale=audio.temporal_rope_scaling_factor, device=device
            ),
        )

    def embed_time(self, t: float, grid: Grid, first_frame_is_clean: bool) -> TimeContext:
        """Time embeddings at t in [0, 1000]; the tokens of a clean first frame are at time 0."""
        frames, height, width = grid.video_shape
        first, rest = height * width, (frames - 1) * height * width
        audio_length = grid.audio.shape[0]
        if not first_frame_is_clean:
            video = self.video_model.embed_time([t], (first + rest,))
        elif rest == 0:
            video = self.video_model.embed_time([0.0], (first,))
        else:
            video = self.video_model.embed_time([0.0, t], (first, rest))
        return TimeContext(video=video, audio=self.audio_model.embed_time([t], (audio_length,)))

    def forward(
        self,
        *,
        video: Tensor,
        audio: Tensor,
        text: TextContext,
        grid: Grid,
        time: TimeContext,
        skip_layer: int | None = None,
        attention: AttentionPlan = SDPA_PLAN,
        fp8: Fp8Products | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Velocities of video latents [48, F, h, w] and audio latents [L, 20], in the weights' dtype.

        `skip_layer` is the index of a block to leave out (skip-layer guidance); None runs all blocks. `fp8` is the way
        of the video's feed-forward products in 8-bit floats; None computes them in the weights' dtype.
        """
        streams = [
            self.video_model.patch_embedding(video.unsqueeze(0)),  # B L C
            self.audio_model.patch_embedding(audio.unsqueeze(0)),  # B L' C
        ]
        for index, (video_block, audio_block) in self._blocks(skip_layer):
            streams = self._run_block(
                streams,
                video_block=video_block,
                audio_block=audio_block,
                video_text=text.video[index],
                audio_text=text.audio[index],
                grid=grid,
                time=time,
                attention=attention,
                kernels=self._kernels,
                fp8=fp8,
            )
        v, a = streams
        patches = self.video_model.head(v, time.video, self._kernels)
        return self._unpatchify(patches, grid), self.audio_model.head(a, time.audio, self._kernels).squeeze(0)

    def fuse(self, kernels: KernelPlan) -> None:
        """Compute with the fused kernels of a plan, which the model's device must have."""
        self._kernels = kernels

    def compile_blocks(self, backend: str | Callable[..., Any] = "inductor", *, fullgraph: bool = False) -> None:
        """Compile the block of both backbones on first use: exact but for rounding, and faster where torch can fuse.

        One graph serves every text-to-video clip and one every clip with a first frame, whatever block, pass, text and
        size; another attention plan adds a graph. What inductor compiles is kept in the user's cache folder, unless
        $TORCHINDUCTOR_CACHE_DIR names another. `fullgraph` raises where a graph would break.
        """
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(user_cache_folder() / "inductor"))
        self._run_block = torch.compile(run_block, backend=backend, dynamic=True, fullgraph=fullgraph)

    def stream_blocks(self, device: torch.device, edge: StreamEdge | None = None) -> None:
        """Compute on `device` with blocks that stay in host memory; all else moves to the device. The model is on the CPU."""
        for backbone in (self.video_model, self.audio_model):
            for name, child in backbone.named_children():
                if name != "blocks":
                    child.to(device)
        if self._stream is None:
            pairs = list(zip(self.video_model.blocks, self.audio_model.blocks, strict=True))
            self._stream = BlockStream(pairs, device, edge)

    def leave_device(self) -> None:
        """Free the device of a model whose blocks are streamed, until `stream_blocks` is called again."""
        if self._stream is not None:
            self._stream.release()
            self.to("cpu")

    def _blocks(self, skip: int | None = None) -> Iterator[tuple[int, tuple[Block, Block]]]:
        """The blocks of both backbones with their indices, but one."""
        order = [index for index in range(len(self.video_model.blocks)) if index != skip]
        if self._stream is not None:
            yield from cast("Iterator[tuple[int, tuple[Block, Block]]]", self._stream.run(order))
            return
        for index in order:
            yield index, cast("tuple[Block, Block]", (self.video_model.blocks[index], self.audio_model.blocks[index]))

    def _unpatchify(self, patches: Tensor, grid: Grid) -> Tensor:
        f, h, w = grid.video_shape
        pf, ph, pw = self.video_model.config.patch_size
        return rearrange(
            patches.squeeze(0), "(f h w) (pf ph pw c) -> c (f pf) (h ph) (w pw)", f=f, h=h, w=w, pf=pf, ph=ph, pw=pw
        )


def run_block(
    streams: list[Tensor],
    *,
    video_block: Block,
    audio_block: Block,
    video_text: KeyValue,
    audio_text: KeyValue,
    grid: Grid,
    time: TimeContext,
    attention: AttentionPlan,
    kernels: KernelPlan,
    fp8: Fp8Products | None = None,
) -> list[Tensor]:
    """Video tokens [B, L, C] and audio tokens [B, L', C] after one block of both backbones.

    Takes the tokens out of `streams`, so that the caller does not keep those before the block alive. A compiler reuses its
    graph for every block, because what tells blocks apart are arguments.
    """
    v, a = streams
    streams.clear()
    v_modulation, a_modulation = video_block.modulation_at(time.video), audio_block.modulation_at(time.audio)
    a, a_normed = audio_block.apply_self_attention(
        a, a_modulation, rotation=grid.audio, backend=attention.audio_self, kernels=kernels
    )
    v, v_normed = video_block.apply_self_attention(
        v, v_modulation, rotation=grid.video, backend=attention.video_self, kernels=kernels
    )
    a_before = a  # the video attends to the audio as it was before the audio's own cross-attention
    a, a_normed = audio_block.apply_cross_attention(
        a,
        a_normed,
        a_modulation,
        text=audio_text,
        other=v,
        rotation=grid.audio,
        other_rotation=grid.video,
        text_backend=attention.audio_to_text,
        other_backend=attention.audio_to_video,
        kernels=kernels,
    )
    a = audio_block.apply_feed_forward(a, a_normed, a_modulation, kernels=kernels)
    v, v_normed = video_block.apply_cross_attention(
        v,
        v_normed,
        v_modulation,
        text=video_text,
        other=a_before,
        rotation=grid.video,
        other_rotation=grid.audio,
        text_backend=attention.video_to_text,
        other_backend=attention.video_to_audio,
        kernels=kernels,
    )
    return [video_block.apply_feed_forward(v, v_normed, v_modulation, kernels=kernels, fp8=fp8), a]

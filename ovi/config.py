"""Model sizes and sampling parameters (no torch).

The defaults are those of the published Ovi 1.1 (arXiv 2510.01284, github.com/character-ai/Ovi). A checkpoint folder
with other sizes declares them in its `architecture.json`.
"""

import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from numbers import Real
from pathlib import Path
from typing import Any, Self, cast

from ovi.errors import CheckpointMismatch, InvalidRequest
from ovi.quality import Quality

SPATIAL_STRIDE = 16  # video pixels per latent in each direction
TEMPORAL_STRIDE = 4  # video frames per latent frame; the first latent frame holds a single video frame
FRAMES_PER_SECOND = 24
SAMPLE_RATE = 16_000  # Hz, mono
MAX_TOKENS_PER_BATCH = 4096  # tokens, padding included, that the text encoder processes at once
ARCHITECTURE_FILE = "architecture.json"  # name, within a checkpoint folder, of the file with its sizes


class SolverName(StrEnum):
    """The ODE solvers of the published model."""

    UNIPC = "unipc"
    DPMPP = "dpm++"
    EULER = "euler"


class Component(StrEnum):
    """The networks of the pipeline; each is loaded and unloaded independently."""

    TEXT_ENCODER = "text_encoder"
    TRANSFORMER = "transformer"
    VIDEO_VAE = "video_vae"
    AUDIO_VAE = "audio_vae"
    VOCODER = "vocoder"


class AudioTag(StrEnum):
    """The markup of the soundtrack in a prompt; each model was trained on one of the two forms."""

    AUDCAP = "<AUDCAP>...<ENDAUDCAP>"
    AUDIO = "Audio: ..."


@dataclass(kw_only=True, slots=True, frozen=True)
class TransformerConfig:
    """One backbone of the twin transformer."""

    in_dim: int
    """Channels of a latent."""
    out_dim: int
    """Channels of a predicted velocity."""
    patch_size: tuple[int, ...]
    """Latents per token: (frames, height, width) for video, (length,) for audio."""
    dim: int = 3072
    """Width of the residual stream."""
    ffn_dim: int = 14336
    """Hidden width of the feed-forward."""
    freq_dim: int = 256
    """Width of the sinusoidal time embedding."""
    num_heads: int = 24
    num_layers: int = 30
    """Number of blocks."""
    text_len: int = 512
    """Rows that an encoded text is padded to."""
    text_dim: int = 4096
    """Width of the text encoder's output."""
    temporal_rope_scaling_factor: float = 1.0
    """Scale of temporal positions: audio positions per token, relative to video latent frames."""
    eps: float = 1e-6
    """Epsilon of every norm."""

    @property
    def head_dim(self) -> int:
        """Channels per attention head."""
        return self.dim // self.num_heads


@dataclass(kw_only=True, slots=True, frozen=True)
class TextEncoderConfig:
    """The UMT5-XXL encoder."""

    vocab_size: int = 256_384
    dim: int = 4096
    """Width of the residual stream."""
    dim_attn: int = 4096
    """Width of all attention heads together."""
    dim_ffn: int = 10_240
    """Hidden width of the feed-forward."""
    num_heads: int = 64
    num_layers: int = 24
    num_buckets: int = 32
    """Buckets of the relative position bias."""
    text_len: int = 512
    """Tokens that a prompt is truncated to."""


@dataclass(kw_only=True, slots=True, frozen=True)
class VideoVAEConfig:
    """The Wan 2.2 video VAE."""

    z_dim: int = 48
    """Latent channels."""
    dim: int = 160
    """Base width of the encoder."""
    dec_dim: int = 256
    """Base width of the decoder."""


@dataclass(kw_only=True, slots=True, frozen=True)
class AudioVAEConfig:
    """MMAudio's 16 kHz mel-spectrogram VAE."""

    data_dim: int = 80
    """Mel bands."""
    embed_dim: int = 20
    """Latent channels."""
    hidden_dim: int = 384
    """Base width."""


@dataclass(kw_only=True, slots=True, frozen=True)
class VocoderConfig:
    """BigVGAN: mel spectrogram to waveform."""

    num_mels: int = 80
    """Mel bands."""
    upsample_initial_channel: int = 1536
    """Channels before the first upsampling; each upsampling halves them."""


@dataclass(kw_only=True, slots=True, frozen=True)
class ModelSpec:
    """One published model: its weights, clip length, frame area and prompt markup."""

    name: str
    checkpoint: str
    """File of the fusion transformer, relative to the checkpoint folder."""
    video_latent_length: int
    """Latent frames of a clip."""
    audio_latent_length: int
    """Audio latents of a clip."""
    video_area: int
    """Pixels (height x width) that a frame size is scaled to."""
    audio_tag: AudioTag
    """Soundtrack markup that the model was trained on."""


MODEL_SPECS = {
    spec.name: spec
    for spec in (
        ModelSpec(
            name="720x720_5s",
            checkpoint="Ovi/model.safetensors",
            video_latent_length=31,
            audio_latent_length=157,
            video_area=720 * 720,
            audio_tag=AudioTag.AUDCAP,
        ),
        ModelSpec(
            name="960x960_5s",
            checkpoint="Ovi/model_960x960.safetensors",
            video_latent_length=31,
            audio_latent_length=157,
            video_area=960 * 960,
            audio_tag=AudioTag.AUDIO,
        ),
        ModelSpec(
            name="960x960_10s",
            checkpoint="Ovi/model_960x960_10s.safetensors",
            video_latent_length=61,
            audio_latent_length=314,
            video_area=960 * 960,
            audio_tag=AudioTag.AUDIO,
        ),
    )
}


def model_spec(name: str) -> ModelSpec:
    """The published spec of a model. Raises InvalidRequest, listing the known names, for any other name."""
    if name not in MODEL_SPECS:
        raise InvalidRequest(f"model_name {name!r} is unknown; expected one of {', '.join(MODEL_SPECS)}")
    return MODEL_SPECS[name]


@dataclass(kw_only=True, slots=True, frozen=True)
class Architecture:
    """Sizes of every component and specs of the models in a checkpoint folder."""

    video: TransformerConfig = field(
        default_factory=lambda: TransformerConfig(in_dim=48, out_dim=48, patch_size=(1, 2, 2))
    )
    audio: TransformerConfig = field(
        default_factory=lambda: TransformerConfig(
            in_dim=20, out_dim=20, patch_size=(1,), temporal_rope_scaling_factor=0.19676
        )
    )
    text_encoder: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    video_vae: VideoVAEConfig = field(default_factory=VideoVAEConfig)
    audio_vae: AudioVAEConfig = field(default_factory=AudioVAEConfig)
    vocoder: VocoderConfig = field(default_factory=VocoderConfig)
    models: dict[str, ModelSpec] = field(default_factory=lambda: dict(MODEL_SPECS), hash=False)

    def spec(self, model_name: str) -> ModelSpec:
        """The spec of a model in this folder. Raises InvalidRequest for an unknown model."""
        return self.models.get(model_name) or model_spec(model_name)

    @property
    def skippable_blocks(self) -> str:
        """The values of `slg_layer` that do something, for messages."""
        blocks = self._num_blocks
        return f"a block from 1 to {blocks - 1}, or 0 for none: the model has {blocks} blocks, counted from 0"

    def can_skip(self, slg_layer: int) -> bool:
        """Whether the transformer has the block that the negative pass should skip.

        The default is accepted everywhere: it is that of the published models, and a smaller one skips none then.
        """
        return slg_layer < self._num_blocks or slg_layer == DEFAULT_SLG_LAYER

    @property
    def _num_blocks(self) -> int:
        return min(self.video.num_layers, self.audio.num_layers)

    @classmethod
    def read(cls, ckpt_dir: str | Path) -> Self:
        """Read `architecture.json` of a checkpoint folder; the published sizes if there is none.

        Raises CheckpointMismatch when the file cannot be read, is not JSON, or has a field that is unknown or of another form.
        """
        path = Path(ckpt_dir) / ARCHITECTURE_FILE
        if not os.path.lexists(path):
            return cls()
        expected = "the sizes of the components, as JSON"
        try:
            return cls._from_json(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:  # the published sizes would not be those of the weights
            found = f"a file that cannot be read ({error.strerror or error})"
            if isinstance(error, FileNotFoundError):
                found = f"a link to {path.readlink()}, which does not exist"
            raise CheckpointMismatch(found, path=path, expected=expected) from error
        except RecursionError:
            raise CheckpointMismatch("JSON nested too deeply", path=path, expected=expected) from None
        except (ValueError, TypeError, AttributeError) as error:
            raise CheckpointMismatch(str(error), path=path, expected=expected) from error

    @classmethod
    def _from_json(cls, raw: dict[str, Any]) -> Self:
        default = cls()
        models = dict(default.models)
        for name, changes in raw.get("models", {}).items():
            models[name] = _replace(model_spec(name), changes)
        parts = {
            part.name: _replace(getattr(default, part.name), raw.get(part.name, {}))
            for part in dataclasses.fields(cls)
            if part.name != "models"
        }
        return cls(models=models, **parts)


# Fields of the published configuration files whose values are fixed: validated, not stored.
_FIXED_FIELDS = {
    "model_type": ("t2v", "t2a", "ti2v"),
    "window_size": ([-1, -1],),
    "qk_norm": (True,),
    "cross_attn_norm": (True,),
}


def _replace(default: Any, changes: dict[str, Any]) -> Any:
    known = {f.name for f in dataclasses.fields(default)}
    accepted = {}
    for key, value in changes.items():
        if key in known:
            accepted[key] = _like(getattr(default, key), tuple(value) if isinstance(value, list) else value, key)
        elif key not in _FIXED_FIELDS:
            raise ValueError(f"unknown field {key!r}; expected some of {', '.join(sorted(known))}")
        elif value not in _FIXED_FIELDS[key]:
            raise ValueError(f"{key} is {value!r}; only {_FIXED_FIELDS[key][0]!r} is supported")
    return dataclasses.replace(default, **accepted)


def _like(default: object, value: object, key: str) -> object:
    """The value of a field. Raises ValueError for one of another form than the published value, or a size below 1."""
    is_size = _is_int(default) and _is_int(value) and cast(int, value) > 0
    is_sizes = isinstance(value, tuple) and all(_is_int(part) and part >= 0 for part in value)
    is_other = isinstance(default, float | bool | str) and isinstance(value, float | int | str)
    if not (is_size or (isinstance(default, tuple) and is_sizes) or is_other):
        raise ValueError(f"{key} is {value!r}; expected a value like {default!r}")
    return value


DEFAULT_VIDEO_NEGATIVE_PROMPT = "jitter, bad hands, blur, distortion"
DEFAULT_AUDIO_NEGATIVE_PROMPT = "robotic, muffled, echo, distorted"
DEFAULT_SLG_LAYER = 11
MAX_SEED = 2**63 - 1


@dataclass(kw_only=True, slots=True, frozen=True)
class ParamSpec:
    """Help and accepted values of a sampling parameter."""

    help: str
    """One line for `--help`."""
    expected: str
    """The values that are accepted, as error messages name them."""
    accepts: Callable[[Any], bool]
    """Whether a value is one of them."""
    usual: tuple[float, float] | None = None
    """The ends of the range that the published program offers, where other values are accepted and rarely wanted."""


_PARAM_SPEC = "param_spec"


def _spec(
    *, help: str, expected: str, accepts: Callable[[Any], bool], usual: tuple[float, float] | None = None
) -> dict[str, ParamSpec]:
    """Metadata for a field of SamplingParams."""
    return {_PARAM_SPEC: ParamSpec(help=help, expected=expected, accepts=accepts, usual=usual)}


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)


def _is_size(value: object) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(_is_int(side) and side > 0 for side in value)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


@dataclass(kw_only=True, slots=True, frozen=True)
class SamplingParams:
    """Parameters that determine a clip beside its prompt, its image and the weights, with the published names and defaults.

    Declares type, default, range and help of each parameter: list columns, command-line options, manifest columns and
    clip ids are derived from its fields, and tests keep those of job files equal. Raises InvalidRequest, naming every field
    that is out of range.
    """

    video_frame_height_width: tuple[int, int] = field(
        default=(704, 1280),
        metadata=_spec(
            help="Frame size as height x width, such as 704x1280: scaled to the model's area, in multiples of 32."
            " A first-frame image sets its own.",
            expected="two positive integers [height, width]",
            accepts=_is_size,
        ),
    )
    seed: int = field(
        default=100,
        metadata=_spec(
            help="Seed of the starting noise. Rows without a seed of their own derive one from it.",
            expected="an integer from 0 to 2**63-1",
            accepts=lambda value: _is_int(value) and 0 <= value <= MAX_SEED,
        ),
    )
    sample_steps: int = field(
        default=50,
        metadata=_spec(
            help="Denoising steps.",
            expected="an integer of at least 1",
            accepts=lambda value: _is_int(value) and value >= 1,
        ),
    )
    solver_name: SolverName = field(
        default=SolverName.UNIPC,
        metadata=_spec(
            help="ODE solver.",
            expected=f"one of {', '.join(SolverName)}",
            accepts=lambda value: value in list(SolverName),
        ),
    )
    shift: float = field(
        default=5.0,
        metadata=_spec(
            help="Shift of the noise schedule.",
            expected="a positive number",
            accepts=lambda value: _is_finite(value) and value > 0,
            usual=(0.0, 20.0),
        ),
    )
    video_guidance_scale: float = field(
        default=4.0,
        metadata=_spec(
            help="Classifier-free guidance scale of the video.",
            expected="a finite number",
            accepts=_is_finite,
            usual=(0.0, 10.0),
        ),
    )
    audio_guidance_scale: float = field(
        default=3.0,
        metadata=_spec(
            help="Classifier-free guidance scale of the sound.",
            expected="a finite number",
            accepts=_is_finite,
            usual=(0.0, 10.0),
        ),
    )
    slg_layer: int = field(
        default=DEFAULT_SLG_LAYER,
        metadata=_spec(
            help="Transformer block that the negative pass skips (skip-layer guidance); 0 for none.",
            expected="a block number, or 0 for none",
            accepts=lambda value: _is_int(value) and value >= 0,
        ),
    )
    video_negative_prompt: str = field(
        default=DEFAULT_VIDEO_NEGATIVE_PROMPT,
        metadata=_spec(help="What the video should not show.", expected="text", accepts=_is_text),
    )
    audio_negative_prompt: str = field(
        default=DEFAULT_AUDIO_NEGATIVE_PROMPT,
        metadata=_spec(help="What should not be heard.", expected="text", accepts=_is_text),
    )
    quality: Quality = field(
        default=Quality.EXACT,
        metadata=_spec(
            help="exact: the model's numbers. high, fast: less work by lossy shortcuts, whose loss is measured in every clip.",
            expected=f"one of {', '.join(Quality)}",
            accepts=lambda value: value in list(Quality),
        ),
    )

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {getattr(self, name)!r}; expected {spec.expected}"
            for name, spec in param_specs().items()
            if not spec.accepts(getattr(self, name))
        ]
        if problems:
            raise InvalidRequest("; ".join(problems))
        object.__setattr__(self, "solver_name", SolverName(self.solver_name))
        object.__setattr__(self, "quality", Quality(self.quality))
        height, width = self.video_frame_height_width
        object.__setattr__(self, "video_frame_height_width", (int(height), int(width)))


@functools.cache
def param_specs() -> dict[str, ParamSpec]:
    """The declaration of each field of SamplingParams, by name, in order."""
    return {declared.name: declared.metadata[_PARAM_SPEC] for declared in dataclasses.fields(SamplingParams)}

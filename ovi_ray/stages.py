"""The stages of a clip and the components of the model that each stage needs. Pure."""

from enum import StrEnum


class Stage(StrEnum):
    """The unit of placement."""

    ENCODE_TEXT = "encode_text"
    ENCODE_FIRST_FRAME = "encode_first_frame"
    DENOISE = "denoise"
    DECODE = "decode"


class Component(StrEnum):
    """The part of the model that is loaded and unloaded as one."""

    TEXT_ENCODER = "text_encoder"
    TRANSFORMER = "transformer"
    VIDEO_VAE = "video_vae"
    AUDIO_VAE = "audio_vae"
    """The audio VAE's decoder and the vocoder."""


STAGE_COMPONENTS: dict[Stage, frozenset[Component]] = {
    Stage.ENCODE_TEXT: frozenset({Component.TEXT_ENCODER}),
    Stage.ENCODE_FIRST_FRAME: frozenset({Component.VIDEO_VAE}),
    Stage.DENOISE: frozenset({Component.TRANSFORMER}),
    Stage.DECODE: frozenset({Component.VIDEO_VAE, Component.AUDIO_VAE}),
}

"""The stages of a clip and the components of the model that each needs. Pure."""

from enum import StrEnum

from ovi.config import Component


class Stage(StrEnum):
    """The unit of placement: the pipeline's methods, decode being both `decode_video` and `decode_audio`."""

    ENCODE_TEXT = "encode_text"
    ENCODE_FIRST_FRAME = "encode_first_frame"
    DENOISE = "denoise"
    DECODE = "decode"


STAGE_COMPONENTS: dict[Stage, frozenset[Component]] = {
    Stage.ENCODE_TEXT: frozenset({Component.TEXT_ENCODER}),
    Stage.ENCODE_FIRST_FRAME: frozenset({Component.VIDEO_VAE}),
    Stage.DENOISE: frozenset({Component.TRANSFORMER}),
    Stage.DECODE: frozenset({Component.VIDEO_VAE, Component.AUDIO_VAE, Component.VOCODER}),
}

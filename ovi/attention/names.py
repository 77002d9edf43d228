"""Names of the attention backends and of the places where attention runs. Pure: no torch."""

from enum import StrEnum


class AttentionBackend(StrEnum):
    """Names of the backends, as they stand in a job file and in a clip's row."""

    AUTO = "auto"
    """Measure on the device and take the fastest that is exact enough, for each site."""
    FLASH_ATTN_3 = "flash_attn_3"
    """FlashAttention-3, from the package `flash_attn_interface`."""
    FLASH_ATTN_2 = "flash_attn_2"
    """FlashAttention-2, from the package `flash_attn`."""
    SAGE = "sage"
    """SageAttention: 8-bit inside, so not exact."""
    SDPA = "sdpa"
    """PyTorch's fused kernels; torch picks the kernel."""
    SDPA_FLASH = "sdpa_flash"
    """PyTorch's own FlashAttention."""
    SDPA_CUDNN = "sdpa_cudnn"
    """cuDNN's fused attention through PyTorch."""
    SDPA_EFFICIENT = "sdpa_efficient"
    """PyTorch's memory-efficient kernel."""
    SDPA_AOTRITON = "sdpa_aotriton"
    """AOTriton, which serves PyTorch's flash kernel on ROCm."""
    SDPA_MATH = "sdpa_math"
    """Softmax written out: the whole score matrix in memory. The way out where no fused kernel works."""


class Site(StrEnum):
    """Where attention runs in a block: queries, then keys. The shapes differ, so the fastest backend may."""

    VIDEO_SELF = "video_self"
    AUDIO_SELF = "audio_self"
    VIDEO_TO_AUDIO = "video_to_audio"
    AUDIO_TO_VIDEO = "audio_to_video"
    VIDEO_TO_TEXT = "video_to_text"
    AUDIO_TO_TEXT = "audio_to_text"

"""Conversion of devices and models to the targets and shapes that attention backends are benchmarked with."""

from pathlib import Path

import torch

from ovi.attention import AttentionShape, Site
from ovi.attention.target import AttentionTarget, aotriton_experimental
from ovi.attention.types import attention_shapes
from ovi.config import Architecture
from ovi.geometry import latent_grid, snap_size
from ovi_ray.devices.probe import GB, Device


def attention_target(
    device: Device, driver: str, dtype: torch.dtype = torch.bfloat16, model_bytes: int = 0
) -> AttentionTarget:
    """The attention target of a device, for computing in `dtype` beside `model_bytes` of weights."""
    if device.vendor == "cpu":
        return AttentionTarget.of(torch.device("cpu"), dtype, model_bytes)
    return AttentionTarget(
        device=device.torch_device,
        dtype=dtype,
        vendor=device.vendor,
        architecture=device.architecture,
        memory_bytes=int(device.memory_gb * GB),
        model_bytes=model_bytes,
        name=device.name,
        driver=driver,
        aotriton_experimental=aotriton_experimental(),
    )


def model_shapes(ckpt_dir: str | Path, model_name: str) -> dict[Site, AttentionShape]:
    """The attention shapes of a model's clips with square frames."""
    arch = Architecture.read(ckpt_dir)
    spec = arch.spec(model_name)
    rows, columns = latent_grid(*snap_size(1, 1, spec.video_area))
    video_shape = (arch.video.in_dim, spec.video_latent_length, rows, columns)
    return attention_shapes(arch.video, arch.audio, video_shape, spec.audio_latent_length)

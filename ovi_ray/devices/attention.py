"""Devices and models as the attention backends see them."""

import os
from pathlib import Path

import torch

from ovi.attention import AttentionShape, Site
from ovi.attention.target import AOTRITON_EXPERIMENTAL, AttentionTarget
from ovi.attention.types import attention_shapes
from ovi.config import Architecture
from ovi.geometry import latent_grid, snap_size
from ovi_ray.devices.probe import GB, Device


def attention_target(device: Device, driver: str, dtype: torch.dtype = torch.bfloat16) -> AttentionTarget:
    """A device as attention backends see it, in the dtype that clips are computed in."""
    if device.vendor == "cpu":
        return AttentionTarget.of(torch.device("cpu"), dtype)
    return AttentionTarget(
        device=device.torch_device,
        dtype=dtype,
        vendor=device.vendor,
        architecture=device.architecture,
        memory_bytes=int(device.memory_gb * GB),
        name=device.name,
        driver=driver,
        aotriton_experimental=os.environ.get(AOTRITON_EXPERIMENTAL) == "1",
    )


def model_shapes(ckpt_dir: str | Path, model_name: str) -> dict[Site, AttentionShape]:
    """The attention shapes of a model's square clips."""
    arch = Architecture.read(ckpt_dir)
    spec = arch.spec(model_name)
    rows, columns = latent_grid(*snap_size(1, 1, spec.video_area))
    video_shape = (arch.video.in_dim, spec.video_latent_length, rows, columns)
    return attention_shapes(arch.video, arch.audio, video_shape, spec.audio_latent_length)

"""The transformer with 8-bit weights: integers quantized locally and cached, or the published 8-bit floats.

Both halve the memory and change pixels, so they are used only on request. Only the matrices of the blocks are narrowed:
they are 98% of the weights, and narrowing the embeddings and the head would cost the most accuracy for the least memory.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ovi.config import Architecture, Component
from ovi.errors import CheckpointMismatch, CheckpointNotFound
from ovi.files import atomic_writer, user_cache_folder
from ovi.models.block_stream import BUFFERS, pair_bytes, pinned_bytes
from ovi.models.fusion import FusionTransformer
from ovi.weights.formats import FP8_FILE, WeightFormat, check_format
from ovi.weights.loading import load_component


class WideningLinear(nn.Linear):
    """A linear layer that widens its stored weight to the input's dtype before the product."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out], in x's dtype."""
        return F.linear(x, self.weight.to(x.dtype), self.bias)


def load_transformer(
    ckpt_dir: str | Path, model_name: str, device: torch.device, dtype: torch.dtype, weights: WeightFormat
) -> FusionTransformer:
    """Load the transformer onto `device` in a weight format; qint8 is quantized on first use.

    Raises CheckpointNotFound, CheckpointMismatch, and InvalidRequest for a model that is not published in the format.
    """
    arch = Architecture.read(ckpt_dir)
    check_format(weights, arch.spec(model_name))
    match weights:
        case WeightFormat.QINT8:
            return _load_qint8(Path(ckpt_dir), arch, model_name, device, dtype)
        case WeightFormat.FP8:
            return _load_fp8(Path(ckpt_dir), arch, device, dtype)
        case WeightFormat.DTYPE:
            return cast("FusionTransformer", load_component(ckpt_dir, Component.TRANSFORMER, model_name, device, dtype))


@lru_cache(maxsize=16)  # building the module takes a second
def transformer_bytes(arch: Architecture, dtype: torch.dtype, weights: WeightFormat) -> int:
    """Bytes of the transformer's weights in a format, from the architecture alone; no file is read."""
    module = _empty(arch)
    total = sum(parameter.numel() for parameter in module.parameters()) * dtype.itemsize
    if weights is WeightFormat.DTYPE:
        return total
    matrices = [layer.weight for _, layer in _block_linears(module)]
    scales = sum(weight.shape[0] for weight in matrices) * dtype.itemsize if weights is WeightFormat.QINT8 else 0
    return total - sum(weight.numel() for weight in matrices) * (dtype.itemsize - 1) + scales


@dataclass(kw_only=True, slots=True, frozen=True)
class StreamedBytes:
    """Bytes of a transformer whose blocks are streamed."""

    device: int
    """All else, and the buffers."""
    host: int
    """The blocks, in pinned memory."""


@lru_cache(maxsize=16)
def streamed_bytes(arch: Architecture, dtype: torch.dtype) -> StreamedBytes:
    """Bytes of the transformer with streamed blocks, from the architecture alone."""
    module = _empty(arch).to(dtype)
    pairs = list(zip(module.video_model.blocks, module.audio_model.blocks, strict=True))
    blocks = sum(parameter.nbytes for pair in pairs for block in pair for parameter in block.parameters())
    each = pair_bytes(pairs[0])
    total = sum(parameter.nbytes for parameter in module.parameters())
    return StreamedBytes(device=total - blocks + BUFFERS * each, host=len(pairs) * pinned_bytes(each))


# -- qint8 -----------------------------------------------------------------------------------------------------------


def _load_qint8(
    ckpt_dir: Path, arch: Architecture, model_name: str, device: torch.device, dtype: torch.dtype
) -> FusionTransformer:
    from ovi.weights import qint8_layers

    path = quantized_path(ckpt_dir / arch.spec(model_name).checkpoint, dtype)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with conversion_lock(path):
            if not path.exists():
                quantize_to_file(ckpt_dir, model_name, dtype, path)
    module = _empty(arch).to(dtype)
    qint8_layers.quantize_blocks(module)
    qint8_layers.avoid_overreads(module)
    # Clone into anonymous memory: torch's CPU kernel reads past the end of file-mapped weights and crashes.
    return _assign(module, {key: tensor.clone() for key, tensor in _read(path, device)}, path)


def quantized_path(checkpoint: Path, dtype: torch.dtype) -> Path:
    """Path of the quantized form of a checkpoint file: in the user's cache folder, named after the file's digest."""
    identity = str(checkpoint.resolve())
    if checkpoint.exists():
        status = checkpoint.stat()
        identity += f" {status.st_size} {status.st_mtime_ns}"
    digest = hashlib.sha256(f"{identity} {dtype}".encode()).hexdigest()[:20]
    return user_cache_folder() / "qint8" / f"{checkpoint.stem}-{digest}.safetensors"


def conversion_lock(path: Path) -> FileLock:
    """Held while weights are quantized to `path`, so that workers that start at once do not all hold them twice."""
    return FileLock(path.parent.with_suffix(".lock"))


def quantize_to_file(ckpt_dir: str | Path, model_name: str, dtype: torch.dtype, path: Path) -> None:
    """Quantize a model's transformer on the CPU and write it to `path`, which is complete or absent afterwards."""
    from ovi.weights import qint8_layers

    module = load_component(ckpt_dir, Component.TRANSFORMER, model_name, torch.device("cpu"), dtype)
    qint8_layers.quantize_blocks(module)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_writer(path) as unfinished:
        save_file({key: tensor.contiguous() for key, tensor in module.state_dict().items()}, unfinished)


# -- fp8 -------------------------------------------------------------------------------------------------------------


def _load_fp8(ckpt_dir: Path, arch: Architecture, device: torch.device, dtype: torch.dtype) -> FusionTransformer:
    path = ckpt_dir / FP8_FILE
    if not path.is_file():
        fetch = f"ovi-ray weights download --fp8 {ckpt_dir}"
        raise CheckpointNotFound("no such file", expected=f"the published file; download it with: {fetch}", path=path)
    module = _empty(arch)
    narrow = {f"{name}.weight": layer for name, layer in _block_linears(module)}
    tensors = {}
    for key, tensor in _read(path, device):
        stays_narrow = key in narrow and tensor.dtype == torch.float8_e4m3fn
        tensors[key] = tensor if stays_narrow else tensor.to(dtype)
        if stays_narrow:
            narrow[key].__class__ = WideningLinear
    return _assign(module, tensors, path)


# -- shared ----------------------------------------------------------------------------------------------------------


def _empty(arch: Architecture) -> FusionTransformer:
    with torch.device("meta"):
        return FusionTransformer(arch.video, arch.audio)


def _block_linears(module: nn.Module) -> Iterable[tuple[str, nn.Linear]]:
    return ((name, m) for name, m in module.named_modules() if ".blocks." in name and isinstance(m, nn.Linear))


def _read(path: Path, device: torch.device) -> Iterable[tuple[str, Tensor]]:
    """Yield the tensors of a safetensors file. Raises CheckpointMismatch if it is unreadable."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            for key in file.keys():  # noqa: SIM118 - not a dict
                yield key, file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise CheckpointMismatch(
            str(error), expected="a complete file; delete it or download it again", path=path
        ) from error


def _assign(module: FusionTransformer, tensors: Mapping[str, Tensor], path: Path) -> FusionTransformer:
    try:
        module.load_state_dict(tensors, strict=True, assign=True)
    except (RuntimeError, KeyError) as error:
        raise CheckpointMismatch(str(error), expected="the tensors of the architecture", path=path) from error
    return module.eval().requires_grad_(False)

"""The attention backends: a small class each. Which one runs is an argument, never a global.

A new backend is a subclass of `Backend` in `BACKENDS`: can it be imported and why not, does it suit a device, a dtype and
a shape and why not, is it exact, run.

Shapes: B batch, L query tokens, S key tokens, H heads, D head width.
"""

import importlib
import importlib.metadata
from abc import ABC, abstractmethod
from types import ModuleType
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ovi.attention.target import AOTRITON_EXPERIMENTAL, AttentionTarget
from ovi.attention.types import AttentionBackend, AttentionShape

HALF = frozenset({torch.float16, torch.bfloat16})


def attention(q: Tensor, k: Tensor, v: Tensor, backend: AttentionBackend = AttentionBackend.SDPA) -> Tensor:
    """Full softmax attention, no mask, scale 1/sqrt(D).

    q is [B, L, H, D]; k and v are [B, S, H, D]. Returns [B, L, H, D] in q's dtype.
    """
    return BACKENDS[backend].run(q, k, v)


def reference_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What every backend is checked against: softmax written out, in float32. Shapes as `attention`."""
    scores = torch.einsum("blhd,bshd->bhls", q.float(), k.float()) * q.shape[-1] ** -0.5
    return torch.einsum("bhls,bshd->blhd", scores.softmax(dim=-1), v.float())


class Backend(ABC):
    """One way to compute attention."""

    exact: ClassVar[bool] = True
    """Whether it computes in the inputs' precision; one that quantizes takes part only when asked for."""
    package: ClassVar[str] = "torch"
    """The distribution whose version decides how fast it is."""
    module: ClassVar[str] = "torch"
    """What is imported."""

    def missing(self) -> str:
        """Why it cannot be imported; empty when it can."""
        try:
            importlib.import_module(self.module)
        except Exception as error:  # a package built for another torch fails in any way it likes
            return f"{self.module} cannot be imported: {error}"
        return ""

    def version(self) -> str:
        """Version of its package."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:  # a module that was put there by hand
            return "unknown"

    @abstractmethod
    def unsuited(self, target: AttentionTarget, shape: AttentionShape) -> str:
        """Why it cannot run such a call on such a device; empty when it should."""

    @abstractmethod
    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As `attention`."""

    def why_not(self, target: AttentionTarget, shape: AttentionShape) -> str:
        """Why it is out before anything runs; empty when it is worth a try."""
        return self.unsuited(target, shape) or self.missing()

    def _import(self) -> ModuleType:
        return importlib.import_module(self.module)


class TorchsChoice(Backend):
    """`scaled_dot_product_attention` as it comes. `torchs_kernel` tells which kernel that is."""

    def unsuited(self, target: AttentionTarget, shape: AttentionShape) -> str:
        """It always runs, if need be by the math kernel."""
        return ""

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As `attention`."""
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))  # B H L D
        return out.transpose(1, 2)


class SdpaKernel(TorchsChoice):
    """One kernel of `scaled_dot_product_attention`, and no other: where it cannot run, it raises."""

    kernel: ClassVar[SDPBackend]

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As `attention`."""
        with sdpa_kernel([self.kernel]):
            return super().run(q, k, v)


class SdpaFlash(SdpaKernel):
    """FlashAttention inside PyTorch: on NVIDIA from sm80, and on CPUs."""

    kernel = SDPBackend.FLASH_ATTENTION

    def unsuited(self, target: AttentionTarget, shape: AttentionShape) -> str:
        """It needs half precision on a GPU."""
        if target.vendor == "amd":
            return "on ROCm, PyTorch's flash kernel is AOTriton: see sdpa_aotriton"
        return "" if target.vendor == "cpu" else _half_on_nvidia(target, shape, capability=80, head_dim=256)


class SdpaCudnn(SdpaKernel):
    """cuDNN's attention, on NVIDIA from sm80."""

    kernel = SDPBackend.CUDNN_ATTENTION

    def unsuited(self, target: AttentionTarget, shape: AttentionShape) -> str:
        """It needs half precision and heads of up to 128."""
        return _half_on_nvidia(target, shape, capability=80, head_dim=128)


class SdpaEfficient(SdpaKernel):
    """The memory-efficient kernel: on every GPU, in any dtype."""

    kernel = SDPBackend.EFFICIENT_ATTENTION

    def unsuited(self, target: AttentionTarget, shape: AttentionShape) -> str:
        """It needs a GPU."""
        return "it runs on GPUs only" if target.vendor == "cpu" else _experimental(target)


class SdpaAotriton(SdpaKernel):
    """AOTriton's kernels behind PyTorch's flash attention on ROCm."""

    kernel = SDPBackend.FLASH_ATTENTION

    def unsuited(self, target: AttentionTarget, shape: AttentionShape) -> str:
        """It needs ROCm and half precision, and on some architectures a variable."""
        if target.vendor != "amd":
            return "it runs on ROCm only"
        if target.dtype not in HALF:
            return f"it computes in half precision, not {_name(target.dtype)}"
        return _experimental(target)


class SdpaMath(SdpaKernel):
    """Softmax written out by PyTorch."""

    kernel = SDPBackend.MATH

    def unsuited(self, target: AttentionTarget, shape: AttentionShape) -> str:
        """Its scores must fit: they and their softmax are there at once."""
        needed = 2 * shape.score_bytes
        if needed > target.memory_bytes // 2:
            return f"its scores take {needed / 1e9:.0f} GB of the device's {target.memory_bytes / 1e9:.0f} GB"
        return ""


class FlashAttn2(Backend):
    """The package flash-attn: NVIDIA from sm80, and ROCm through CK or Triton."""

    package = "flash_attn"
    module = "flash_attn"

    def unsuited(self, target: AttentionTarget, shape: AttentionShape) -> str:
        """It needs half precision on a GPU."""
        if target.vendor == "amd":
            return "" if target.dtype in HALF else f"it computes in half precision, not {_name(target.dtype)}"
        return _half_on_nvidia(target, shape, capability=80, head_dim=256)

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As `attention`."""
        return self._import().flash_attn_func(q, k, v)


class FlashAttn3(Backend):
    """FlashAttention-3, built for Hopper. Elsewhere its import may succeed and run something else."""

    package = "flash_attn_3"
    module = "flash_attn_interface"

    def unsuited(self, target: AttentionTarget, shape: AttentionShape) -> str:
        """It needs half precision on sm90."""
        reason = _half_on_nvidia(target, shape, capability=90, head_dim=256)
        return reason or ("" if target.capability < 100 else f"it is built for sm90, not {target.architecture}")

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As `attention`."""
        out = self._import().flash_attn_func(q, k, v)
        return out[0] if isinstance(out, tuple) else out  # older versions return the log-sum-exp too


class Sage(Backend):
    """SageAttention: queries and keys in 8 bits."""

    exact = False
    package = "sageattention"
    module = "sageattention"
    _CAPABILITIES = frozenset({80, 86, 89, 90, 120})

    def unsuited(self, target: AttentionTarget, shape: AttentionShape) -> str:
        """It has kernels for some architectures, in half precision."""
        reason = _half_on_nvidia(target, shape, capability=80, head_dim=128)
        if not reason and target.capability not in self._CAPABILITIES:
            return f"it has no kernel for {target.architecture}"
        return reason

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As `attention`."""
        return self._import().sageattn(q, k, v, tensor_layout="NHD", is_causal=False)


BACKENDS: dict[AttentionBackend, Backend] = {
    AttentionBackend.FLASH_ATTN_3: FlashAttn3(),
    AttentionBackend.FLASH_ATTN_2: FlashAttn2(),
    AttentionBackend.SAGE: Sage(),
    AttentionBackend.SDPA: TorchsChoice(),
    AttentionBackend.SDPA_FLASH: SdpaFlash(),
    AttentionBackend.SDPA_CUDNN: SdpaCudnn(),
    AttentionBackend.SDPA_EFFICIENT: SdpaEfficient(),
    AttentionBackend.SDPA_AOTRITON: SdpaAotriton(),
    AttentionBackend.SDPA_MATH: SdpaMath(),
}
"""Every backend that runs; `auto` is not one of them, it chooses among them."""


def torchs_kernel(target: AttentionTarget, shape: AttentionShape) -> AttentionBackend:
    """The kernel that `scaled_dot_product_attention` takes for such a call, asked of torch itself."""
    device = torch.device(target.device)
    q = torch.empty(1, shape.num_heads, shape.query_length, shape.head_dim, dtype=target.dtype, device=device)
    k = torch.empty(1, shape.num_heads, shape.key_length, shape.head_dim, dtype=target.dtype, device=device)
    kernel = SDPBackend(torch._fused_sdp_choice(q, k, k))
    flash = AttentionBackend.SDPA_AOTRITON if target.vendor == "amd" else AttentionBackend.SDPA_FLASH
    return {
        SDPBackend.FLASH_ATTENTION: flash,
        SDPBackend.EFFICIENT_ATTENTION: AttentionBackend.SDPA_EFFICIENT,
        SDPBackend.CUDNN_ATTENTION: AttentionBackend.SDPA_CUDNN,
    }.get(kernel, AttentionBackend.SDPA_MATH)


def _half_on_nvidia(target: AttentionTarget, shape: AttentionShape, *, capability: int, head_dim: int) -> str:
    if target.vendor != "nvidia":
        return "it runs on NVIDIA GPUs only"
    if target.capability < capability:
        return f"it needs sm{capability} or newer, not {target.architecture}"
    if target.dtype not in HALF:
        return f"it computes in half precision, not {_name(target.dtype)}"
    if shape.head_dim > head_dim or shape.head_dim % 8:
        return f"it takes heads of up to {head_dim} in multiples of 8, not {shape.head_dim}"
    return ""


_AOTRITON_STABLE = ("gfx90a", "gfx942", "gfx950")


def _experimental(target: AttentionTarget) -> str:
    """Why AOTriton, which serves both fused kernels on ROCm, does not run: empty on NVIDIA."""
    if target.vendor != "amd" or target.architecture in _AOTRITON_STABLE or target.aotriton_experimental:
        return ""
    return f"AOTriton is experimental on {target.architecture}: set {AOTRITON_EXPERIMENTAL}=1 before torch starts"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

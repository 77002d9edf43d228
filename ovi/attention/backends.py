"""The attention backends, one class each. The backend of a call is an argument, never a global setting.

To add a backend, register a subclass of `Backend` in `BACKENDS`. It states whether its package can be imported, which
devices, dtypes and shapes it supports, whether it is exact, and how to run it.

Shapes: B batch, L query tokens, S key tokens, H heads, D head width.
"""

import importlib
import importlib.metadata
from abc import ABC, abstractmethod
from types import ModuleType
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ovi.attention.target import AttentionTarget
from ovi.attention.types import AttentionBackend, AttentionShape

HALF = frozenset({torch.float16, torch.bfloat16})
_FP8 = torch.float8_e4m3fn


def attention(q: Tensor, k: Tensor, v: Tensor, backend: AttentionBackend = AttentionBackend.SDPA) -> Tensor:
    """Full softmax attention, no mask, scale 1/sqrt(D).

    q is [B, L, H, D]; k and v are [B, S, H, D]. Returns [B, L, H, D] in q's dtype.
    """
    if torch.compiler.is_compiling():
        return cast("Tensor", _opaque_attention(q, k, v, str(backend)))
    return BACKENDS[backend].run(q, k, v)


@torch.library.custom_op("ovi::attention", mutates_args=())
def _opaque_attention(q: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
    """`attention` as one operation for a compiler, which cannot look into the imports and settings of the backends."""
    return BACKENDS[AttentionBackend(backend)].run(q, k, v).contiguous()


@_opaque_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
    return q.new_empty(q.shape)


def reference_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Unfused softmax attention in float32, against which backends are checked. Shapes as in `attention`."""
    scores = torch.einsum("blhd,bshd->bhls", q.float(), k.float()) * q.shape[-1] ** -0.5
    return torch.einsum("bhls,bshd->blhd", scores.softmax(dim=-1), v.float())


class Backend(ABC):
    """An implementation of attention."""

    exact: ClassVar[bool] = True
    """Whether it computes in the inputs' precision. `auto` uses inexact backends only if they are allowed."""
    package: ClassVar[str] = "torch"
    """Distribution that provides the kernel; its version is part of the cache key."""
    module: ClassVar[str] = "torch"
    """Module that provides the kernel."""

    def import_error(self) -> str:
        """Why the module cannot be imported; empty if it can."""
        try:
            importlib.import_module(self.module)
        except Exception as error:  # a package built for another torch may raise anything
            return f"{self.module} cannot be imported: {error}"
        return ""

    def version(self) -> str:
        """Installed version of the package; "unknown" for a module without metadata."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:  # a module that was installed without metadata
            return "unknown"

    @abstractmethod
    def unsupported_reason(self, target: AttentionTarget, shape: AttentionShape) -> str:
        """Why the backend does not support the device, dtype or shape; empty if it does."""

    @abstractmethod
    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Compute attention; shapes as in `attention`."""

    def unavailable_reason(self, target: AttentionTarget, shape: AttentionShape) -> str:
        """Why the backend is unsupported or cannot be imported; empty if it is worth a trial."""
        return self.unsupported_reason(target, shape) or self.import_error()

    def _import(self) -> ModuleType:
        return importlib.import_module(self.module)


class SdpaDefault(Backend):
    """`scaled_dot_product_attention` with the kernel that PyTorch selects; `selected_kernel` returns which one."""

    def unsupported_reason(self, target: AttentionTarget, shape: AttentionShape) -> str:
        """Always supported, by the math kernel if by no other."""
        return ""

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Compute attention; shapes as in `attention`."""
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))  # B H L D
        return out.transpose(1, 2)


class SdpaKernel(SdpaDefault):
    """A single kernel of `scaled_dot_product_attention`; raises where that kernel cannot run."""

    kernel: ClassVar[SDPBackend]

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Compute attention; shapes as in `attention`."""
        with sdpa_kernel([self.kernel]):
            return super().run(q, k, v)


class SdpaFlash(SdpaKernel):
    """FlashAttention inside PyTorch: NVIDIA from sm80, and CPUs."""

    kernel = SDPBackend.FLASH_ATTENTION

    def unsupported_reason(self, target: AttentionTarget, shape: AttentionShape) -> str:
        """Requires half precision on GPUs."""
        if target.vendor == "amd":
            return "on ROCm, PyTorch's flash kernel is AOTriton; use sdpa_aotriton"
        return "" if target.vendor == "cpu" else _half_on_nvidia(target, shape, capability=80, head_dim=256)


class SdpaCudnn(SdpaKernel):
    """cuDNN's attention: NVIDIA from sm80."""

    kernel = SDPBackend.CUDNN_ATTENTION

    def unsupported_reason(self, target: AttentionTarget, shape: AttentionShape) -> str:
        """Requires half precision and a head width of at most 128."""
        return _half_on_nvidia(target, shape, capability=80, head_dim=128)


class SdpaEfficient(SdpaKernel):
    """PyTorch's memory-efficient kernel: every GPU, any dtype."""

    kernel = SDPBackend.EFFICIENT_ATTENTION

    def unsupported_reason(self, target: AttentionTarget, shape: AttentionShape) -> str:
        """Requires a GPU."""
        return "it runs on GPUs only" if target.vendor == "cpu" else ""


class SdpaAotriton(SdpaKernel):
    """AOTriton, which implements PyTorch's flash kernel on ROCm.

    Which architectures it supports, and for which it wants AOTRITON_EXPERIMENTAL to be set, depends on its version: a trial
    asks torch, whose warning becomes the reason.
    """

    kernel = SDPBackend.FLASH_ATTENTION

    def unsupported_reason(self, target: AttentionTarget, shape: AttentionShape) -> str:
        """Requires ROCm and half precision."""
        if target.vendor != "amd":
            return "it runs on ROCm only"
        return "" if target.dtype in HALF else _needs_half(target)


class SdpaMath(SdpaKernel):
    """PyTorch's unfused softmax."""

    kernel = SDPBackend.MATH

    def unsupported_reason(self, target: AttentionTarget, shape: AttentionShape) -> str:
        """Requires memory for the scores and their softmax, which exist at the same time, beside the resident model."""
        needed = 2 * shape.score_bytes
        if needed <= min(target.memory_bytes // 2, target.memory_bytes - target.model_bytes):
            return ""
        beside = f" beside the model's {target.model_bytes / 1e9:.0f} GB" if target.model_bytes else ""
        return f"its scores need {needed / 1e9:.0f} GB of the device's {target.memory_bytes / 1e9:.0f} GB{beside}"


class FlashAttn2(Backend):
    """FlashAttention-2 from the package flash-attn: NVIDIA from sm80, and ROCm through CK or Triton."""

    package = "flash_attn"
    module = "flash_attn"

    def unsupported_reason(self, target: AttentionTarget, shape: AttentionShape) -> str:
        """Requires a GPU and half precision."""
        if target.vendor == "amd":
            return "" if target.dtype in HALF else _needs_half(target)
        return _half_on_nvidia(target, shape, capability=80, head_dim=256)

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Compute attention; shapes as in `attention`."""
        return self._import().flash_attn_func(q, k, v)


class FlashAttn3(Backend):
    """FlashAttention-3, built for Hopper (sm90). On other devices its import may succeed but select another kernel."""

    package = "flash_attn_3"
    module = "flash_attn_interface"

    def unsupported_reason(self, target: AttentionTarget, shape: AttentionShape) -> str:
        """Requires half precision on sm90."""
        reason = _half_on_nvidia(target, shape, capability=90, head_dim=256)
        return reason or ("" if target.capability < 100 else f"it is built for sm90, not {target.architecture}")

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Compute attention; shapes as in `attention`."""
        out = self._import().flash_attn_func(q, k, v)
        return out[0] if isinstance(out, tuple) else out  # older versions also return the log-sum-exp


class FlashAttn3Fp8(FlashAttn3):
    """FlashAttention-3 on 8-bit floats, with one scale for each head of queries, keys and values."""

    exact = False

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Compute attention; shapes as in `attention`."""
        (q8, q_scale), (k8, k_scale), (v8, v_scale) = map(_scaled_heads, (q, k, v))
        out = self._import().flash_attn_func(q8, k8, v8, q_descale=q_scale, k_descale=k_scale, v_descale=v_scale)
        return (out[0] if isinstance(out, tuple) else out).to(q.dtype)


class Aiter(Backend):
    """AITER's attention, in CK and assembly. Which architectures and lengths it has kernels for, a trial tells.

    A version that compiles its kernels at their first use may take longer than a trial waits: compile them before.
    """

    package = "amd-aiter"
    module = "aiter"

    def unsupported_reason(self, target: AttentionTarget, shape: AttentionShape) -> str:
        """Requires ROCm and half precision."""
        if target.vendor != "amd":
            return "it runs on ROCm only"
        return "" if target.dtype in HALF else _needs_half(target)

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Compute attention; shapes as in `attention`."""
        out = self._import().flash_attn_func(q, k, v)
        return out[0] if isinstance(out, tuple) else out  # some versions also return the log-sum-exp


class Sage(Backend):
    """SageAttention: queries and keys quantized to 8 bits."""

    exact = False
    package = "sageattention"
    module = "sageattention"
    _CAPABILITIES = frozenset({80, 86, 89, 90, 120})

    def unsupported_reason(self, target: AttentionTarget, shape: AttentionShape) -> str:
        """Requires half precision and one of the architectures that it has kernels for."""
        reason = _half_on_nvidia(target, shape, capability=80, head_dim=128)
        if not reason and target.capability not in self._CAPABILITIES:
            return f"it has no kernel for {target.architecture}"
        return reason

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Compute attention; shapes as in `attention`."""
        return self._import().sageattn(q, k, v, tensor_layout="NHD", is_causal=False)


BACKENDS: dict[AttentionBackend, Backend] = {
    AttentionBackend.FLASH_ATTN_3: FlashAttn3(),
    AttentionBackend.FLASH_ATTN_2: FlashAttn2(),
    AttentionBackend.AITER: Aiter(),
    AttentionBackend.SAGE: Sage(),
    AttentionBackend.FLASH_ATTN_3_FP8: FlashAttn3Fp8(),
    AttentionBackend.SDPA: SdpaDefault(),
    AttentionBackend.SDPA_FLASH: SdpaFlash(),
    AttentionBackend.SDPA_CUDNN: SdpaCudnn(),
    AttentionBackend.SDPA_EFFICIENT: SdpaEfficient(),
    AttentionBackend.SDPA_AOTRITON: SdpaAotriton(),
    AttentionBackend.SDPA_MATH: SdpaMath(),
}
"""Every backend that can run. `auto` is not among them: it selects one of them."""


def selected_kernel(target: AttentionTarget, shape: AttentionShape) -> AttentionBackend:
    """The kernel that PyTorch selects for a `scaled_dot_product_attention` call of this shape."""
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


def _scaled_heads(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [B, L, H, D] in 8-bit floats, each head scaled to use their range, and the scales [B, H] in float32."""
    scales = torch.linalg.vector_norm(x, ord=torch.inf, dim=(1, 3), dtype=torch.float32).clamp_min(1e-12)
    scales = (scales / torch.finfo(_FP8).max).to(x.dtype)
    return (x / scales[:, None, :, None]).to(_FP8), scales.float()


def _half_on_nvidia(target: AttentionTarget, shape: AttentionShape, *, capability: int, head_dim: int) -> str:
    if target.vendor != "nvidia":
        return "it runs on NVIDIA GPUs only"
    if target.capability < capability:
        return f"it requires sm{capability} or newer, not {target.architecture}"
    if target.dtype not in HALF:
        return _needs_half(target)
    if shape.head_dim > head_dim or shape.head_dim % 8:
        return f"it supports head widths up to {head_dim} in multiples of 8, not {shape.head_dim}"
    return ""


def _needs_half(target: AttentionTarget) -> str:
    return f"it requires half precision, not {str(target.dtype).removeprefix('torch.')}"

"""One backend on one shape: how long a call takes, and how far it is from a float32 reference."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ovi.attention.backends import BACKENDS, Backend, reference_attention
from ovi.attention.target import AttentionTarget
from ovi.attention.types import AttentionBackend, AttentionShape

EXACT_ERROR = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Root mean square error, relative to the output's, that rounding in a dtype explains with room to spare."""
INEXACT_ERROR = 0.1  # beyond it, not even a backend that quantizes computes attention
_SAMPLE = 64  # queries that are checked: each row of attention is independent of the others
_BUDGET_S = 0.3  # of timed calls
_CALLS = 10


@dataclass(kw_only=True, slots=True, frozen=True)
class Trial:
    """What became of one backend on one shape."""

    backend: AttentionBackend
    seconds: float | None = None
    """Of one call; None when it is out."""
    error: float | None = None
    """Relative root mean square error against the reference; None when it never ran."""
    reason: str = ""
    """Why it is out; empty when it is not."""


@torch.inference_mode()
def measure(name: AttentionBackend, target: AttentionTarget, shape: AttentionShape) -> Trial:
    """Check and time a backend in this process. Never raises: what goes wrong is the trial's reason."""
    backend = BACKENDS[name]
    if reason := backend.why_not(target, shape):
        return Trial(backend=name, reason=reason)
    try:
        inputs = _inputs(target, shape)
        error = _error(backend, *inputs)
        allowed = EXACT_ERROR[target.dtype] if backend.exact else INEXACT_ERROR
        if not error <= allowed:  # NaN is out too
            reason = f"it disagrees with the float32 reference: error {error:.2g}, allowed {allowed:.0e}"
            return Trial(backend=name, error=error, reason=reason)
        return Trial(backend=name, seconds=_seconds(backend, *inputs), error=error)
    except Exception as failure:  # kernels raise what they like
        return Trial(backend=name, reason=f"{type(failure).__name__}: {str(failure).splitlines()[0]}")


def _inputs(target: AttentionTarget, shape: AttentionShape) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v of a unit normal, the same on every device."""
    generator = torch.Generator().manual_seed(0)
    lengths = (shape.query_length, shape.key_length, shape.key_length)
    q, k, v = (
        torch.randn(1, length, shape.num_heads, shape.head_dim, generator=generator).to(target.device, target.dtype)
        for length in lengths
    )
    return q, k, v


def _error(backend: Backend, q: Tensor, k: Tensor, v: Tensor) -> float:
    step = -(-q.shape[1] // _SAMPLE)
    expected = reference_attention(q[:, ::step], k, v)
    difference = backend.run(q, k, v)[:, ::step].float() - expected
    return float(difference.square().mean().sqrt() / expected.square().mean().sqrt())


def _seconds(backend: Backend, q: Tensor, k: Tensor, v: Tensor) -> float:
    """The fastest of a few calls: whatever disturbs a call makes it slower, never faster. `_error` has warmed it up."""
    best, spent, calls = float("inf"), 0.0, 0
    while calls < _CALLS and (not calls or spent < _BUDGET_S):
        _synchronize(q.device)
        started = time.perf_counter()
        backend.run(q, k, v)
        _synchronize(q.device)
        elapsed = time.perf_counter() - started
        best, spent, calls = min(best, elapsed), spent + elapsed, calls + 1
    return best


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""Benchmark of one backend on one shape: seconds per call, and the error against a float32 reference."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ovi.attention.backends import BACKENDS, Backend, reference_attention
from ovi.attention.target import AttentionTarget
from ovi.attention.types import AttentionBackend, AttentionShape

EXACT_ERROR = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Allowed root-mean-square error of exact backends, relative to the output's; well above the dtype's rounding error."""
INEXACT_ERROR = 0.1  # allowed error of backends that quantize; a larger one means that the result is wrong
_SAMPLE = 64  # queries that are checked; each row of attention is independent of the others
_BUDGET_S = 0.3  # seconds after which no further call is timed
_CALLS = 10  # maximum number of timed calls


@dataclass(kw_only=True, slots=True, frozen=True)
class Trial:
    """Result of benchmarking one backend on one shape."""

    backend: AttentionBackend
    seconds: float | None = None
    """Seconds per call; None if the backend is unusable."""
    error: float | None = None
    """Relative root-mean-square error against the reference; None if the backend did not run."""
    reason: str = ""
    """Why the backend is unusable; empty if it is usable."""


@torch.inference_mode()
def measure(name: AttentionBackend, target: AttentionTarget, shape: AttentionShape) -> Trial:
    """Check and time a backend in this process. Never raises: any failure becomes the trial's reason."""
    backend = BACKENDS[name]
    if reason := backend.unavailable_reason(target, shape):
        return Trial(backend=name, reason=reason)
    try:
        inputs = _inputs(target, shape)
        error = _error(backend, *inputs)
        allowed = EXACT_ERROR[target.dtype] if backend.exact else INEXACT_ERROR
        if not error <= allowed:  # also rejects NaN
            reason = f"it deviates from the float32 reference: error {error:.2g}, allowed {allowed:.0e}"
            return Trial(backend=name, error=error, reason=reason)
        return Trial(backend=name, seconds=_seconds(backend, *inputs), error=error)
    except Exception as failure:  # kernels may raise anything
        return Trial(backend=name, reason=f"{type(failure).__name__}: {str(failure).splitlines()[0]}")


def _inputs(target: AttentionTarget, shape: AttentionShape) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v drawn from a unit normal, identical on every device."""
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
    """Seconds of the fastest of several calls, as disturbances only slow calls down. `_error` did the warm-up."""
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

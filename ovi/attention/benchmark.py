"""Benchmark of one backend on one shape: seconds per call, and the error against a float32 reference."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ovi.attention.backends import BACKENDS, Backend, reference_attention
from ovi.attention.target import AttentionTarget
from ovi.attention.types import AttentionBackend, AttentionShape
from ovi.device_errors import device_failed, may_pass
from ovi.precision import full_float32
from ovi.timing import seconds_per_call

EXACT_ERROR = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Allowed root-mean-square error of exact backends, relative to the output's; well above the dtype's rounding error."""
INEXACT_ERROR = 0.1  # allowed error of backends that quantize; a larger one means that the result is wrong
_SPREAD = 48  # queries that are checked all over the sequence; each row of attention is independent of the others
_TAIL = 16  # last queries that are checked: kernels go wrong where the length is no multiple of their blocks


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
    transient: bool = False
    """Whether it may be usable another time: it ran out of memory, hung or crashed, or the GPU was taken."""
    spoilt: bool = False
    """Whether the process that it ran in cannot use the GPU any more."""


@torch.inference_mode()
def measure(name: AttentionBackend, target: AttentionTarget, shape: AttentionShape) -> Trial:
    """Check and time a backend in this process. Never raises: any failure becomes the trial's reason."""
    backend = BACKENDS[name]
    if reason := backend.unavailable_reason(target, shape):
        return Trial(backend=name, reason=reason)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            return _measured(name, backend, target, shape)
        except Exception as failure:  # kernels may raise anything
            reason = _in_one_line(failure, [str(warning.message) for warning in told])
            transient, spoilt = may_pass(failure), device_failed(failure)
    return Trial(backend=name, reason=reason, transient=transient, spoilt=spoilt)


def _measured(name: AttentionBackend, backend: Backend, target: AttentionTarget, shape: AttentionShape) -> Trial:
    q, k, v = _inputs(target, shape)
    out = backend.run(q, k, v)
    error = _error(out, q, k, v)
    if wrong := int((~torch.isfinite(out)).sum()):
        return Trial(backend=name, error=error, reason=f"{wrong} of its {out.numel()} results are not finite numbers")
    allowed = EXACT_ERROR[target.dtype] if backend.exact else INEXACT_ERROR
    if not error <= allowed:  # also rejects NaN
        reason = f"it deviates from the float32 reference: error {error:.2g}, allowed {allowed:.0e}"
        return Trial(backend=name, error=error, reason=reason)
    return Trial(backend=name, seconds=seconds_per_call(lambda: backend.run(q, k, v), q.device), error=error)


def _in_one_line(failure: Exception, warned: Sequence[str]) -> str:
    """The first line of an error, with what torch warned of before it: why each of its kernels refuses a call."""
    first = next(iter(str(failure).splitlines()), "")
    causes = dict.fromkeys(message.split(" (Triggered internally", 1)[0].strip() for message in warned)
    return "; ".join([f"{type(failure).__name__}: {first}", *causes])


def _inputs(target: AttentionTarget, shape: AttentionShape) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v drawn from a unit normal on the device, where that takes no time."""
    generator = torch.Generator(target.device).manual_seed(0)
    lengths = (shape.query_length, shape.key_length, shape.key_length)
    q, k, v = (
        torch.randn(
            (1, length, shape.num_heads, shape.head_dim), generator=generator, device=target.device, dtype=target.dtype
        )
        for length in lengths
    )
    return q, k, v


@full_float32()
def _error(out: Tensor, q: Tensor, k: Tensor, v: Tensor) -> float:
    rows = _checked_rows(q.shape[1])
    expected = reference_attention(q[:, rows], k, v)
    difference = out[:, rows].float() - expected
    return float(difference.square().mean().sqrt() / expected.square().mean().sqrt())


def _checked_rows(length: int) -> list[int]:
    """The queries whose results are checked: some all over the sequence, and its last ones."""
    spread = range(0, length, -(-length // _SPREAD))
    return sorted({*spread, *range(max(0, length - _TAIL), length)})

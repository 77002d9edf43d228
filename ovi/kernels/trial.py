"""Trials of fused kernels: their results and their seconds beside those of plain torch, on a device.

python -m ovi.kernels.trial REQUEST    # JSON: {"kernels": [...], "device": "cuda", "dtype": "bfloat16", "shape": {...}}
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovi.config import Architecture
from ovi.device_errors import may_pass
from ovi.kernels import operations
from ovi.kernels.types import EAGER_PLAN, FusedKernel, KernelPlan
from ovi.precision import full_float32
from ovi.timing import seconds_per_call
from ovi.trials import Child, ChildFailed, private_output

TIMEOUT_S = 120.0  # most of it for Triton to compile
ALLOWED_ERROR = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 5e-4}
"""Allowed root-mean-square difference from plain torch, relative to its results: a rounding or two of each number."""
_EPS = 1e-6  # of every norm of the model
_TOKENS = 4099  # enough to keep a GPU busy
_FRAMES, _ROWS = 4, 16  # of the decoder, with rows of as many pixels as there are tokens
_ROUNDS = 3  # of both ways in turn, so that another process on the GPU slows neither alone
_ROUND_S = 0.1
_COMMAND = (sys.executable, "-m", "ovi.kernels.trial")

_LAYOUTS = (torch.clone, operations.with_channels_last)

Case = Callable[[KernelPlan], Tensor | tuple[Tensor, ...]]
"""An operation on fixed inputs, computed as a plan says."""


@dataclass(kw_only=True, slots=True, frozen=True)
class KernelShape:
    """Sizes of a backbone's block and of the video decoder, and the tokens of a trial."""

    tokens: int
    dim: int
    num_heads: int
    ffn_dim: int
    channels: int
    """Of the decoder's largest frames."""

    @classmethod
    def of(cls, arch: Architecture) -> "KernelShape":
        """The shape for an architecture; one number of tokens stands for all others."""
        return cls(
            tokens=_TOKENS,
            dim=arch.video.dim,
            num_heads=arch.video.num_heads,
            ffn_dim=arch.video.ffn_dim,
            channels=arch.video_vae.dec_dim,
        )


@dataclass(kw_only=True, slots=True, frozen=True)
class KernelTrial:
    """Result of trying a kernel."""

    kernel: FusedKernel
    seconds: float | None = None
    """Seconds of all the operations that it stands for, once each; None if it did not run, or is wrong."""
    eager_seconds: float | None = None
    """The same in plain torch."""
    error: float | None = None
    """The largest relative root-mean-square difference from plain torch; None if it did not run."""
    reason: str = ""
    """Why it is not used; empty if it is right and faster."""
    transient: bool = False
    """Whether it may be usable another time."""


@torch.inference_mode()
@full_float32()
def measure(kernel: FusedKernel, device: str, dtype: torch.dtype, shape: KernelShape) -> KernelTrial:
    """Check and time a kernel in this process. Never raises: any failure becomes the trial's reason."""
    try:
        return _measured(kernel, torch.device(device), dtype, shape)
    except Exception as failure:  # Triton may be absent, and may raise anything where it compiles
        first = next(iter(str(failure).splitlines()), "")
        return KernelTrial(kernel=kernel, reason=f"{type(failure).__name__}: {first}", transient=may_pass(failure))


def measure_in_child(
    kernels: Sequence[FusedKernel],
    device: str,
    dtype: torch.dtype,
    shape: KernelShape,
    *,
    timeout_s: float = TIMEOUT_S,
    command: Sequence[str] = _COMMAND,
) -> list[KernelTrial]:
    """As `measure` for each kernel, in a process of their own: a kernel may hang or crash, and the rest have another then."""
    trials: list[KernelTrial] = []
    while rest := kernels[len(trials) :]:
        request = {
            "kernels": list(rest),
            "device": device,
            "dtype": str(dtype).removeprefix("torch."),
            "shape": dataclasses.asdict(shape),
        }
        trials += _in_one_process(rest, [*command, json.dumps(request)], timeout_s)
    return trials


def _in_one_process(kernels: Sequence[FusedKernel], command: Sequence[str], timeout_s: float) -> Iterator[KernelTrial]:
    """The trials up to and including the first kernel that hangs or crashes."""
    child = Child(command)
    try:
        for kernel in kernels:
            yield child.answer(partial(_trial, kernel=kernel), timeout_s)
    except ChildFailed as failure:
        yield KernelTrial(kernel=kernel, reason=str(failure), transient=True)
    finally:
        child.end()


@torch.inference_mode()
@full_float32()
def deviation(kernel: FusedKernel, device: str, dtype: torch.dtype, shape: KernelShape) -> float:
    """The largest relative root-mean-square difference of a kernel's results from plain torch's; NaN if one is not finite."""
    return _largest_error(_cases(kernel, torch.device(device), dtype, shape), KernelPlan.of([kernel]))


def answer(request: Mapping[str, Any], out: IO[str]) -> None:
    """Measure what a request of `measure_in_child` asks for, and write each trial as a line."""
    dtype, shape = getattr(torch, request["dtype"]), KernelShape(**request["shape"])
    for kernel in request["kernels"]:
        trial = measure(FusedKernel(kernel), request["device"], dtype, shape)
        out.write(json.dumps(dataclasses.asdict(trial)) + "\n")
        out.flush()


def _largest_error(cases: Sequence[Case], plan: KernelPlan) -> float:
    return float(torch.stack([_error(case(plan), case(EAGER_PLAN)) for case in cases]).max())


def _measured(kernel: FusedKernel, device: torch.device, dtype: torch.dtype, shape: KernelShape) -> KernelTrial:
    cases, plan = _cases(kernel, device, dtype, shape), KernelPlan.of([kernel])
    error = _largest_error(cases, plan)
    if not error <= (allowed := ALLOWED_ERROR[dtype]):  # also rejects NaN
        reason = f"it deviates from plain torch: error {error:.2g}, allowed {allowed:.0e}"
        return KernelTrial(kernel=kernel, error=error, reason=reason)
    fused, eager = map(sum, zip(*(_seconds(case, plan, device) for case in cases), strict=True))
    reason = "" if fused < eager else f"it is not faster: {1000 * fused:.3g} ms, plain torch {1000 * eager:.3g} ms"
    return KernelTrial(kernel=kernel, seconds=fused, eager_seconds=eager, error=error, reason=reason)


def _seconds(case: Case, plan: KernelPlan, device: torch.device) -> tuple[float, float]:
    """Seconds with the kernels of the plan, and in plain torch."""
    ways = partial(case, plan), partial(case, EAGER_PLAN)
    rounds = [[seconds_per_call(way, device, budget_s=_ROUND_S) for way in ways] for _ in range(_ROUNDS)]
    fused, eager = map(min, zip(*rounds, strict=True))
    return fused, eager


def _cases(kernel: FusedKernel, device: torch.device, dtype: torch.dtype, shape: KernelShape) -> list[Case]:
    """Every operation that the kernel stands for, on tokens with a clean first frame: two spans."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(*size: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(size, generator=generator, device=device, dtype=dtype)

    x, update = 3 * draw(1, shape.tokens, shape.dim) + 1, draw(1, shape.tokens, shape.dim)
    match kernel:
        case FusedKernel.RESIDUAL_NORM:
            return _residual_norm_cases(x, update, draw(2, 3, shape.dim), draw(2, shape.dim))
        case FusedKernel.NORM_ROTATE:
            pairs = shape.dim // shape.num_heads // 2
            rotation = nn.functional.normalize(draw(shape.tokens, 1, pairs, 2, dtype=torch.float32), dim=-1)
            return _norm_rotate_cases(x, draw(shape.dim), rotation)
        case FusedKernel.LINEAR_GELU:
            linear = nn.Linear(shape.dim, shape.ffn_dim, device=device, dtype=dtype)
            linear.weight.copy_(draw(shape.ffn_dim, shape.dim) * shape.dim**-0.5)
            linear.bias.copy_(draw(shape.ffn_dim))
            return [lambda plan: operations.linear_gelu(update, linear, kernels=plan)]
        case FusedKernel.CHANNELS_LAST:
            window = draw(1, shape.channels, _FRAMES + 2, _ROWS, shape.tokens)
            weight = draw(shape.channels, shape.channels, 3, 3, 3) * (27 * shape.channels) ** -0.5
            return [_channels_last_case(window, weight)]
        case FusedKernel.NORM_SILU:
            frames, gamma = draw(1, shape.channels, _FRAMES, _ROWS, shape.tokens), draw(shape.channels, 1, 1, 1)
            window = frames.new_empty(1, shape.channels, _FRAMES + 2, _ROWS, shape.tokens)
            return [partial(_norm_silu, as_is(frames), gamma, as_is(window)[:, :, 2:]) for as_is in _LAYOUTS]


def _channels_last_case(window: Tensor, weight: Tensor) -> Case:
    by_channel = partial(F.conv3d, window, weight, padding=(0, 1, 1))
    by_pixel = partial(F.conv3d, *map(operations.with_channels_last, (window, weight)), padding=(0, 1, 1))
    return lambda plan: by_pixel() if plan.channels_last else by_channel()


def _residual_norm_cases(x: Tensor, update: Tensor, modulation: Tensor, affine: Tensor) -> list[Case]:
    """Modulation [2, 3, C] with the strides that it has in the model, and weight and bias as [2, C]."""
    (shift, scale, gates), spans = modulation.unbind(1), (x.shape[1] // 3, x.shape[1] - x.shape[1] // 3)
    norm = nn.LayerNorm(x.shape[-1], eps=_EPS, device=x.device, dtype=x.dtype)
    norm.weight.copy_(affine[0])
    norm.bias.copy_(affine[1])
    eps = norm.eps
    return [
        lambda plan: operations.norm_modulate(x, shift=shift, scale=scale, spans=spans, eps=eps, kernels=plan),
        lambda plan: operations.gate_norm(x, update, gates=gates, spans=spans, norm=norm, kernels=plan),
        lambda plan: operations.add_norm_modulate(
            x, update, shift=shift, scale=scale, spans=spans, eps=eps, kernels=plan
        ),
        lambda plan: operations.gate(x, update, gates=gates, spans=spans, kernels=plan),
    ]


def _norm_rotate_cases(x: Tensor, weight: Tensor, rotation: Tensor) -> list[Case]:
    rotate = partial(operations.norm_rotate, x, weight=weight, rotation=rotation, eps=_EPS)
    norm_and_rotate = partial(operations.norm_and_rotate, x, weight=weight, rotation=rotation, eps=_EPS)
    return [lambda plan: rotate(kernels=plan), lambda plan: norm_and_rotate(kernels=plan)]


def _norm_silu(x: Tensor, gamma: Tensor, out: Tensor, plan: KernelPlan) -> Tensor:
    out = out if plan.norm_silu else torch.empty_like(x)
    operations.norm_silu_(x, gamma, out, kernels=plan)
    return out


def _error(found: Tensor | tuple[Tensor, ...], expected: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The largest error of a result; NaN where one is not finite."""
    pairs = zip(_each(found), _each(expected), strict=True)
    errors = torch.stack([(a.float() - b.float()).square().mean() / b.float().square().mean() for a, b in pairs])
    return errors.sqrt().max()


def _each(results: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)


def _trial(line: str, kernel: FusedKernel) -> KernelTrial | None:
    try:
        found = json.loads(line)
        return KernelTrial(**{**found, "kernel": kernel}) if found["kernel"] == kernel else None
    except (ValueError, TypeError, LookupError):
        return None


if __name__ == "__main__":
    answer(json.loads(sys.argv[1]), private_output())

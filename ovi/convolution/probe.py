"""A trial of a way to run convolutions: seconds, and the error against float32 on the CPU, on shapes of the decoders.

python -m ovi.convolution.probe REQUEST    # JSON: {"device": "cuda", "path": "default", "shapes": [...]}
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ovi.config import Architecture, ModelSpec
from ovi.convolution.paths import ConvolutionPath, convolving
from ovi.device_errors import may_pass
from ovi.geometry import snap_size
from ovi.precision import full_float32
from ovi.timing import seconds_per_call
from ovi.trials import ChildFailed, ask_child, private_output

TIMEOUT_S = 300.0  # MIOpen may search for minutes
ALLOWED_ERROR = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 5e-3}
"""Allowed root-mean-square error, relative to the output's."""
_CROP = 8  # outputs along each side of the places that are checked
_CALLS = 3
_COMMAND = (sys.executable, "-m", "ovi.convolution.probe")
_AUDIO_KERNEL = 11
_CHUNK_FRAMES = 4
_MEMORY_FRAMES = 2


@dataclass(kw_only=True, slots=True, frozen=True)
class ConvolutionShape:
    """One convolution without stride, bias or groups."""

    input: tuple[int, ...]
    """[1, in, ...], with one, or three, further dimensions."""
    weight: tuple[int, ...]
    """[out, in, ...]."""
    padding: tuple[int, ...]
    dtype: str
    """Torch's name, such as "bfloat16"."""


@dataclass(kw_only=True, slots=True, frozen=True)
class ConvolutionTrial:
    """Result of trying one way on all shapes."""

    path: ConvolutionPath
    seconds: float | None = None
    """Seconds of one call for each shape; None if the way is unusable."""
    error: float | None = None
    """The largest relative root-mean-square error; None if it did not run."""
    reason: str = ""
    """Why the way is unusable; empty if it is usable."""
    transient: bool = False
    """Whether it may be usable another time."""


def decoder_shapes(arch: Architecture, spec: ModelSpec, dtype: torch.dtype) -> tuple[ConvolutionShape, ...]:
    """The largest convolution of the video decoder for a square clip, and a wide one of the vocoder, which is in float32."""
    height, width = snap_size(1, 1, spec.video_area)
    video, audio = arch.video_vae.dec_dim, arch.vocoder.upsample_initial_channel // 2
    return (
        ConvolutionShape(
            input=(1, video, _CHUNK_FRAMES + _MEMORY_FRAMES, height // 2, width // 2),
            weight=(video, video, _MEMORY_FRAMES + 1, 3, 3),
            padding=(0, 1, 1),
            dtype=str(dtype).removeprefix("torch."),
        ),
        ConvolutionShape(
            input=(1, audio, 8 * spec.audio_latent_length),
            weight=(audio, audio, _AUDIO_KERNEL),
            padding=(_AUDIO_KERNEL // 2,),
            dtype="float32",
        ),
    )


@torch.inference_mode()
def measure(path: ConvolutionPath, device: str, shapes: Sequence[ConvolutionShape]) -> ConvolutionTrial:
    """Check and time a way in this process. Never raises: any failure becomes the trial's reason."""
    seconds, largest = 0.0, 0.0
    try:
        for shape in shapes:
            x, weight = _inputs(shape, device)
            with full_float32(), convolving(path):
                out = _convolve(x, weight, shape.padding)
                error, allowed = _error(out, x, weight, shape.padding), ALLOWED_ERROR[shape.dtype]
                largest = max(largest, error)
                finite = bool(torch.isfinite(out).all())
                if not (finite and error <= allowed):
                    wrong = f"error {error:.2g}, allowed {allowed:.0e}" if finite else "numbers that are not finite"
                    dims = len(shape.padding)
                    reason = f"its {dims}-D convolution in {shape.dtype} is wrong: {wrong}"
                    return ConvolutionTrial(path=path, error=error, reason=reason)
                seconds += _seconds(x, weight, shape.padding)
    except Exception as failure:  # kernels may raise anything
        first = next(iter(str(failure).splitlines()), "")
        return ConvolutionTrial(path=path, reason=f"{type(failure).__name__}: {first}", transient=may_pass(failure))
    return ConvolutionTrial(path=path, seconds=seconds, error=largest)


def measure_in_child(
    path: ConvolutionPath,
    device: str,
    shapes: Sequence[ConvolutionShape],
    *,
    timeout_s: float = TIMEOUT_S,
    command: Sequence[str] = _COMMAND,
) -> ConvolutionTrial:
    """As `measure`, in a process of its own: kernels may hang or crash."""
    request = {"device": device, "path": path, "shapes": [dataclasses.asdict(shape) for shape in shapes]}
    try:
        return ask_child(command, request, lambda line: _trial(line, path), timeout_s)
    except ChildFailed as failure:
        return ConvolutionTrial(path=path, reason=str(failure), transient=True)


def _trial(line: str, path: ConvolutionPath) -> ConvolutionTrial | None:
    try:
        answer = json.loads(line)
        return ConvolutionTrial(**{**answer, "path": path}) if answer["path"] == path else None
    except (ValueError, TypeError, LookupError):
        return None


def _inputs(shape: ConvolutionShape, device: str) -> tuple[Tensor, Tensor]:
    """Unit normal input, and weights that keep its scale."""
    generator, dtype = torch.Generator(device).manual_seed(0), getattr(torch, shape.dtype)
    x = torch.randn(shape.input, generator=generator, device=device, dtype=dtype)
    weight = torch.randn(shape.weight, generator=generator, device=device, dtype=dtype)
    return x, weight * weight[0].numel() ** -0.5


def _convolve(x: Tensor, weight: Tensor, padding: tuple[int, ...]) -> Tensor:
    return torch.conv3d(x, weight, None, 1, padding) if len(padding) == 3 else torch.conv1d(x, weight, None, 1, padding)


def _error(out: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, ...]) -> float:
    """The largest error of a part at the start, in the middle and at the end of every padded side; all of the others."""
    kernel = weight.cpu().float()
    errors = []
    for place in ("start", "middle", "end"):
        got, seen = out, x
        for side, pad in enumerate(padding):
            if pad:
                got, seen = _part(got, seen, dim=side - len(padding), pad=pad, place=place)
        expected = _convolve(seen.cpu().float(), kernel, (0,) * len(padding))
        difference = got.cpu().float() - expected
        errors.append(float(difference.square().mean().sqrt() / expected.square().mean().sqrt()))
    return max(errors)


def _part(out: Tensor, x: Tensor, *, dim: int, pad: int, place: str) -> tuple[Tensor, Tensor]:
    """Some outputs along a side, and the inputs that they are computed from, padded where they are at the edge."""
    length = out.shape[dim]
    count = min(_CROP, length)
    first = {"start": 0, "middle": (length - count) // 2, "end": length - count}[place]
    low, high = first - pad, first + count + pad
    seen = x.narrow(dim, max(0, low), min(length, high) - max(0, low))
    widths = [0, 0] * (-dim - 1) + [max(0, -low), max(0, high - length)]  # from the last dimension on
    return out.narrow(dim, first, count), F.pad(seen, widths)


def _seconds(x: Tensor, weight: Tensor, padding: tuple[int, ...]) -> float:
    return seconds_per_call(lambda: _convolve(x, weight, padding), x.device, max_calls=_CALLS)


def _answer(request: dict[str, Any], out: IO[str]) -> None:
    shapes = [
        ConvolutionShape(**{name: _as_tuple(value) for name, value in each.items()}) for each in request["shapes"]
    ]
    out.write(
        json.dumps(dataclasses.asdict(measure(ConvolutionPath(request["path"]), request["device"], shapes))) + "\n"
    )
    out.flush()


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


if __name__ == "__main__":
    _answer(json.loads(sys.argv[1]), private_output())

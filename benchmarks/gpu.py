"""Measurements of the model at full size on a GPU: a step, a decode, their memory against the plan, each backend, and a job.

The weights are random, so no checkpoint is needed. A step is timed in plain eager torch, with the attention that was chosen by
trying, with the fused kernels too, with 8-bit feed-forward products, with compiled blocks, and with blocks streamed from the
host, side by side in one run and by class of kernel. The job is a small one with the small built-in model: it shows how long
the GPU waits between tasks. What fails is named with its reason, and the rest is measured. Without a GPU, nothing is measured.

    python benchmarks/gpu.py                                # the first GPU: ten minutes or more
    python benchmarks/gpu.py --sizes 720x720_5s --json
    python benchmarks/gpu.py --parts steps --paths chosen fused
    python benchmarks/gpu.py --device cpu --model tiny      # whether it runs, not how fast
"""

import argparse
import copy
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from ovi.attention import AttentionBackend, AttentionPlan, Site
from ovi.attention.autotune import choose
from ovi.attention.target import AttentionTarget
from ovi.attention.types import attention_shapes
from ovi.config import MODEL_SPECS, Architecture, ModelSpec
from ovi.convolution.choice import choose_path
from ovi.convolution.paths import ConvolutionPath, convolving
from ovi.convolution.probe import decoder_shapes
from ovi.errors import ShortcutUnavailable
from ovi.geometry import latent_grid, snap_size
from ovi.kernels import KernelMode, KernelPlan
from ovi.kernels.choice import choose_kernels
from ovi.kernels.trial import KernelShape
from ovi.kernels.types import EAGER_PLAN
from ovi.memory.plan import activations
from ovi.models.feed_forward import fp8_products
from ovi.models.fusion import FusionTransformer
from ovi.models.video_vae import VideoVAE
from ovi.sampling.guidance import Guidance, PassNumerics, StepPasses, embed_texts
from ovi.stages import Stage
from ovi.timing import seconds_per_call
from ovi.types import PromptEmbeds
from ovi.weights.quantization import streamed_bytes
from ovi.weights.tiny import tiny_architecture, write_tiny_checkpoint
from ovi_ray.devices.probe import GB, TorchEdge, faults_of_versions, probe

PARTS = ("steps", "decodes", "job")
PATHS = ("eager", "chosen", "fused", "fp8", "compiled", "streamed")  # the last one takes the weights off the device
DTYPE = torch.bfloat16
TEXT_ROWS, NEGATIVE_ROWS = 150, 12
STEP_CALLS = 3
JOB_CLIPS = 6
CLASSES = {
    "attention": ("attention", "fmha", "flash", "sdpa", "attn"),
    "convolutions": ("conv", "winograd", "miopen", "im2col", "vol2col", "fprop", "dgrad", "cudnn"),
    "products": ("gemm", "cutlass", "nvjet", "cijk", "addmm", "::mm", "::bmm", "matmul", "wgmma"),
    "copies": ("memcpy", "memset", "copy", "::cat", "catarray"),
}
"""Words in the names of kernels, by class; the first class that has one counts. All others are elementwise, as are those that a
compiler made, whose names tell what they were fused from."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Measured:
    """Seconds and memory of a part of a clip in one way of computing it."""

    size: str
    part: str
    path: str
    """Path of computation: a name of PATHS, or a convolution mode, with the fused kernels or without."""
    seconds: float | None = None
    """None if it failed."""
    kernel_seconds: Mapping[str, float] = field(default_factory=dict)
    """By class of kernel."""
    peak_gb: float | None = None
    """Measured, with the part's own weights; None on a CPU."""
    planned_gb: float
    reason: str = ""
    """Why it failed; empty if it did not."""


def kernel_class(name: str) -> str:
    """The class of a kernel, or of a CPU's operation, by its name."""
    lower = name.lower()
    if lower.startswith("triton_"):
        return "elementwise"
    return next((kind for kind, words in CLASSES.items() if any(word in lower for word in words)), "elementwise")


def kernel_seconds(work: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Seconds of one call by class of kernel."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiled:
        work()
    totals = dict.fromkeys([*CLASSES, "elementwise"], 0.0)
    for event in profiled.key_averages():
        if device.type == "cuda" and event.device_type.name == "CUDA":
            totals[kernel_class(event.key)] += event.self_device_time_total / 1e6
        elif device.type != "cuda":
            totals[kernel_class(event.key)] += event.self_cpu_time_total / 1e6
    return {kind: round(seconds, 4) for kind, seconds in totals.items()}


def random_weights(module: nn.Module, device: torch.device) -> None:
    """Fill a module of the meta device with small numbers on a device."""
    module.to_empty(device=device).requires_grad_(False).eval()
    for parameter in module.parameters():
        parameter.normal_(0, 0.02)


def measured(part: Measured, call: Callable[[], object], device: torch.device, calls: int = STEP_CALLS) -> Measured:
    """Seconds of a call after one that warms up, the peak of its memory, and its kernels; the reason where it fails."""
    started = time.perf_counter()
    try:
        call()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = seconds_per_call(call, device, max_calls=calls, budget_s=60.0)
        peak = torch.cuda.max_memory_allocated(device) / GB if device.type == "cuda" else None
        found = replace(part, seconds=seconds, peak_gb=peak, kernel_seconds=kernel_seconds(call, device))
    except Exception as failure:  # a kernel or a compiler may raise anything
        found = replace(part, reason=f"{type(failure).__name__}: {next(iter(str(failure).splitlines()), '')}")
    result = found.reason or f"{found.seconds:.3f} s"
    tell(f"{part.size} {part.part} {part.path}: {result}, in {time.perf_counter() - started:.0f} s")
    return found


def tell(line: str) -> None:
    """Print progress, so that a run that is cut off has said something."""
    print(line, file=sys.stderr, flush=True)


def latent_shape(arch: Architecture, spec: ModelSpec) -> tuple[int, int, int, int]:
    """[48, F, h, w] of a square clip."""
    rows, columns = latent_grid(*snap_size(1, 1, spec.video_area))
    return arch.video.in_dim, spec.video_latent_length, rows, columns


@torch.inference_mode()
def steps(
    arch: Architecture,
    spec: ModelSpec,
    device: torch.device,
    plan: AttentionPlan,
    kernels: KernelPlan,
    paths: Sequence[str],
) -> Iterator[Measured]:
    """One guided step, two passes, in each path."""
    with torch.device("meta"):
        transformer = FusionTransformer(arch.video, arch.audio).to(DTYPE)
    random_weights(transformer, device)
    weights = sum(parameter.nbytes for parameter in transformer.parameters())
    height, width = snap_size(1, 1, spec.video_area)
    planned = weights + activations(arch, spec, height, width, DTYPE.itemsize)[Stage.DENOISE]
    streamed = streamed_bytes(arch, DTYPE).device + planned - weights
    for path in paths:
        gigabytes = (streamed if path == "streamed" else planned) / GB
        part = Measured(size=spec.name, part="step", path=path, planned_gb=gigabytes)
        try:
            step = guided_step(arch, spec, device, *computed(transformer, path, device, plan, kernels))
        except ShortcutUnavailable as unavailable:
            yield replace(part, reason=str(unavailable))
            continue
        yield measured(part, step, device)


def computed(
    transformer: FusionTransformer, path: str, device: torch.device, plan: AttentionPlan, kernels: KernelPlan
) -> tuple[FusionTransformer, PassNumerics]:
    """The model with the same weights, set to compute in a path. Raises ShortcutUnavailable where the device cannot."""
    model = copy.copy(transformer)
    model.fuse(kernels if path in {"fused", "fp8", "streamed"} else EAGER_PLAN)
    match path:
        case "eager":
            return model, PassNumerics(attention=AttentionPlan.uniform(AttentionBackend.SDPA))
        case "fp8":
            video = transformer.video_model.config
            fp8 = fp8_products(
                device, DTYPE, dim=video.dim, ffn_dim=video.ffn_dim, kernels=kernels, fused=device.type == "cuda"
            )
            return model, PassNumerics(attention=plan, fp8=fp8)
        case "compiled":
            model.compile_blocks()
        case "streamed":
            model.to("cpu")
            model.stream_blocks(device)
    return model, PassNumerics(attention=plan)


def guided_step(
    arch: Architecture, spec: ModelSpec, device: torch.device, model: FusionTransformer, numerics: PassNumerics
) -> Callable[[], tuple[Tensor, Tensor]]:
    """A step of a square clip on random latents."""
    shape = latent_shape(arch, spec)
    video = torch.randn(shape, device=device)
    audio = torch.randn(spec.audio_latent_length, arch.audio.in_dim, device=device)
    rows = torch.randn(min(TEXT_ROWS, arch.video.text_len), arch.video.text_dim, device=device, dtype=DTYPE)
    negative = rows[:NEGATIVE_ROWS]
    positive, other = embed_texts(model, PromptEmbeds(positive=rows, video_negative=negative, audio_negative=negative))
    guidance = Guidance(
        positive=positive,
        negative=other,
        grid=model.embed_grid(video.shape, len(audio), device),
        first_frame_is_clean=False,
        video_scale=4.0,
        audio_scale=3.0,
        skip_layer=min(11, arch.video.num_layers - 1),
    )
    return lambda: StepPasses(model, video=video, audio=audio, t=500.0, guidance=guidance).guided(numerics)


@torch.inference_mode()
def decodes(
    arch: Architecture, spec: ModelSpec, device: torch.device, chosen: ConvolutionPath, kernels: KernelPlan
) -> Iterator[Measured]:
    """A whole clip's frames: with torch's own convolutions, with the chosen ones, and with the fused kernels too."""
    with torch.device("meta"):
        vae = VideoVAE(arch.video_vae).to(DTYPE)
    random_weights(vae, device)
    weights = sum(parameter.nbytes for parameter in vae.parameters())
    height, width = snap_size(1, 1, spec.video_area)
    planned = weights + activations(arch, spec, height, width, DTYPE.itemsize)[Stage.DECODE]
    latents = torch.randn(latent_shape(arch, spec), device=device)[None]

    def decode() -> None:
        for _ in vae.decode_stream(latents):
            pass

    plain = {str(path): (path, EAGER_PLAN) for path in (ConvolutionPath.DEFAULT, chosen)}
    for name, (path, fused) in (plain | {f"{chosen} fused": (chosen, kernels)}).items():
        vae.fuse(fused)
        with convolving(path):
            part = Measured(size=spec.name, part="decode", path=name, planned_gb=planned / GB)
            yield measured(part, decode, device, calls=1)


def job(device: torch.device) -> dict[str, float]:
    """A job of some clips with the small model on one worker: its clips and the share of the time that the device waited."""
    import pyarrow.parquet

    from ovi_ray import JobSpec, prepare, render

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_tiny_checkpoint(root / "ckpts")
        (root / "prompts.txt").write_text("".join(f"clip {number}\n" for number in range(JOB_CLIPS)), encoding="utf-8")
        spec = JobSpec.from_options(
            prompts=root / "prompts.txt",
            ckpt_dir=root / "ckpts",
            output_dir=root / "out",
            device="cpu" if device.type == "cpu" else "gpu",
            workers=1,
        )
        result = render(prepare(spec))
        rows = pyarrow.parquet.read_table(root / "out" / "results").to_pylist()
    busy = sum((row["encode_s"] or 0) + (row["denoise_s"] or 0) + (row["decode_s"] or 0) for row in rows)
    ended = sorted(row["finished_at"] for row in rows)
    span = (ended[-1] - ended[0]).total_seconds()
    later = busy * (len(rows) - 1) / len(rows)  # the first clip pays for what is loaded
    idle = max(0.0, 1 - later / span) if span else 0.0
    return {
        "clips": result.done,
        "seconds": round(result.seconds, 2),
        "idle_share_after_the_first_clip": round(idle, 3),
    }


def report(
    device: torch.device, sizes: Sequence[str], arch: Architecture, paths: Sequence[str], parts: Sequence[str]
) -> dict[str, object]:
    """Everything that is measured, as plain values."""
    target = AttentionTarget.of(device, DTYPE)
    rows: list[Measured] = []
    attention: dict[str, object] = {}
    convolutions: dict[str, object] = {}
    kernels = choose_kernels(KernelMode.FUSED, target, KernelShape.of(arch))
    tell(f"fused kernels: {', '.join(trial.kernel for trial in kernels.trials if not trial.reason) or 'none'}")
    for name in sizes:
        spec = arch.spec(name)
        if "steps" in parts:
            choices = choose(
                target, attention_shapes(arch.video, arch.audio, latent_shape(arch, spec), spec.audio_latent_length)
            )
            chosen = {site: choice.chosen for site, choice in choices.items()}
            tell(f"{name} attention: {', '.join(f'{site} {backend}' for site, backend in chosen.items())}")
            attention[name] = {
                "video_self": [
                    {**asdict(trial), "seconds": trial.seconds} for trial in choices[Site.VIDEO_SELF].trials
                ],
                "chosen": {str(site): str(backend) for site, backend in chosen.items()},
            }
            rows += steps(arch, spec, device, AttentionPlan.of(chosen), kernels.plan, paths)
        if "decodes" in parts:
            choice = choose_path(target, decoder_shapes(arch, spec, DTYPE))
            convolutions[name] = {"chosen": str(choice.path), "trials": [asdict(trial) for trial in choice.trials]}
            rows += decodes(arch, spec, device, choice.path, kernels.plan)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": target.name,
        "architecture": target.architecture,
        "torch": TorchEdge().torch_build(),
        "cudnn": torch.backends.cudnn.version(),
        "driver": target.driver,
        "faults": list(faults_of_versions(probe())),
        "attention": attention,
        "convolutions": convolutions,
        "kernels": [asdict(trial) for trial in kernels.trials],
        "measured": [asdict(each) for each in rows],
        "job": job(device) if "job" in parts else None,
    }


def show(found: dict[str, object]) -> None:
    """Print a report as text."""
    for key in ("date", "device", "architecture", "torch", "cudnn", "driver", "faults", "job"):
        print(f"{key:14}{found[key]}")
    print(f"{'size':14}{'part':8}{'path':18}{'seconds':>9}{'peak GB':>9}{'planned':>9}  seconds by class of kernel")
    for row in found["measured"]:  # type: ignore[attr-defined]
        seconds = "-" if row["seconds"] is None else f"{row['seconds']:.3f}"
        peak = "-" if row["peak_gb"] is None else f"{row['peak_gb']:.2f}"
        print(
            f"{row['size']:14}{row['part']:8}{row['path']:18}{seconds:>9}{peak:>9}{row['planned_gb']:9.2f}  "
            + (row["reason"] or ", ".join(f"{kind} {value:g}" for kind, value in row["kernel_seconds"].items()))
        )
    for trial in found["kernels"]:  # type: ignore[attr-defined]
        result = trial["reason"] or (
            f"{1000 * trial['seconds']:.3g} ms, eager {1000 * trial['eager_seconds']:.3g} ms, error {trial['error']:.1e}"
        )
        print(f"{'kernel':14}{trial['kernel']:16}{result}")
    for size, attention in found["attention"].items():  # type: ignore[attr-defined]
        for trial in attention["video_self"]:
            result = trial["reason"] or f"{1000 * trial['seconds']:.3g} ms, error {trial['error']:.1e}"
            print(f"{size:14}{trial['backend']:16}{result}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--model", default="published", choices=("published", "tiny"), help="default: published")
    parser.add_argument("--sizes", nargs="+", default=list(MODEL_SPECS), choices=list(MODEL_SPECS), metavar="SIZE")
    parser.add_argument("--paths", nargs="+", choices=PATHS, help="default: all on a GPU; eager and chosen on a CPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        notes = "".join(f"; {note}" for note in probe().notes)
        print(f"no GPU that this torch can use: nothing was measured{notes}", file=sys.stderr)
        return 0
    arch = Architecture() if arguments.model == "published" else tiny_architecture()
    paths = arguments.paths or (PATHS if device.type == "cuda" else PATHS[:2])
    found = report(device, arguments.sizes, arch, paths, arguments.parts)
    print(json.dumps(found, indent=1)) if arguments.json else show(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())

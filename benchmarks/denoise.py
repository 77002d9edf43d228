"""Work of one pass of the transformer, and its CPU time beside that of an earlier commit.

`counted` is the work of one text-to-video pass of the published model in bfloat16, counted on meta tensors, operation by
operation: nothing is computed, so it takes seconds on any machine and no weights. `timed` is the CPU time of a scaled model:
this working tree and an earlier commit denoise the same clip in turns, in two processes of one run.

    python benchmarks/denoise.py                          # counts, and time against the commit before the model's last change
    python benchmarks/denoise.py --before v1.2            # against another commit
    python benchmarks/denoise.py --rounds 0 --json        # counts alone

A multiply-add is two operations. `elementwise_gb` is what all operations but products, convolutions and attention read and
write. RMSNorm counts as the one kernel that it is on GPUs. The path `eager` is plain torch, `fused` has all fused kernels.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ovi.config import (
    MODEL_SPECS,
    SPATIAL_STRIDE,
    Architecture,
    ModelSpec,
    SamplingParams,
    SolverName,
    TransformerConfig,
)
from ovi.kernels import FusedKernel, KernelPlan
from ovi.kernels.types import EAGER_PLAN
from ovi.models.fusion import FusionTransformer
from ovi.sampling.denoise import denoise, start
from ovi.types import Latents, PromptEmbeds

ROOT = Path(__file__).parent.parent
TEXT_ROWS = 60  # of an ordinary prompt; the model pads them to 512
META = torch.device("meta")
PATHS = {"eager": EAGER_PLAN, "fused": KernelPlan.of(FusedKernel)}


# -- counts ------------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True, slots=True, frozen=True)
class Work:
    """Work of one pass."""

    size: str
    """Name of the model."""
    path: str
    """A name of PATHS."""
    products_tflop: float
    """Matrix products and convolutions."""
    attention_tflop: float
    elementwise_gb: float
    """Read and written by everything else."""
    kernels: int
    """Operations that launch a kernel."""


class WorkCounter(TorchDispatchMode):
    """Counts the operations that run while it is active: their arithmetic, or else the bytes that they read and write."""

    _FREE = (torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.new_empty, torch.ops.aten._unsafe_view)

    _OVERWRITING = (torch.ops.aten.copy_, torch.ops.aten.fill_, torch.ops.aten.zero_)

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.product_flops = 0
        self.attention_flops = 0
        self.elementwise_bytes = 0
        self.kernels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.is_view or func.overloadpacket in self._FREE:
            return out
        if func.overloadpacket is torch.ops.aten._addmm_activation:
            self.kernels += 1
            self.product_flops += flop_registry[torch.ops.aten.addmm](*args, out_val=out)
        elif func.overloadpacket in flop_registry:
            self.kernels += 1
            self.product_flops += flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
        else:
            read = args[1:] if func.overloadpacket in self._OVERWRITING else args
            self.add_elementwise(read, kwargs, out)
        return out

    def add_attention(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Add one kernel of softmax attention, [B, H, L, D] each."""
        batch, heads, queries, width = q.shape
        self.kernels += 1
        self.attention_flops += 2 * batch * heads * queries * k.shape[2] * (width + v.shape[3])

    def add_elementwise(self, *touched: Any) -> None:
        """Add one kernel that reads and writes the tensors in `touched`."""
        self.kernels += 1
        self.elementwise_bytes += _bytes(touched)


class AsOnGpus(TorchFunctionMode):
    """Takes attention and RMSNorm as the single kernels that they are on GPUs; on meta tensors torch takes them apart."""

    def __init__(self, counter: WorkCounter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.counter.add_attention(*args)
            return torch.empty_like(args[0])
        if func is F.rms_norm:
            out = torch.empty_like(args[0])
            self.counter.add_elementwise(args, out)
            return out
        return func(*args, **(kwargs or {}))


def _bytes(values: Any) -> int:
    """Bytes of the elements of all tensors in nested values; a broadcast element counts once."""
    tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    return sum(min(t.numel() * t.itemsize, t.untyped_storage().nbytes()) for t in tensors)


@torch.no_grad()
def count(spec: ModelSpec, arch: Architecture, path: str = "eager") -> Work:
    """The work of one text-to-video pass of a model with square frames, computed by a path of PATHS."""
    side = int(spec.video_area**0.5) // SPATIAL_STRIDE // 2 * 2  # frames are multiples of two latents
    with META:
        transformer = FusionTransformer(arch.video, arch.audio).to(torch.bfloat16)
        transformer.fuse(PATHS[path])
        text = torch.empty(TEXT_ROWS, arch.video.text_dim, dtype=torch.bfloat16)
        video = torch.empty(arch.video.in_dim, spec.video_latent_length, side, side, dtype=torch.bfloat16)
        audio = torch.empty(spec.audio_latent_length, arch.audio.in_dim, dtype=torch.bfloat16)
        context = transformer.embed_text(video=text, audio=text)
        grid = transformer.embed_grid(video.shape, len(audio), META)
        moment = transformer.embed_time(500.0, grid, first_frame_is_clean=False)
        with WorkCounter() as counter, AsOnGpus(counter):
            transformer(video=video, audio=audio, text=context, grid=grid, time=moment)
    return Work(
        size=spec.name,
        path=path,
        products_tflop=round(counter.product_flops / 1e12, 1),
        attention_tflop=round(counter.attention_flops / 1e12, 1),
        elementwise_gb=round(counter.elementwise_bytes / 1e9, 1),
        kernels=counter.kernels,
    )


# -- CPU time ----------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True, slots=True, frozen=True)
class Timing:
    """CPU seconds of a pass of the scaled model, all threads together."""

    code: str
    """The commit, or "working tree"."""
    cpu_seconds: tuple[float, ...]
    """Per round, without the first, in which memory is allocated."""

    @property
    def median(self) -> float:
        return statistics.median(self.cpu_seconds)


def scaled() -> Architecture:
    """The published architecture with 1/6 of the width and 4 of its 30 blocks."""

    def narrow(config: TransformerConfig) -> TransformerConfig:
        return dataclasses.replace(config, dim=512, ffn_dim=2389, num_heads=4, num_layers=4, text_dim=512)

    default = Architecture()
    return dataclasses.replace(default, video=narrow(default.video), audio=narrow(default.audio))


def serve(dtype: torch.dtype) -> None:
    """Denoise a clip for each line of standard input, and answer with the CPU seconds of a pass."""
    torch.manual_seed(0)
    arch = scaled()
    transformer = FusionTransformer(arch.video, arch.audio).to(dtype).eval()
    noise = Latents(video=torch.randn(arch.video.in_dim, 8, 32, 32), audio=torch.randn(157, arch.audio.in_dim))
    rows = torch.randn(TEXT_ROWS, arch.video.text_dim).to(dtype)
    embeds = PromptEmbeds(positive=rows, video_negative=rows[:10], audio_negative=rows[:12])
    params = SamplingParams(sample_steps=2, solver_name=SolverName.EULER, slg_layer=0)
    for _ in sys.stdin:
        started = time.process_time()
        with torch.inference_mode():
            denoise(transformer, start(noise), embeds, params)
        print((time.process_time() - started) / (2 * params.sample_steps), flush=True)


def time_against(commit: str, rounds: int, dtype: str) -> list[Timing]:
    """Time the commit and the working tree in turns."""
    with ExitStack() as stack:
        before = stack.enter_context(_server(stack.enter_context(_checkout(commit)), dtype))
        now = stack.enter_context(_server(ROOT, dtype))
        seconds = [(before(), now()) for _ in range(rounds + 1)][1:]
    codes = (commit, "working tree")
    return [
        Timing(code=code, cpu_seconds=tuple(own)) for code, own in zip(codes, zip(*seconds, strict=True), strict=True)
    ]


@contextmanager
def _checkout(commit: str) -> Iterator[Path]:
    """A folder with the package `ovi` of a commit."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", commit, "ovi"], cwd=ROOT, check=True, stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        yield Path(folder)


@contextmanager
def _server(code: Path, dtype: str) -> Iterator[Callable[[], float]]:
    """A process that imports `ovi` from a folder; each call denoises once there and returns its CPU seconds."""
    command = [sys.executable, __file__, "--serve", "--dtype", dtype]
    environment = os.environ | {"PYTHONPATH": str(code)}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        requests, answers = process.stdin, process.stdout
        if requests is None or answers is None:
            raise RuntimeError("the process has no pipes")

        def ask() -> float:
            requests.write("\n")
            return float(answers.readline())

        yield ask
        requests.close()  # ends the process


def last_change() -> str:
    """The commit before the last one that changed the transformer."""
    command = [
        "git",
        "log",
        "-1",
        "--format=%h~1",
        "--",
        "ovi/models/fusion.py",
        "ovi/models/transformer.py",
        "ovi/models/rope.py",
    ]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


# -- output ------------------------------------------------------------------------------------------------------------


def show(works: list[Work], timings: list[Timing]) -> None:
    table = Table("size", "path", "products\nTFLOP", "attention\nTFLOP", "elementwise\nGB", "kernels")
    for work in works:
        operations = (f"{work.products_tflop:,.1f}", f"{work.attention_tflop:,.1f}")
        table.add_row(work.size, work.path, *operations, f"{work.elementwise_gb:,.1f}", f"{work.kernels:,}")
    for column in table.columns[2:]:
        column.justify = "right"
    console = Console()
    console.print(table)
    for timing in timings:
        share = timing.median / timings[0].median
        console.print(f"{timing.code}: {timing.median:.2f} CPU seconds a pass of the scaled model ({share:.0%})")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=tuple(MODEL_SPECS), default=list(MODEL_SPECS), help="to count")
    parser.add_argument("--before", metavar="COMMIT", help="to time against; by default before the model's last change")
    parser.add_argument("--rounds", type=int, default=5, help="of timing, after a first one; default 5, 0 for none")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of timing")
    parser.add_argument("--json", action="store_true", help="print counts and times as JSON")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.serve:
        serve(getattr(torch, arguments.dtype))
        return
    works = [count(MODEL_SPECS[size], Architecture(), path) for size in arguments.sizes for path in PATHS]
    before = arguments.before or last_change()
    timings = time_against(before, arguments.rounds, arguments.dtype) if arguments.rounds else []
    if arguments.json:
        timed = [{**dataclasses.asdict(timing), "median": timing.median} for timing in timings]
        print(json.dumps({"counted": [dataclasses.asdict(work) for work in works], "timed": timed}, indent=1))
    else:
        show(works, timings)


if __name__ == "__main__":
    main()

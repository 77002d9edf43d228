"""Peak memory of each memory mode and stage against the plan, and the cost of swapping components.

Renders a few clips with a scaled model in each mode, each in a new process. All texts are encoded, then all clips
denoised, then all decoded, so a mode that holds one stage at a time swaps three times for any number of clips. `per clip`
swaps for every clip, like the published code's offloading.

    python benchmarks/memory.py                        # a model of 0.8 GB on the CPU, a few minutes
    python benchmarks/memory.py --device cuda          # the same on a GPU, the offloaded mode too
    python benchmarks/memory.py --json > memory.json

Measured memory is what a stage's peak adds to a process without weights: resident memory on the CPU, allocated memory on
a GPU, in MiB. A mapped file counts while its pages are resident. `load` reads only the transformer: its peak shows that a
load holds the weights once.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ovi import OviPipeline
from ovi.config import Component, SamplingParams, TextEncoderConfig, VideoVAEConfig
from ovi.media.video import frames_to_uint8
from ovi.memory.plan import MemoryMode, plan_memory
from ovi.stages import STAGES, Stage
from ovi.types import Latents, PromptEmbeds
from ovi.weights.formats import WeightFormat
from ovi.weights.tiny import tiny_architecture, write_tiny_checkpoint
from ovi_ray.devices.memory import memory_demand

MIB = 2**20
MODEL = "720x720_5s"
SIDE = 128  # pixels
DECODED_FRAMES = 2  # latent frames that are decoded; a longer decode takes more time, not more memory
DTYPE = torch.float32  # a CPU computes bfloat16 through float32 copies, which would be measured too
PARAMS = SamplingParams(video_frame_height_width=(SIDE, SIDE), sample_steps=1, slg_layer=1)
Row = dict[str, object]


@dataclasses.dataclass(kw_only=True, slots=True, frozen=True)
class Case:
    """One memory mode to measure."""

    mode: MemoryMode
    weights: WeightFormat
    batched: bool
    """Whether each stage runs for all clips before the next stage starts."""
    clips: int
    device: str
    ckpt_dir: str

    @property
    def name(self) -> str:
        held = self.mode if self.weights is WeightFormat.DTYPE else f"{self.weights} {self.mode}"
        return held if self.batched else f"{held}, per clip"


class Meter:
    """Measures peak memory and time."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.baseline = self._now()

    def measure(self, work: Callable[[], object]) -> tuple[float, float]:
        """Peak above the baseline in MiB, and seconds."""
        self._reset()
        started = time.perf_counter()
        work()
        if self.device != "cpu":
            torch.cuda.synchronize()
        return (self._peak() - self.baseline) / MIB, time.perf_counter() - started

    def _now(self) -> int:
        return _status("VmRSS") if self.device == "cpu" else torch.cuda.memory_allocated()

    def _reset(self) -> None:
        if self.device == "cpu":
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the current resident size
        else:
            torch.cuda.reset_peak_memory_stats()

    def _peak(self) -> int:
        return _status("VmHWM") if self.device == "cpu" else torch.cuda.max_memory_allocated()


class Renderer:
    """A pipeline in one mode, counting its swaps."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.pipe = OviPipeline.from_pretrained(
            case.ckpt_dir, MODEL, device=case.device, dtype=DTYPE, weights=case.weights
        )
        self.swaps = 0
        self.embeds: dict[int, PromptEmbeds] = {}
        self.latents: dict[int, Latents] = {}

    def run(self, stage: Stage, clip: int) -> None:
        self.hold(STAGES[stage].components)
        if stage is Stage.ENCODE_TEXT:
            positive, negative = self.pipe.encode_text([f"a fox number {clip} in the snow", "blur"])
            self.embeds[clip] = PromptEmbeds(positive=positive, video_negative=negative, audio_negative=negative)
        elif stage is Stage.DENOISE:
            self.latents[clip] = self.pipe.denoise(self.embeds[clip], PARAMS)
        else:
            latents = self.latents[clip]
            self.pipe.decode_audio(latents.audio)
            for chunk in self.pipe.decode_video(latents.video[:, :DECODED_FRAMES]):
                frames_to_uint8(chunk)

    def make_room(self, needed: frozenset[Component]) -> None:
        """Make room for the needed components, if they are not loaded."""
        if needed <= self.pipe.loaded:
            return
        self.swaps += 1
        if self.case.mode is not MemoryMode.RESIDENT:
            others = self.pipe.loaded - needed
            (self.pipe.offload if self.case.mode is MemoryMode.OFFLOADED else self.pipe.unload)(others)

    def hold(self, needed: frozenset[Component]) -> None:
        self.pipe.load(tuple(Component) if self.case.mode is MemoryMode.RESIDENT else needed)


def warm_up(device: str) -> None:
    """Trigger the permanent allocations of kernels and their libraries, which are not part of a stage."""
    x = torch.randn(1, 8, 16, 16, device=device)
    torch.nn.functional.scaled_dot_product_attention(x, x, x)
    torch.nn.functional.conv3d(x.unsqueeze(2), torch.randn(8, 8, 1, 3, 3, device=device))
    torch.nn.functional.linear(x, torch.randn(16, 16, device=device))


def measure(case: Case) -> list[Row]:
    torch.set_num_threads(os.cpu_count() or 1)
    warm_up(case.device)
    meter, renderer = Meter(case.device), Renderer(case)
    demand = memory_demand(case.ckpt_dir, MODEL, DTYPE, case.weights, (SIDE, SIDE))
    budget = sys.maxsize if case.mode is MemoryMode.RESIDENT else demand.staged
    plan = plan_memory({case.weights: demand}, budget=budget, host=0)
    stages = (Stage.ENCODE_TEXT, Stage.DENOISE, Stage.DECODE)
    steps = [(stage, clip) for stage in stages for clip in range(case.clips)]
    if not case.batched:
        steps.sort(key=lambda step: step[1])
    found: dict[Stage, list[tuple[float, float]]] = {stage: [] for stage in stages}
    for stage, clip in steps:
        renderer.make_room(STAGES[stage].components)
        found[stage].append(meter.measure(lambda stage=stage, clip=clip: renderer.run(stage, clip)))  # type: ignore[misc]
    return [
        {
            "mode": case.name,
            "stage": stage,
            "planned_mib": round(plan.peak[stage] / MIB, 1),
            "measured_mib": round(max(peak for peak, _ in results), 1),
            "seconds": round(sum(seconds for _, seconds in results), 2),
            "swaps": renderer.swaps,
        }
        for stage, results in found.items()
    ]


def measure_load(case: Case) -> list[Row]:
    """Measure only the loading of the transformer."""
    warm_up(case.device)
    meter, renderer = Meter(case.device), Renderer(case)
    needed = frozenset({Component.TRANSFORMER})

    def load() -> None:
        renderer.hold(needed)
        for parameter in renderer.pipe._components[Component.TRANSFORMER].parameters():
            parameter.sum()  # a mapped file is read on first use

    peak, seconds = meter.measure(load)
    planned = memory_demand(case.ckpt_dir, MODEL, DTYPE, case.weights).components[Component.TRANSFORMER]
    row = {"mode": f"load {case.weights}", "stage": "load", "planned_mib": round(planned / MIB, 1)}
    return [{**row, "measured_mib": round(peak, 1), "seconds": round(seconds, 2), "swaps": 1}]


def write_scaled_checkpoint(folder: Path) -> Path:
    """Write a model of the published proportions, at a quarter of the width and a seventh of the depth."""
    tiny = tiny_architecture()
    backbone: dict[str, Any] = {
        "dim": 768,
        "ffn_dim": 3584,
        "freq_dim": 64,
        "num_heads": 6,
        "num_layers": 4,
        "text_dim": 512,
    }
    arch = dataclasses.replace(
        tiny,
        video=dataclasses.replace(tiny.video, **backbone),
        audio=dataclasses.replace(tiny.audio, **backbone),
        text_encoder=TextEncoderConfig(
            vocab_size=256, dim=512, dim_attn=512, dim_ffn=1280, num_heads=8, num_layers=12, text_len=128
        ),
        video_vae=VideoVAEConfig(dim=32, dec_dim=64),
        models={name: dataclasses.replace(spec, video_area=SIDE * SIDE) for name, spec in tiny.models.items()},
    )
    return write_tiny_checkpoint(folder, arch)


def measure_in_new_process(case: Case, kind: str) -> list[Row]:
    """Measure a case in its own process, because an allocator keeps the memory that earlier work freed."""
    command = [sys.executable, __file__, "--case", json.dumps(dataclasses.asdict(case)), "--kind", kind]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(MIB), "MALLOC_TRIM_THRESHOLD_": str(MIB)}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    rows: list[Row] = json.loads(output)
    return rows


def _status(name: str) -> int:
    """A size from /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no line {name!r}")


def cases(clips: int, device: str, ckpt_dir: Path) -> list[Case]:
    dtype, qint8 = WeightFormat.DTYPE, WeightFormat.QINT8
    ways = [(MemoryMode.RESIDENT, dtype, True), (MemoryMode.STAGED, dtype, True), (MemoryMode.STAGED, qint8, True)]
    if device != "cpu":  # on a CPU, offloading does nothing
        ways += [(MemoryMode.OFFLOADED, dtype, True), (MemoryMode.OFFLOADED, dtype, False)]
    ways.append((MemoryMode.STAGED, dtype, False))
    return [
        Case(mode=mode, weights=weights, batched=batched, clips=clips, device=device, ckpt_dir=str(ckpt_dir))
        for mode, weights, batched in ways
    ]


def show(rows: list[Row]) -> None:
    table = Table("mode", "stage", "planned\nMiB", "measured\nMiB", "s", "swaps")
    for row in rows:
        table.add_row(*map(str, row.values()))
    for column in table.columns[2:]:
        column.justify = "right"
    Console().print(table)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print a list of measurements instead of a table")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.case:
        case = json.loads(arguments.case)
        parsed = Case(**{**case, "mode": MemoryMode(case["mode"]), "weights": WeightFormat(case["weights"])})
        print(json.dumps((measure_load if arguments.kind == "load" else measure)(parsed)))
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # for the quantized weights
        all_cases = cases(arguments.clips, arguments.device, write_scaled_checkpoint(Path(folder) / "ckpts"))
        measure_in_new_process(all_cases[2], "load")  # quantizes the weights once
        rows = [row for case in all_cases for row in measure_in_new_process(case, "render")]
        rows += [row for case in all_cases[1:3] for row in measure_in_new_process(case, "load")]
    if arguments.json:
        print(json.dumps(rows, indent=1))
    else:
        show(rows)


if __name__ == "__main__":
    main()

"""Memory and work of a decode, by length of the clip.

Decodes random latents of several lengths with the video VAE, each in a new process, in two ways: `streamed` converts each
chunk to 8-bit frames and drops it; `collected` appends each chunk to one growing tensor, like the published code.

    python benchmarks/decode.py                        # a narrow VAE on the CPU, about six minutes
    python benchmarks/decode.py --device cuda          # the real VAE in bfloat16 at 960x960
    python benchmarks/decode.py --json > decode.json
    python benchmarks/decode.py --counts               # memory traffic of the real VAE, counted on meta tensors, in seconds

Peak memory is what the decode adds to a process with loaded weights: resident memory on the CPU, allocated memory on a
GPU. FLOPs are counted on meta tensors; a multiply-add counts as two.
"""

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from denoise import META, PATHS, AsOnGpus, WorkCounter
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ovi.config import MODEL_SPECS, SPATIAL_STRIDE, TEMPORAL_STRIDE, ModelSpec, VideoVAEConfig
from ovi.geometry import num_frames
from ovi.media.video import frames_to_uint8
from ovi.models.video_vae import VideoVAE

WAYS = ("streamed", "collected")
MIB = 2**20


@dataclass(kw_only=True, slots=True, frozen=True)
class Case:
    """One decode to measure."""

    way: str
    latent_frames: int
    height: int
    """In latents."""
    width: int
    """In latents."""
    dec_dim: int
    """Base width of the decoder; the published one is 256."""
    frames_per_pass: int
    device: str
    threads: int

    @property
    def num_frames(self) -> int:
        return num_frames(self.latent_frames)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.device == "cpu" else torch.bfloat16


@dataclass(kw_only=True, slots=True, frozen=True)
class Measurement:
    """Memory and time of one decode."""

    case: Case
    peak_mib: float
    seconds: float
    cpu_seconds: float
    """CPU time of all threads; less noisy than `seconds` on a busy machine."""
    flops: int

    @property
    def seconds_per_frame(self) -> float:
        return self.seconds / self.case.num_frames

    @property
    def flops_per_frame(self) -> float:
        return self.flops / self.case.num_frames

    def row(self) -> dict[str, object]:
        return {
            **dataclasses.asdict(self.case),
            "num_frames": self.case.num_frames,
            "peak_mib": round(self.peak_mib, 1),
            "seconds": round(self.seconds, 3),
            "seconds_per_frame": round(self.seconds_per_frame, 5),
            "cpu_seconds": round(self.cpu_seconds, 3),
            "flops": self.flops,
            "flops_per_frame": round(self.flops_per_frame),
        }


@torch.inference_mode()
def measure(case: Case) -> Measurement:
    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    vae = VideoVAE(VideoVAEConfig(dec_dim=case.dec_dim, dim=8)).to(case.device, case.dtype)
    latents = make_latents(case, case.device)
    for _ in vae.decode_stream(latents[:, :, :1, :4, :4]):  # exclude what the first call allocates permanently
        pass
    baseline = memory(case.device, peak=False)
    start, cpu_start = time.perf_counter(), time.process_time()
    decode(vae, latents, case)
    synchronize(case.device)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    peak = memory(case.device, peak=True) - baseline
    return Measurement(
        case=case, peak_mib=peak / MIB, seconds=seconds, cpu_seconds=cpu_seconds, flops=count_flops(case)
    )


def make_latents(case: Case, device: str) -> Tensor:
    shape = (1, VideoVAEConfig().z_dim, case.latent_frames, case.height, case.width)
    return torch.randn(shape, device=device)


def decode(vae: VideoVAE, latents: Tensor, case: Case) -> None:
    chunks = vae.decode_stream(latents, case.frames_per_pass)
    if case.way == "streamed":
        for chunk in chunks:
            frames_to_uint8(chunk[0])
        return
    video = next(chunks)
    for chunk in chunks:
        video = torch.cat([video, chunk], dim=2)


def count_flops(case: Case) -> int:
    with torch.device("meta"):
        vae = VideoVAE(VideoVAEConfig(dec_dim=case.dec_dim, dim=8))
    with FlopCounterMode(display=False) as counter:
        for _ in vae.decode_stream(make_latents(case, "meta")):
            pass
    return int(counter.get_total_flops())


@dataclass(kw_only=True, slots=True, frozen=True)
class Traffic:
    """Work of a chunk of four frames of the published decoder in bfloat16."""

    size: str
    """Name of the model."""
    path: str
    """A name of PATHS."""
    products_tflop: float
    elementwise_gb: float
    """Read and written by everything but convolutions and attention."""
    kernels: int
    """Operations that launch a kernel."""


@torch.no_grad()
def count_traffic(spec: ModelSpec, path: str, config: VideoVAEConfig | None = None) -> Traffic:
    """The work of the second chunk of a square clip, and of every later one, counted on meta tensors."""
    side = int(spec.video_area**0.5) // SPATIAL_STRIDE // 2 * 2
    with META:
        vae = VideoVAE(config or VideoVAEConfig()).to(torch.bfloat16)
        vae.fuse(PATHS[path])
        chunks = vae.decode_stream(torch.empty(1, VideoVAEConfig().z_dim, 2, side, side))
        next(chunks)
        with WorkCounter() as counter, AsOnGpus(counter):
            next(chunks)
    return Traffic(
        size=spec.name,
        path=path,
        products_tflop=round(counter.product_flops / 1e12, 2),
        elementwise_gb=round(counter.elementwise_bytes / 1e9, 2),
        kernels=counter.kernels,
    )


def memory(device: str, *, peak: bool) -> int:
    """Bytes in use, or the peak since the last call with `peak=False`."""
    if device == "cpu":
        if peak:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
        return resident_pages * resource.getpagesize()
    if peak:
        return torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def measure_in_new_process(case: Case) -> Measurement:
    """Measure a case in its own process, because the peak memory of a process never falls."""
    command = [sys.executable, __file__, "--case", json.dumps(dataclasses.asdict(case))]
    # Return freed memory to the system at once, so that resident memory is what the decode holds.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(MIB), "MALLOC_TRIM_THRESHOLD_": str(MIB)}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    result = json.loads(output)
    return Measurement(case=case, **result)


def show(measurements: Iterable[Measurement]) -> None:
    table = Table("decode", "F", "frames", "peak\nMiB", "s", "CPU s", "ms\n/frame", "TFLOP", "GFLOP\n/frame")
    for m in measurements:
        table.add_row(
            m.case.way,
            str(m.case.latent_frames),
            str(m.case.num_frames),
            f"{m.peak_mib:,.0f}",
            f"{m.seconds:.1f}",
            f"{m.cpu_seconds:.1f}",
            f"{1e3 * m.seconds_per_frame:.1f}",
            f"{m.flops / 1e12:,.2f}",
            f"{m.flops_per_frame / 1e9:,.2f}",
        )
    for column in table.columns[1:]:
        column.justify = "right"
    Console().print(table)


def summarise(measurements: list[Measurement]) -> str:
    lines = []
    for way in WAYS:
        first, *_, last = [m for m in measurements if m.case.way == way]
        lines.append(
            f"{way}: from {first.case.latent_frames} to {last.case.latent_frames} latent frames, "
            f"{last.peak_mib / first.peak_mib:.2f}x the memory, "
            f"{last.seconds_per_frame / first.seconds_per_frame:.2f}x the time and "
            f"{last.flops_per_frame / first.flops_per_frame:.3f}x the FLOPs of a frame"
        )
    return "\n".join(lines)


def show_traffic(counted: list[Traffic], as_json: bool) -> None:
    rows = [dataclasses.asdict(traffic) for traffic in counted]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--latent-frames", type=int, nargs="+", default=[31, 41, 51, 61], metavar="F")
    parser.add_argument("--height", type=int, help="in latents (pixels / 16); default 16, on a GPU 60")
    parser.add_argument("--width", type=int, help="in latents; default 16, on a GPU 60")
    parser.add_argument("--dec-dim", type=int, help="base width of the decoder; default 32, on a GPU 256")
    parser.add_argument("--frames-per-pass", type=int, default=TEMPORAL_STRIDE, choices=(1, 2, 4))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument(
        "--counts", action="store_true", help="count the memory traffic of a chunk, and measure nothing"
    )
    parser.add_argument("--json", action="store_true", help="print a list of measurements instead of a table")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.case:
        m = measure(Case(**json.loads(arguments.case)))
        measured = dataclasses.asdict(m)
        del measured["case"]
        print(json.dumps(measured))
        return
    if arguments.counts:
        show_traffic([count_traffic(spec, path) for spec in MODEL_SPECS.values() for path in PATHS], arguments.json)
        return
    on_cpu = arguments.device == "cpu"
    side = 16 if on_cpu else 960 // SPATIAL_STRIDE
    measurements = [
        measure_in_new_process(
            Case(
                way=way,
                latent_frames=latent_frames,
                height=arguments.height or side,
                width=arguments.width or side,
                dec_dim=arguments.dec_dim or (32 if on_cpu else VideoVAEConfig().dec_dim),
                frames_per_pass=arguments.frames_per_pass,
                device=arguments.device,
                threads=arguments.threads,
            )
        )
        for way in WAYS
        for latent_frames in arguments.latent_frames
    ]
    if arguments.json:
        print(json.dumps([m.row() for m in measurements], indent=1))
    else:
        show(measurements)
        print(summarise(measurements))


if __name__ == "__main__":
    main()

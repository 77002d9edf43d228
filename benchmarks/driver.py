"""Processor time that the driver of a job needs for each clip.

python benchmarks/driver.py --clips 3000 [--workers 2] [--profile] [--json]

Renders clips of one step from a small checkpoint on a Ray of its own, in a temporary folder. What is measured is the process of
the driver alone, with all of its threads: the workers are processes of their own. Compare commits by --json on one machine.
"""

import argparse
import cProfile
import json
import pstats
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.preparation import prepare
from ovi_ray.rendering import render

CKPTS = Path(__file__).parents[1] / "tests" / "data" / "tiny" / "ckpts"
PROFILED = 25  # functions that a profile shows


def job_of(folder: Path, ckpts: Path, *, clips: int, workers: int) -> JobSpec:
    """A job of small clips, distinct by their seeds."""
    prompts = folder / "prompts.jsonl"
    rows = ({"text_prompt": "A fox runs. <AUDCAP>rain<ENDAUDCAP>", "seed": number} for number in range(clips))
    prompts.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return JobSpec.from_options(
        prompts=prompts,
        ckpt_dir=ckpts,
        output_dir=folder / "out",
        workers=workers,
        dtype="float32",
        attention="sdpa",
        sample_steps=1,
        slg_layer=1,
        video_frame_height_width=(64, 64),
    )


def measure(ckpts: Path, *, clips: int, workers: int, profile: cProfile.Profile | None) -> dict[str, float]:
    """Seconds of the driver, from the start of Ray to the report."""
    with tempfile.TemporaryDirectory(prefix="ovi-driver-") as folder:
        prepared = prepare(job_of(Path(folder), ckpts, clips=clips, workers=workers))
        began, began_cpu = time.perf_counter(), time.process_time()
        with profile or nullcontext():
            result = render(prepared)
        wall_s, cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
    if result.done != clips:
        raise SystemExit(f"{result.done} of {clips} clips were rendered")
    return {
        "clips": clips,
        "workers": workers,
        "wall_s": round(wall_s, 1),
        "driver_cpu_s": round(cpu_s, 2),
        "driver_cpu_ms_per_clip": round(1000 * cpu_s / clips, 2),
        "rendering_s": round(result.seconds, 1),
    }


def main() -> None:
    """Print one measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=3000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ckpts", type=Path, default=CKPTS, help="checkpoint folder (default: that of the tests)")
    parser.add_argument("--profile", action="store_true", help="print the functions that took most of the time")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    profile = cProfile.Profile() if options.profile else None
    found = measure(options.ckpts, clips=options.clips, workers=options.workers, profile=profile)
    if options.json:
        json.dump(found, sys.stdout)
    else:
        print("  ".join(f"{name} {value:,}" for name, value in found.items()))
    if profile:
        pstats.Stats(profile).sort_stats("cumulative").print_stats(PROFILED)


if __name__ == "__main__":
    main()

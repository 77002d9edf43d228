"""Processor time that the driver of a job needs for each clip.

python benchmarks/driver.py --clips 3000 [--workers 2] [--parts] [--profile] [--json]

Renders clips of one step from a small checkpoint on a Ray of its own, in a temporary folder. What is measured is the process of
the driver alone, with all of its threads: the workers are processes of their own. What a job costs once, to start Ray with all
that is imported for it and to write the last report, stands beside what it costs while it renders. Compare commits by --json on
one machine; --parts, which costs a little itself, says what the time is spent on.
"""

import argparse
import cProfile
import functools
import importlib
import json
import pstats
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.preparation import prepare
from ovi_ray.protocol.observer import JobObserver, RunEnded, RunStarted
from ovi_ray.rendering import render

CKPTS = Path(__file__).parents[1] / "tests" / "data" / "tiny" / "ckpts"
PROFILED = 25  # functions that a profile shows
PARTS = {
    "Ray: starting tasks": ("ovi_ray.runtime.ray_executor", "RayExecutor.submit"),
    "Ray: waiting and fetching": ("ovi_ray.runtime.ray_executor", "RayExecutor.poll"),
    "scheduler": ("ovi_ray.scheduling.scheduler", "Scheduler.handle"),
    "requests": ("ovi_ray.runtime.requests", "RequestBuilder.build"),
    "rows": ("ovi_ray.runtime.clip_records", "ClipRecords.row"),
    "rows, written": ("ovi_ray.output.results", "Results.flush"),
    "intermediate files": ("ovi_ray.output.intermediates", "Intermediates.remove_committed"),
    "record of events": ("ovi_ray.runtime.run_record", "EventRecorder.cycle"),
    "charts": ("ovi_ray.runtime.job_report", "JobReport.cycle"),
    "snapshots": ("ovi_ray.runtime.progress_reporter", "ProgressReporter.report_if_due"),
    "report and progress.json": ("ovi_ray.runtime.background_writer", "BackgroundWriter._run"),
}
"""Part of the driver's work -> the module and the function that does it."""


class PhaseClock(JobObserver):
    """Processor time of this process when its job begins to render, and when it is done with that."""

    def __init__(self) -> None:
        self.began_s = self.ended_s = 0.0

    def started(self, run: RunStarted) -> None:
        """See JobObserver."""
        self.began_s = time.process_time()

    def ended(self, run: RunEnded) -> None:
        """See JobObserver."""
        self.ended_s = time.process_time()


def time_parts() -> Mapping[str, float]:
    """Seconds of the thread that runs each part, without those of parts within it; they are counted from now on."""
    spent: defaultdict[str, float] = defaultdict(float)
    within: defaultdict[int, list[float]] = defaultdict(list)  # thread -> seconds of parts within each part that runs

    def timed(part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(work)
        def call(*args: Any, **options: Any) -> Any:
            inner, began = within[threading.get_ident()], time.thread_time()
            inner.append(0.0)
            try:
                return work(*args, **options)
            finally:
                took = time.thread_time() - began
                spent[part] += took - inner.pop()
                if inner:
                    inner[-1] += took

        return call

    for part, (module, name) in PARTS.items():
        owner_name, _, method = name.partition(".")
        owner = getattr(importlib.import_module(module), owner_name)
        setattr(owner, method, timed(part, getattr(owner, method)))
    return spent


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


def measure(
    ckpts: Path, *, clips: int, workers: int, profile: cProfile.Profile | None, spent: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Seconds of the driver, from the start of Ray to the report. `spent` is what `time_parts` counts."""
    clock = PhaseClock()
    with tempfile.TemporaryDirectory(prefix="ovi-driver-") as folder:
        prepared = prepare(job_of(Path(folder), ckpts, clips=clips, workers=workers))
        began, began_cpu = time.perf_counter(), time.process_time()
        with profile or nullcontext():
            result = render(prepared, observer=clock)
        wall_s, cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
    if result.done != clips:
        raise SystemExit(f"{result.done} of {clips} clips were rendered")
    rendering_cpu_s = clock.ended_s - clock.began_s
    found: dict[str, Any] = {
        "clips": clips,
        "workers": workers,
        "wall_s": round(wall_s, 1),
        "driver_cpu_s": round(cpu_s, 2),
        "driver_cpu_ms_per_clip": round(1000 * cpu_s / clips, 2),
        "rendering_s": round(result.seconds, 1),
        "start_cpu_s": round(clock.began_s - began_cpu, 2),
        "rendering_cpu_s": round(rendering_cpu_s, 2),
        "rendering_cpu_ms_per_clip": round(1000 * rendering_cpu_s / clips, 2),
        "end_cpu_s": round(began_cpu + cpu_s - clock.ended_s, 2),
    }
    if spent is not None:
        found["parts_ms_per_clip"] = {part: round(1000 * spent.get(part, 0.0) / clips, 2) for part in PARTS}
    return found


def main() -> None:
    """Print one measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=3000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ckpts", type=Path, default=CKPTS, help="checkpoint folder (default: that of the tests)")
    parser.add_argument("--parts", action="store_true", help="measure the parts of the driver's work, too")
    parser.add_argument("--profile", action="store_true", help="print the functions that took most of the time")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    profile = cProfile.Profile() if options.profile else None
    spent = time_parts() if options.parts else None
    found = measure(options.ckpts, clips=options.clips, workers=options.workers, profile=profile, spent=spent)
    if options.json:
        json.dump(found, sys.stdout)
    else:
        parts = found.pop("parts_ms_per_clip", {})
        print("  ".join(f"{name} {value:,}" for name, value in found.items()))
        for part, milliseconds in parts.items():
            print(f"{milliseconds:8.2f} ms a clip  {part}")
    if profile:
        pstats.Stats(profile).sort_stats("cumulative").print_stats(PROFILED)


if __name__ == "__main__":
    main()

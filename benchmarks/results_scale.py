"""Time and memory that the results of a large job take to write, to resume from and to report.

python benchmarks/results_scale.py --clips 1000000 [--json]

Rows are synthetic and videos are empty files, in a temporary folder. Each phase runs in a process of its own, so that its
peak memory is its own. The phase `import` is the baseline: a process that has only imported the package.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ovi_ray.inputs.manifest import MANIFEST_SCHEMA, Manifest
from ovi_ray.output.job_files import FAILED_COLUMNS, write_failed
from ovi_ray.output.parquet_log import ParquetLog
from ovi_ray.output.result_row import RESULTS_SCHEMA, VIDEOS
from ovi_ray.output.results import Results
from ovi_ray.protocol.progress import WorkerTime
from ovi_ray.report.html import REPORT, ReportSummary, write_report
from ovi_ray.storage.paths import to_location

BATCH_ROWS = 64 * 1024
STARTED = datetime(2026, 1, 1, tzinfo=UTC)
WORKERS = 64
FAILED_SHARE = 1000  # one clip in so many
PROMPT = "A fox runs through fresh snow and says, <S>how cold it is today, number {number:09d}<E>. " * 4


def synthetic_rows(clips: int) -> Iterator[pa.Table]:
    """Result rows, at most `BATCH_ROWS` at a time."""
    for start in range(0, clips, BATCH_ROWS):
        yield _batch(np.arange(start, min(start + BATCH_ROWS, clips)))


def _batch(numbers: np.ndarray) -> pa.Table:
    count = len(numbers)
    failed = numbers % FAILED_SHARE == 0
    ids = pa.array([f"{number:020x}" for number in numbers])
    workers = pa.array([f"w{number % WORKERS}" for number in numbers])
    prompts = pa.array([PROMPT.format(number=number) for number in numbers])
    known = {
        "clip_id": ids,
        "row": pa.array(numbers + 1),
        "text_prompt": prompts,
        "prompt": prompts,
        "seed": pa.array(numbers),
        "status": pa.array(np.where(failed, "failed", "done")),
        "error": pc.if_else(failed, "CUDA error: an illegal memory access was encountered", None),
        "video_path": pc.if_else(failed, None, pc.binary_join_element_wise("videos/", ids, ".mp4", "")),
        "worker": workers,
        "decode_worker": workers,
        "denoise_s": pa.array(60 + numbers % 100 / 10),
        "decode_s": pa.array(7 + numbers % 10 / 10),
        "encode_s": pa.array(np.full(count, 0.1)),
        "finished_at": pa.array(np.full(count, np.datetime64(STARTED.replace(tzinfo=None), "ms"))),
    }
    alike = {
        "repeat": 0,
        "model_name": "720x720_5s",
        "sample_steps": 50,
        "solver_name": "unipc",
        "height": 704,
        "width": 1280,
        "num_frames": 121,
        "num_samples": 80_000,
        "video_bytes": 0,
        "node": "node-a",
        "device": "NVIDIA H200",
        "attention_backend": "sdpa",
        "dtype": "bfloat16",
        "attempts": 1,
    }
    columns = [
        known[field.name].cast(field.type)
        if field.name in known
        else pa.repeat(pa.scalar(alike.get(field.name), field.type), count)
        for field in RESULTS_SCHEMA
    ]
    return pa.table(columns, schema=RESULTS_SCHEMA)


# -- phases, each in a process of its own ------------------------------------------------------------------------------


def write(folder: Path, clips: int) -> None:
    """Write the rows and the videos."""
    results, videos = Results(to_location(folder)), folder / VIDEOS
    log = ParquetLog(results.results, RESULTS_SCHEMA)
    for table in synthetic_rows(clips):
        log.append(table)
        for clip_id in table.filter(pc.equal(table.column("status"), "done")).column("clip_id").to_pylist():
            (videos / f"{clip_id}.mp4").touch()


def wanted(clips: int) -> pa.Array:
    """The ids of the job's manifest."""
    return pa.concat_arrays(
        pa.array([f"{number:020x}" for number in range(start, min(start + BATCH_ROWS, clips))])
        for start in range(0, clips, BATCH_ROWS)
    )


def open_again(folder: Path, clips: int) -> None:
    """The first thing that a run does: find out what is finished."""
    finished = Results(to_location(folder)).resume(wanted(clips)).finished
    expected = clips - -(-clips // FAILED_SHARE)
    if len(finished) != expected:
        raise SystemExit(f"{len(finished)} clips are finished; expected {expected}")


def report(folder: Path, clips: int) -> None:
    """The last thing that a run does: write the list of failed clips and the report."""
    ids = wanted(clips)
    others = {field.name: pa.nulls(clips, field.type) for field in MANIFEST_SCHEMA if field.name != "clip_id"}
    manifest = Manifest(table=pa.table({"clip_id": ids, **others}))
    workers = tuple(WorkerTime(worker=f"w{n}", node="node-a", device="NVIDIA H200", held_s=9.0) for n in range(WORKERS))
    summary = ReportSummary(clips=clips, finished_before=0, started_at=STARTED, seconds=3600.0, workers=workers)
    output_dir = to_location(folder)
    results = Results(output_dir)
    write_failed(output_dir, manifest, results.batches(FAILED_COLUMNS))
    write_report(output_dir, results.batches, title="scale", summary=summary, manifest=manifest.table)


def nothing(folder: Path, clips: int) -> None:
    """Only import the package."""


PHASES: dict[str, Callable[[Path, int], None]] = {
    "import": nothing,
    "write": write,
    "open": open_again,
    "report": report,
}


def measure_phase(name: str, folder: Path, clips: int) -> dict[str, float]:
    """Wall and processor seconds of a phase, and the peak memory of this process in MiB."""
    begin, begin_cpu = time.perf_counter(), time.process_time()
    PHASES[name](folder, clips)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {f"{name}_s": round(seconds, 2), f"{name}_cpu_s": round(cpu, 2), f"{name}_peak_mib": round(peak, 1)}


def measure(clips: int) -> dict[str, float]:
    """Every phase, each in a process of its own."""
    found: dict[str, float] = {"clips": clips}
    with tempfile.TemporaryDirectory(prefix="results-scale-") as folder:
        for name in PHASES:
            command = [sys.executable, __file__, "--clips", str(clips), "--phase", name, "--folder", folder]
            found |= json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        found["page_mib"] = round((Path(folder) / REPORT).stat().st_size / 2**20, 2)
    return found


def main() -> None:
    """Print one measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.phase:
        json.dump(measure_phase(options.phase, options.folder, options.clips), sys.stdout)
        return
    found = measure(options.clips)
    if options.json:
        json.dump(found, sys.stdout)
    else:
        print("  ".join(f"{name} {value:,}" for name, value in found.items()))


if __name__ == "__main__":
    main()

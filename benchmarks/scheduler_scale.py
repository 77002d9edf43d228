"""Decisions per second of the scheduler, driven by the simulator, on the device mix of cluster/profiles/d.yaml.

python benchmarks/scheduler_scale.py --clips 1000000 --devices 1000 [--json]
python benchmarks/scheduler_scale.py --sweep out.svg      # 10^3 to 10^6 clips, as a plot
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

from yardsticks.scenarios import make_workload

from ovi_ray.inputs.cluster_profile import read_profile
from ovi_ray.simulation.virtual_cluster import VirtualDevice, simulate, virtual_devices

PROFILE = Path(__file__).parents[1] / "cluster" / "profiles" / "d.yaml"
SWEEP = (1_000, 10_000, 100_000, 1_000_000)


def mixed_devices(count: int) -> list[VirtualDevice]:
    """`count` devices in the proportions of cluster d."""
    devices = virtual_devices(read_profile(PROFILE))
    chosen = [devices[i * len(devices) // count % len(devices)] for i in range(count)]
    return [VirtualDevice(name=f"{d.profile.name}-{i}", profile=d.profile) for i, d in enumerate(islice(chosen, count))]


def measure(clips: int, devices: int) -> dict[str, float]:
    """Simulate one job and report speed and memory."""
    workload = make_workload(clips)
    cluster = mixed_devices(devices)
    begin = time.perf_counter()
    outcome = simulate(workload, cluster)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "clips": clips,
        "devices": devices,
        "seconds": round(seconds, 2),
        "peak_rss_mib": round(peak, 1),
        "decisions": outcome.decisions,
        "decisions_per_s": round(outcome.decisions / seconds),
        "makespan_s": round(outcome.makespan_s, 1),
    }


def sweep(path: Path, devices: int) -> list[dict[str, float]]:
    """Measure each size in a process of its own and plot decisions per second."""
    rows = []
    for clips in SWEEP:
        command = [sys.executable, __file__, "--clips", str(clips), "--devices", str(devices), "--json"]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    path.write_text(_svg(rows), encoding="utf-8")
    return rows


def _svg(rows: list[dict[str, float]]) -> str:
    width, height, left, floor = 640, 320, 80, 270
    top = 1.2 * max(row["decisions_per_s"] for row in rows)
    points = [
        (left + i * (width - left - 40) / (len(rows) - 1), floor - row["decisions_per_s"] / top * 220)
        for i, row in enumerate(rows)
    ]
    line = " ".join(f"{x:.0f},{y:.0f}" for x, y in points)
    labels = "".join(
        f'<circle cx="{x:.0f}" cy="{y:.0f}" r="4"/><text x="{x:.0f}" y="{y - 10:.0f}">{row["decisions_per_s"]:,.0f}</text>'
        f'<text x="{x:.0f}" y="{floor + 20}">{row["clips"]:,.0f}</text>'
        for (x, y), row in zip(points, rows, strict=True)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13"'
        f' text-anchor="middle"><rect width="{width}" height="{height}" fill="white"/>'
        f'<text x="{width / 2}" y="24">decisions per second by clips, {rows[0]["devices"]:,.0f} devices</text>'
        f'<line x1="{left - 30}" y1="{floor}" x2="{width - 20}" y2="{floor}" stroke="black"/>'
        f'<polyline points="{line}" fill="none" stroke="#1f6feb" stroke-width="2"/>{labels}</svg>\n'
    )


def main() -> None:
    """Print one measurement, or those of a sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--devices", type=int, default=1_000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--sweep", type=Path, metavar="SVG", help="measure 10^3 to 10^6 clips and plot them here")
    options = parser.parse_args()
    rows = sweep(options.sweep, options.devices) if options.sweep else [measure(options.clips, options.devices)]
    if options.json:
        json.dump(rows if options.sweep else rows[0], sys.stdout)
        return
    for row in rows:
        print("  ".join(f"{name} {value:,}" for name, value in row.items()))


if __name__ == "__main__":
    main()

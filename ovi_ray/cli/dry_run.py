"""`ovi-ray render --dry-run`, and how bad rows are shown."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ovi.quality import Quality
from ovi_ray.answers import answer
from ovi_ray.errors import InputError
from ovi_ray.printing import Console, counted
from ovi_ray.report.durations import format_duration

if TYPE_CHECKING:
    from ovi_ray.dry_run import DryRun
    from ovi_ray.inputs.bad_rows import BadRow
    from ovi_ray.preparation import PreparedJob


def show_dry_run(prepared: "PreparedJob", console: Console, *, as_json: bool, **choice: Any) -> "DryRun":
    """Print what a run would do, as JSON if asked for; `choice` are options of `dry_run`, which says what is raised."""
    from ovi_ray.dry_run import dry_run

    would = dry_run(prepared, **choice)
    for note in would.notes:
        console.print(f"note: {note}", soft_wrap=True)
    print_bad_rows(would.bad_rows, console)
    if as_json:
        answer(json.dumps(_as_json(would)))
    else:
        _show(would, Console())
    return would


def quality_line(qualities: Mapping[Quality, int]) -> str:
    """Number of clips of each quality, in words; empty where all are exact."""
    if not set(qualities) - {Quality.EXACT}:
        return ""
    return "quality " + ", ".join(f"{quality}: {counted(count, 'clip')}" for quality, count in qualities.items())


def print_bad_rows(bad_rows: "Sequence[BadRow]", console: Console) -> None:
    """Every problem of the rows that are left out."""
    if bad_rows:
        console.print(str(InputError([problem for bad in bad_rows for problem in bad.problems])), soft_wrap=True)


def _as_json(would: "DryRun") -> dict[str, Any]:
    planned = would.forecast
    rejected = [{"row": bad.row, "line": bad.line, "reason": bad.reason} for bad in would.bad_rows]
    return {
        **{name: getattr(would, name) for name in ("clips", "new", "finished", "left", "superseded", "notes")},
        "qualities": would.qualities,
        "bad_rows": len(rejected),
        "rejected": rejected,
        "eta_s": None if planned is None else planned.eta_s,
        "cost": None if planned is None else planned.cost,
        "currency": None if planned is None else planned.currency,
        "classes": [] if planned is None else [asdict(part) for part in planned.classes],
        "pace": [asdict(pace) for pace in would.pace],
    }


def _show(would: "DryRun", console: Console) -> None:
    left = f", {would.left:,} left for later" if would.left else ""
    console.print(
        f"{would.new:,} new, {would.finished:,} finished, {would.superseded:,} superseded,"
        f" {counted(len(would.bad_rows), 'bad row')}{left}",
        soft_wrap=True,
    )
    if line := quality_line(would.qualities):
        console.print(line)
    if would.forecast is not None:
        planned = would.forecast
        console.print(f"time {format_duration(planned.eta_s)}, {planned.clips_per_hour:.1f} clips an hour")
        for part in planned.classes:
            cost = "no price" if part.cost is None else f"{part.cost:.2f} {planned.currency}"
            console.print(f"{part.count} x {part.name}: {part.device_hours:.2f} device-hours, {cost}", soft_wrap=True)
        if planned.cost is not None:
            console.print(f"cost {planned.cost:.2f} {planned.currency}")
    elif would.new:
        for pace in would.pace:
            quality = "" if pace.quality == Quality.EXACT else f" of quality {pace.quality}"
            took = f"which took {pace.seconds:.1f} s a clip{quality} here"
            console.print(f"{pace.device_hours:.2f} device-hours at the pace of {pace.device}, {took}", soft_wrap=True)
        console.print("--cluster PROFILE forecasts time and cost by device class", soft_wrap=True)

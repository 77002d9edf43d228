"""Finished clips of an output folder, for readers that change nothing there."""

from collections.abc import Sequence
from typing import Any

from ovi_ray.output.results import read_rows
from ovi_ray.scheduling.task import ClipStatus
from ovi_ray.storage.paths import Location


def finished_rows(output_dir: Location, columns: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Clip id -> the named columns of the row that says it is done. Raises ResultsTooNew and OSError."""
    table = read_rows(output_dir, ["clip_id", "status", *columns])
    return {row["clip_id"]: row for row in table.to_pylist() if row["status"] == ClipStatus.DONE}

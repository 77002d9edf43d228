"""Prompt lists for jobs, and what jobs leave in their output folders."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet

from ovi.media.probe import MediaInfo, probe

NUM_FRAMES, FPS, SAMPLE_RATE = 9, 24.0, 16_000
"""Of every clip of the small golden checkpoint."""


def write_prompts(path: Path, *rows: Mapping[str, str]) -> Path:
    """Write a prompt list in CSV with the columns that the rows use."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    return path


def result_rows(output_dir: Path) -> list[dict[str, Any]]:
    """The results of a job in the order of its prompt list."""
    table = pyarrow.parquet.read_table(output_dir / "results")
    return table.sort_by([("row", "ascending"), ("repeat", "ascending")]).to_pylist()


def probe_clip(path: Path) -> MediaInfo:
    """The facts of a video, once its length, its rate and its sound are checked."""
    info = probe(path)
    assert (info.num_frames, info.fps, info.sample_rate) == (NUM_FRAMES, FPS, SAMPLE_RATE)
    return info

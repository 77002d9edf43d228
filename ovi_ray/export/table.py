"""The CSV of an export: a row a clip, in the order of the list."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovi.config import FRAMES_PER_SECOND
from ovi.files import atomic_writer
from ovi_ray.inputs.columns import is_meta

if TYPE_CHECKING:
    from ovi_ray.export.writing import ExportedClip

_INTERNAL = ("video_latent_length", "audio_latent_length", "image_sha256", "prompt")


def write_table(path: Path, folder: Path, exported: "Sequence[ExportedClip]") -> None:
    """Write the table. Paths in it are relative to `folder`. Raises OSError."""
    rows = [_row(clip, folder) for clip in exported]
    names = dict.fromkeys(name for row in rows for name in row)
    ordered = [*(name for name in names if not is_meta(name)), *filter(is_meta, names)]
    with atomic_writer(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ordered)
        writer.writeheader()
        writer.writerows(rows)


def _row(clip: "ExportedClip", folder: Path) -> Mapping[str, Any]:
    planned = clip.planned
    paths = {"file": planned.video, "sound": planned.sound, "frames": planned.frames}
    columns = {name: value for name, value in planned.clip.row.items() if name not in _INTERNAL}
    num_frames = columns["num_frames"]
    return {
        **{name: path.relative_to(folder).as_posix() for name, path in paths.items() if path is not None},
        "source": clip.source,
        **columns,
        "seconds": None if num_frames is None else round(num_frames / FRAMES_PER_SECOND, 3),
    }

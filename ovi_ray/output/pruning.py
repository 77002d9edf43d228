"""Removing superseded clips: finished ones that the list of the last run does not ask for."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from ovi_ray.errors import InputError, Problem
from ovi_ray.inputs.manifest import Manifest
from ovi_ray.output.intermediates import Intermediates
from ovi_ray.output.job_files import MANIFEST
from ovi_ray.output.picks import Picks
from ovi_ray.output.results import Results, read_rows
from ovi_ray.scheduling.task import ClipStatus
from ovi_ray.storage.paths import Location


@dataclass(kw_only=True, slots=True, frozen=True)
class Superseded:
    """The superseded clips of an output folder."""

    clip_ids: pa.StringArray
    bytes: int
    """Of their videos."""
    starred: int
    """Those of them that are in the folder's `picks.csv`."""

    def __len__(self) -> int:
        return len(self.clip_ids)


def superseded_clips(output_dir: Location) -> Superseded:
    """Read, without changing anything, which clips are superseded.

    Raises InputError where no job was rendered or the picks cannot be read, and OSError.
    """
    if not (output_dir / MANIFEST).exists():
        expected = "the output folder of a job, with the manifest that `ovi-ray render` wrote"
        raise InputError([Problem(file=str(output_dir / MANIFEST), value="missing", expected=expected)])
    manifest = Manifest.read(output_dir / MANIFEST).table
    rows = read_rows(output_dir, ["clip_id", "status", "video_bytes"])
    is_done = pc.equal(rows.column("status"), ClipStatus.DONE)
    is_wanted = pc.is_in(rows.column("clip_id"), value_set=manifest.column("clip_id"))
    rows = rows.filter(pc.and_not(is_done, is_wanted)).group_by("clip_id").aggregate([("video_bytes", "max")])
    starred = pa.array([pick.clip_id for pick in Picks.starred(output_dir).rows], pa.string())
    return Superseded(
        clip_ids=rows.column("clip_id").combine_chunks(),
        bytes=pc.sum(rows.column("video_bytes_max")).as_py() or 0,
        starred=pc.sum(pc.is_in(rows.column("clip_id"), value_set=starred)).as_py() or 0,
    )


def prune(output_dir: Location, clips: Superseded) -> None:
    """Remove the files and the rows of superseded clips, in a folder that is locked. Raises OSError.

    The rows go last, so that what is stopped on the way is finished by the next call.
    """
    results, intermediates = Results(output_dir), Intermediates(output_dir=output_dir)
    for clip_id in clips.clip_ids.to_pylist():
        results.video_path(clip_id).unlink(missing_ok=True)
        results.poster_path(clip_id).unlink(missing_ok=True)
        intermediates.remove(clip_id)
    results.drop(clips.clip_ids)

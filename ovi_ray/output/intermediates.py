"""Intermediate files of clips that are not finished, so that no work is done twice after a stop or a crash.

OUT/latents/<clip_id>.safetensors      a finished denoise, until its video is committed
OUT/checkpoints/<clip_id>.safetensors  a half-finished denoise, until it is finished
"""

from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from ovi_ray.storage.paths import Location, list_files, remove_unfinished

LATENTS = "latents"
CHECKPOINTS = "checkpoints"
CHECKPOINT_S = 60.0
"""Default of `Intermediates.checkpoint_s`."""
_SUFFIX = ".safetensors"


@dataclass(kw_only=True, slots=True, frozen=True)
class Intermediates:
    """The intermediate files of a job, and how long they are kept."""

    output_dir: Location
    keep_latents: bool = False
    """Latents stay after their video is committed."""
    checkpoint_s: float = CHECKPOINT_S
    """Seconds of denoising between two checkpoints of a clip: the work that a lost worker costs."""

    def prepare(self) -> None:
        """Create the folders and remove what killed processes left half written."""
        for folder in self.folders:
            folder.mkdir()
        self.remove_unfinished()

    @property
    def folders(self) -> tuple[Location, Location]:
        """The folders of the files."""
        return self.output_dir / LATENTS, self.output_dir / CHECKPOINTS

    def remove_unfinished(self) -> None:
        """Remove what killed processes left half written. Raises OSError."""
        for folder in self.folders:
            remove_unfinished(folder)

    def latents_path(self, clip_id: str) -> Location:
        """The file of a clip's latents."""
        return self.output_dir / LATENTS / f"{clip_id}{_SUFFIX}"

    def checkpoint_path(self, clip_id: str) -> Location:
        """The file of a clip's half-finished denoise."""
        return self.output_dir / CHECKPOINTS / f"{clip_id}{_SUFFIX}"

    def with_latents(self) -> pa.StringArray:
        """Ids of the clips that have latents."""
        return _ids(self.output_dir / LATENTS)

    def clip_ids(self) -> pa.StringArray:
        """Ids of the clips that have any file here; an id may occur twice."""
        return pa.concat_arrays([_ids(self.output_dir / folder) for folder in (LATENTS, CHECKPOINTS)])

    def remove_committed(self, clip_id: str) -> None:
        """Remove what a clip no longer needs once its video is committed; what storage refuses, the next run removes."""
        with suppress(OSError):
            self.checkpoint_path(clip_id).unlink(missing_ok=True)
            if not self.keep_latents:
                self.latents_path(clip_id).unlink(missing_ok=True)

    def remove(self, clip_id: str) -> None:
        """Remove all files of a clip, which is then rendered from the beginning. Raises OSError."""
        self.checkpoint_path(clip_id).unlink(missing_ok=True)
        self.latents_path(clip_id).unlink(missing_ok=True)

    def remove_all_committed(self, finished: pa.Array) -> None:
        """Remove what an earlier run left of finished clips. `finished` are their ids."""
        for folder in (LATENTS, CHECKPOINTS):
            ids = _ids(self.output_dir / folder)
            for clip_id in ids.filter(pc.is_in(ids, value_set=finished)).to_pylist():
                self.remove_committed(clip_id)


def _ids(folder: Location) -> pa.StringArray:
    names = list_files(folder, _SUFFIX).column("name").combine_chunks()
    return pc.utf8_slice_codeunits(names, 0, -len(_SUFFIX))

"""What is kept of clips that are under way, so that no finished work is done twice.

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
_SUFFIX = ".safetensors"


@dataclass(kw_only=True, slots=True, frozen=True)
class Intermediates:
    """Where the latents of a job are kept, and for how long."""

    output_dir: Location
    for_good: bool = False
    """Latents stay when their video is committed."""
    checkpoint_s: float = CHECKPOINT_S
    """Seconds of denoising after which a clip that is not finished is saved, again and again: what a lost worker costs."""

    def prepare(self) -> None:
        """Make the folders and remove what killed processes left half written."""
        for folder in (self.output_dir / LATENTS, self.output_dir / CHECKPOINTS):
            folder.mkdir(parents=True, exist_ok=True)
            remove_unfinished(folder)

    def latents_path(self, clip_id: str) -> Location:
        """Where a clip's latents lie."""
        return self.output_dir / LATENTS / f"{clip_id}{_SUFFIX}"

    def checkpoint_path(self, clip_id: str) -> Location:
        """Where a clip's half-finished denoise lies."""
        return self.output_dir / CHECKPOINTS / f"{clip_id}{_SUFFIX}"

    def with_latents(self) -> pa.StringArray:
        """Ids of the clips whose latents are there."""
        return _ids(self.output_dir / LATENTS)

    def known(self) -> pa.StringArray:
        """Ids of the clips of which anything is kept."""
        return pa.concat_arrays([_ids(self.output_dir / folder) for folder in (LATENTS, CHECKPOINTS)])

    def committed(self, clip_id: str) -> None:
        """The clip's video is there: its latents have served."""
        with suppress(OSError):  # storage out of reach: the next run removes what is left
            self.checkpoint_path(clip_id).unlink(missing_ok=True)
            if not self.for_good:
                self.latents_path(clip_id).unlink(missing_ok=True)

    def forget(self, clip_id: str) -> None:
        """The clip is rendered from the beginning."""
        self.checkpoint_path(clip_id).unlink(missing_ok=True)
        self.latents_path(clip_id).unlink(missing_ok=True)

    def sweep(self, finished: pa.Array) -> None:
        """Remove what an earlier run left of clips that are finished."""
        for folder in (LATENTS, CHECKPOINTS):
            ids = _ids(self.output_dir / folder)
            for clip_id in ids.filter(pc.is_in(ids, value_set=finished)).to_pylist():
                self.committed(clip_id)


def _ids(folder: Location) -> pa.StringArray:
    names = list_files(folder, _SUFFIX).column("name").combine_chunks()
    return pc.utf8_slice_codeunits(names, 0, -len(_SUFFIX))

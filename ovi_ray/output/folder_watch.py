"""Whether an output folder is still the job's own, and can be written where the job writes."""

from collections.abc import Callable
from dataclasses import dataclass

from ovi_ray.output.intermediates import CHECKPOINTS, LATENTS
from ovi_ray.output.job_files import JOB_FILE, read_token
from ovi_ray.output.result_row import VIDEOS
from ovi_ray.output.results import POSTERS, RESULTS, UNFINISHED
from ovi_ray.storage.paths import Location

_NEEDED = (RESULTS, VIDEOS)
"""Folders that hold what was rendered: nothing can replace them."""
_REPLACEABLE = (POSTERS, LATENTS, CHECKPOINTS, UNFINISHED)
_PROBED = (VIDEOS, LATENTS, CHECKPOINTS)
"""Folders that workers write to, and need. Rows need no probe: those that wait are written instead."""


@dataclass(kw_only=True, slots=True, frozen=True)
class FolderWatch:
    """Looks at an output folder while a job renders into it."""

    output_dir: Location
    token: str
    """Of the folder, as the run that renders found it; "" accepts any."""
    probe: Callable[[Location], str]
    """Test write: the reason why a folder cannot be written to, or an empty string."""

    def missing(self) -> str:
        """The reason why the folder is not the job's any more: unmounted, removed or replaced; "" if it is. Raises OSError."""
        found = read_token(self.output_dir) if self.token else ""
        if found != self.token:
            return f"it is the folder of another job now ({JOB_FILE} differs)" if found else f"{JOB_FILE} is not there"
        gone = [name for name in _NEEDED if self.output_dir.is_local and not (self.output_dir / name).is_dir()]
        return f"{' and '.join(gone)} {'is' if len(gone) == 1 else 'are'} not there" if gone else ""

    def write_problem(self) -> str:
        """Why workers cannot write; "" when they can. Folders whose content can be made again are created if missing."""
        try:
            for name in _REPLACEABLE:
                (self.output_dir / name).mkdir()
        except OSError as error:
            return error.strerror or str(error)
        problems = ((name, self.probe(self.output_dir / name)) for name in _PROBED)
        return next((f"{name}: {problem}" for name, problem in problems if problem), "")

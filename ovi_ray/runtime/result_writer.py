"""Writes the row of each clip that ends. Storage that fails pauses the job; no row is lost."""

from collections.abc import Callable
from dataclasses import dataclass

from ovi_ray.inputs.columns import place_in_list
from ovi_ray.inputs.task_table import TaskTable
from ovi_ray.output.intermediates import Intermediates
from ovi_ray.output.results import Results
from ovi_ray.protocol.progress import ClipEnded
from ovi_ray.runtime.clip_records import ClipRecords
from ovi_ray.runtime.storage_pause import StoragePause
from ovi_ray.scheduling.actions import Finish
from ovi_ray.scheduling.task import ClipStatus
from ovi_ray.storage.diagnostics import reason_with_file


@dataclass(kw_only=True, slots=True, frozen=True)
class ResultWriter:
    """The rows of one run. Rows that cannot be written wait for the next flush."""

    tasks: TaskTable
    results: Results
    intermediates: Intermediates
    clips: ClipRecords
    pause: StoragePause
    message: Callable[[str], None]

    def finish(self, end: Finish, now: float) -> ClipEnded:
        """Append a clip's row, and release its intermediate files once its video is there."""
        clip = self.tasks.clip(end.clip)
        row = self.clips.row(clip, end)
        try:
            self.results.append(row)
        except OSError as error:
            self._pause(error, now)
        if end.status is ClipStatus.DONE:
            self.intermediates.remove_committed(clip.clip_id)
        return ClipEnded(
            clip_id=clip.clip_id,
            place=", ".join(filter(None, [place_in_list(clip.row, clip.line), clip.varied])),
            status=end.status,
            error=end.error,
            video_path=row["video_path"],
        )

    def flush_if_due(self, now: float) -> None:
        """Write rows that have waited for a few seconds."""
        if self.pause.output_is_missing:
            return
        try:
            self.results.flush_if_due()
        except OSError as error:
            self._pause(error, now)

    def flush(self, now: float) -> bool:
        """Write all rows. False if storage failed."""
        if self.pause.output_is_missing:
            return False
        try:
            self.results.flush()
        except OSError as error:
            self._pause(error, now)
            return False
        return True

    def close(self) -> None:
        """Write what is left at the end of the run, as far as possible."""
        if self.pause.output_is_missing:
            return
        try:
            self.results.close()
        except OSError as error:
            self.message(
                f"rows of finished clips cannot be written ({error}); the next run recovers them from the videos"
            )

    def _pause(self, error: OSError, now: float) -> None:
        self.pause.begin(reason_with_file(error), now)


def write_rows(results: Results) -> str:
    """Write the rows that wait: why that failed, or an empty string."""
    try:
        results.flush()
    except OSError as error:
        return reason_with_file(error)
    return ""

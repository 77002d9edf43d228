"""Writes the files of an export, a clip after the other."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ovi.device_errors import is_out_of_memory
from ovi.errors import OviError
from ovi.files import atomic_writer, unfinished_path
from ovi.media.codecs import VideoCodec
from ovi.media.reading import rgb_pixels
from ovi.media.video import VideoWriter, write_wav
from ovi_ray.errors import LatentsUnusable, OviRayError
from ovi_ray.export.options import ExportOptions, Source
from ovi_ray.export.planning import ExportPlan, PlannedFiles
from ovi_ray.export.sources import LatentsReader, Material, VideoMaterial
from ovi_ray.export.table import write_table
from ovi_ray.storage.paths import local_copy
from ovi_ray.workers.oom_fallback import DECODE_STEPS, FallbackStep, run_with_fallback

_PNG_COMPRESSION = 3  # a third larger than the smallest, and several times as fast
_DEEP_CODECS = (VideoCodec.PRORES,)
"""Codecs that keep more than 8 bits."""


@dataclass(kw_only=True, slots=True, frozen=True)
class ExportedClip:
    """A clip whose files are written."""

    planned: PlannedFiles
    source: Source
    """The source of frames and sound; VIDEO also for a file that was copied or linked."""
    is_linked: bool


@dataclass(kw_only=True, slots=True, frozen=True)
class ExportResult:
    """Clips that were exported, and those that failed."""

    exported: tuple[ExportedClip, ...]
    failed: tuple[tuple[PlannedFiles, str], ...]
    """Clips without files, with the reason."""


def export(
    plan: ExportPlan,
    options: ExportOptions,
    reader: LatentsReader | None,
    *,
    tell: Callable[[str], None] = lambda text: None,
    on_clip_end: Callable[[], None] = lambda: None,
) -> ExportResult:
    """Write the files. A clip that fails is told, and the others go on. `reader` is needed for clips from latents.

    Raises OSError where the table cannot be written.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    exported, failed = [], []
    for planned in plan.clips:
        try:
            exported.append(_Exporter(options, reader, tell).export(planned))
        except (OviError, OviRayError, OSError) as error:
            failed.append((planned, str(error)))
            tell(f"row {planned.clip.row['row']}: {planned.name} was not written: {error}")
        on_clip_end()
    if plan.table is not None:
        write_table(plan.table, plan.folder, exported)
    return ExportResult(exported=tuple(exported), failed=tuple(failed))


@dataclass(slots=True, frozen=True)
class _Exporter:
    options: ExportOptions
    reader: LatentsReader | None
    tell: Callable[[str], None]

    def export(self, planned: PlannedFiles) -> ExportedClip:
        planned.video.parent.mkdir(parents=True, exist_ok=True)
        with local_copy(planned.clip.video) as video:
            _check_size(video, planned.clip.video_bytes)
            material, source = self._material(planned, video)
            is_linked = False
            if self.options.codec is None:
                is_linked = _link_or_copy(video, planned.video, link=self.options.link)
            if planned.sound is not None and (sound := material.sound()) is not None:
                write_wav(planned.sound, *sound, audio_rate=self.options.audio_rate)
            if self.options.codec is not None or planned.frames is not None:
                self._write_frames(planned, material)
        return ExportedClip(planned=planned, source=source, is_linked=is_linked)

    def _material(self, planned: PlannedFiles, video: Path) -> tuple[Material, Source]:
        """Frames and sound, and what they are made from. Latents that cannot be used are told."""
        clip = planned.clip
        if planned.from_latents and self.reader is not None and clip.latents is not None:
            try:
                is_deep = self.options.codec in _DEEP_CODECS
                return self.reader.material(clip.latents, clip.row, is_deep=is_deep), Source.LATENTS
            except LatentsUnusable as error:
                self.tell(f"row {clip.row['row']}: {planned.name} is made from the MP4: {error}")
        return VideoMaterial(path=video), Source.VIDEO

    def _write_frames(self, planned: PlannedFiles, material: Material) -> None:
        run_with_fallback(DECODE_STEPS, lambda step: self._write_frames_once(planned, material, step), is_out_of_memory)

    def _write_frames_once(self, planned: PlannedFiles, material: Material, step: FallbackStep) -> None:
        frames = material.frames(step.tiling)
        with _stills(planned) as write_still:
            if self.options.codec is None:
                for frame in frames:
                    write_still(rgb_pixels(frame))
                return
            sound = material.sound()
            with VideoWriter(
                planned.video,
                audio=None if sound is None else sound[0],
                sample_rate=self.options.audio_rate if sound is None else sound[1],
                audio_rate=self.options.audio_rate,
                title=str(planned.clip.row["text_prompt"]),
                parameters=planned.clip.row,
                codec=self.options.codec,
                preset="slow",
                crf=self.options.crf,
                num_frames=planned.clip.row["num_frames"],
            ) as writer:
                for frame in frames:
                    if planned.frames is not None:
                        write_still(rgb_pixels(frame))
                    writer.write_frame(frame)


@contextmanager
def _stills(planned: PlannedFiles) -> Iterator[Callable[..., None]]:
    """A function that writes the next still. The folder appears, or is replaced in part, when the block succeeds."""
    if planned.frames is None:
        yield lambda pixels: None
        return
    unfinished, count = unfinished_path(planned.frames), 0
    unfinished.mkdir()

    def write(pixels: object) -> None:
        nonlocal count
        count += 1
        name = f"{planned.video.stem}.{count:04}.png"
        Image.fromarray(pixels).save(unfinished / name, compress_level=_PNG_COMPRESSION)  # type: ignore[arg-type]

    try:
        yield write
        planned.frames.mkdir(exist_ok=True)
        for still in sorted(unfinished.iterdir()):
            still.replace(planned.frames / still.name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _check_size(video: Path, expected: int | None) -> None:
    """Raises OSError for a video that is missing, or another than the one whose row was written."""
    size = video.stat().st_size
    if expected is not None and size != expected:
        raise OSError(f"{video}: has {size} bytes; expected {expected}: `ovi-ray render --verify` renders it again")


def _link_or_copy(video: Path, target: Path, *, link: bool) -> bool:
    """Whether `target` is the same file now, rather than a copy, which it is where the file system has no such links."""
    if link:
        unfinished = unfinished_path(target)
        try:
            os.link(video, unfinished)
            unfinished.replace(target)  # does nothing where it is the same file already
            return True
        except OSError:
            pass
        finally:
            unfinished.unlink(missing_ok=True)
    with atomic_writer(target) as copy:
        shutil.copy2(video, copy)
    return False

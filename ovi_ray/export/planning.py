"""The files of an export and the source of each. Everything is checked before the first one is written."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ovi.media.codecs import FILE_FORMS
from ovi_ray.errors import COMMAND_LINE, InputError, Problem, show_path
from ovi_ray.export.names import NameTemplate, names_of
from ovi_ray.export.options import ExportOptions, Source
from ovi_ray.export.selection import ExportClip, Selection
from ovi_ray.output.intermediates import CHECKPOINTS, LATENTS
from ovi_ray.output.result_row import VIDEOS
from ovi_ray.output.results import POSTERS, RESULTS
from ovi_ray.storage.paths import Location

TABLE = "clips.csv"
_COPIED_SUFFIX = ".mp4"
_MAX_EXISTING_SHOWN = 5
_OWN = (VIDEOS, POSTERS, RESULTS, LATENTS, CHECKPOINTS)
"""Folders of an output folder."""


@dataclass(kw_only=True, slots=True, frozen=True)
class PlannedFiles:
    """The files of a clip, each None where it is not asked for."""

    clip: ExportClip
    name: str
    video: Path
    sound: Path | None
    frames: Path | None
    """Folder of numbered stills."""
    from_latents: bool
    """Whether frames and sound are decoded from the kept latents rather than from the MP4."""

    @property
    def files(self) -> Iterator[Path]:
        """All of them."""
        yield from (path for path in (self.video, self.sound, self.frames) if path is not None)


@dataclass(kw_only=True, slots=True, frozen=True)
class ExportPlan:
    """The files of an export."""

    folder: Path
    clips: tuple[PlannedFiles, ...]
    table: Path | None


def plan_export(
    selection: Selection, folder: Path, options: ExportOptions, tell: Callable[[str], None] = lambda text: None
) -> ExportPlan:
    """Names and sources of the files of the selected clips. Nothing is written.

    Raises InputError for names that cannot be told apart, files that exist already, and latents that were not kept.
    """
    suffix = _COPIED_SUFFIX if options.codec is None else FILE_FORMS[options.codec].suffix
    template = NameTemplate.parse(options.name, selection.columns, suffixes=(suffix,))
    names = names_of(template, [clip.row for clip in selection.clips])
    clips = tuple(
        PlannedFiles(
            clip=clip,
            name=name,
            video=folder / f"{name}{suffix}",
            sound=folder / f"{name}.wav" if options.wav else None,
            frames=folder / f"{name}_frames" if options.png else None,
            from_latents=options.decodes and options.source is not Source.VIDEO and clip.latents is not None,
        )
        for clip, name in zip(selection.clips, names, strict=True)
    )
    plan = ExportPlan(folder=folder, clips=clips, table=folder / TABLE if options.csv else None)
    problems = [*_folder_problems(plan, selection.out), *_latents_problems(selection.clips, options)]
    if not options.overwrite:
        problems += _existing_problems(plan)
    if problems:
        raise InputError(problems)
    if options.decodes:
        tell(_told_sources(clips, options))
    return plan


def _told_sources(clips: Sequence[PlannedFiles], options: ExportOptions) -> str:
    from_latents = sum(clip.from_latents for clip in clips)
    rest = len(clips) - from_latents
    parts = [f"{from_latents} from kept latents"] * bool(from_latents)
    why = "" if options.source is Source.VIDEO else ", whose latents were not kept (`ovi-ray render --keep-latents`)"
    parts += [f"{rest} from the MP4{why}"] * bool(rest)
    return f"frames and sound: {', '.join(parts) or 'of no clip'}"


def _folder_problems(plan: ExportPlan, out: Location) -> Iterator[Problem]:
    """A file where a folder must be, or a folder that is the job's own."""
    for folder in sorted({plan.folder, *(clip.video.parent for clip in plan.clips)}):
        blocking = next((path for path in (folder, *folder.parents) if path.exists()), folder)
        if not blocking.is_dir():
            yield Problem(file=COMMAND_LINE, field="DIR", value=f"{show_path(blocking)}, a file", expected="a folder")
    job, folder = out.local_path, plan.folder.resolve()
    if job is not None and (folder == job.resolve() or any(folder.is_relative_to(job.resolve() / own) for own in _OWN)):
        expected = "a folder of its own, such as one beside it: what is in there, `ovi-ray render` writes and removes"
        value = f"{show_path(plan.folder)}, a folder of the job"
        yield Problem(file=COMMAND_LINE, field="DIR", value=value, expected=expected)


def _latents_problems(clips: Sequence[ExportClip], options: ExportOptions) -> Iterator[Problem]:
    without = [clip for clip in clips if clip.latents is None]
    if options.source is Source.LATENTS and without:
        rows = ", ".join(dict.fromkeys(str(clip.row["row"]) for clip in without))
        expected = "video or auto for clips whose latents were not kept"
        yield Problem(file=COMMAND_LINE, field="--source", value=f"latents, for rows {rows}", expected=expected)


def _existing_problems(plan: ExportPlan) -> Iterator[Problem]:
    planned = (path for clip in plan.clips for path in clip.files)
    existing = [path for path in (*planned, *([plan.table] if plan.table else [])) if path.exists()]
    if not existing:
        return
    shown = ", ".join(path.relative_to(plan.folder).as_posix() for path in existing[:_MAX_EXISTING_SHOWN])
    more = f" and {len(existing) - _MAX_EXISTING_SHOWN} more" if len(existing) > _MAX_EXISTING_SHOWN else ""
    value = f"{show_path(plan.folder)}, where {shown}{more} exist{'s' if len(existing) == 1 else ''} already"
    yield Problem(file=COMMAND_LINE, field="DIR", value=value, expected="another folder, or --overwrite")

"""`ovi-ray export`: finished clips as files with names, for people and editors."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ovi.errors import OviError
from ovi.media.codecs import VideoCodec
from ovi_ray.answers import answer
from ovi_ray.cli.common import ExitCode, command_console, local_path, location, refuse, unused
from ovi_ray.cli.options import LOCATION, DisplayOptions, with_display_options
from ovi_ray.errors import COMMAND_LINE, InputError, OviRayError, Problem
from ovi_ray.export.options import DEFAULT_CRF, DEFAULT_NAME, EDITING_RATE, ExportOptions, Source
from ovi_ray.printing import Console, counted
from ovi_ray.storage.diagnostics import usable

if TYPE_CHECKING:
    from ovi_ray.export.planning import ExportPlan
    from ovi_ray.export.selection import Selection
    from ovi_ray.export.sources import LatentsReader
    from ovi_ray.export.writing import ExportResult

FILES, MASTERS = "Which files", "How they are encoded"
RATES = (8_000, 192_000)

Out = Annotated[str, typer.Argument(metavar="OUT", help="Output folder of a job: a path or a URI.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the files; it is created.")]
Name = Annotated[
    str,
    typer.Option(
        metavar="TEMPLATE",
        help="Name of each clip, without its suffix: columns of the manifest and of the list's own `meta_` in braces, with a"
        " format where one is wanted; `/` begins a folder.",
        rich_help_panel=FILES,
    ),
]
Pick = Annotated[
    str | None,
    typer.Option(
        metavar=LOCATION, help="Only these clips: a CSV with a column clip_id. [default: all]", rich_help_panel=FILES
    ),
]
Csv = Annotated[
    bool, typer.Option("--csv", help="Write clips.csv, a row a clip. [default: off]", rich_help_panel=FILES)
]
Wav = Annotated[
    bool, typer.Option("--wav", help="Write the sound as WAV too, 24 bits. [default: off]", rich_help_panel=FILES)
]
Png = Annotated[
    bool, typer.Option("--png", help="Write the frames as numbered PNG too. [default: off]", rich_help_panel=FILES)
]
Link = Annotated[
    bool,
    typer.Option(
        "--link",
        help="Hard links instead of copies, where the file system has them. [default: off]",
        rich_help_panel=FILES,
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace files that exist already. [default: off]", rich_help_panel=FILES)
]
Codec = Annotated[
    VideoCodec | None,
    typer.Option(
        help="h264: MP4. prores: ProRes 422 HQ in MOV. ffv1: lossless, in MKV. [default: the MP4 as it is]",
        rich_help_panel=MASTERS,
    ),
]
Crf = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=51,
        help=f"Quality of h264, from 0, which is lossless, to 51; implies --codec h264. [default: {DEFAULT_CRF}]",
        rich_help_panel=MASTERS,
    ),
]
AudioRate = Annotated[
    int | None,
    typer.Option(
        min=RATES[0],
        max=RATES[1],
        metavar="HZ",
        help=f"Rate of the sound in encoded files and WAV. [default: {EDITING_RATE}]",
        rich_help_panel=MASTERS,
    ),
]
MadeFrom = Annotated[
    Source | None,
    typer.Option(
        "--source",
        help="What encoded files, WAV and PNG are made from: kept latents (auto: where there are any), or the MP4."
        " [default: auto]",
        rich_help_panel=MASTERS,
    ),
]
CkptDir = Annotated[
    str | None,
    typer.Option(
        metavar=LOCATION,
        help="Checkpoint folder that decodes latents. [default: that of the job]",
        rich_help_panel=MASTERS,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="Device that decodes latents, such as cpu or cuda:1. [default: a GPU where there is one]",
        rich_help_panel=MASTERS,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the outcome as JSON on standard output. [default: off]")]


@with_display_options
def export(
    out: Out,
    folder: Folder,
    display: DisplayOptions,
    name: Name = DEFAULT_NAME,
    pick: Pick = None,
    table: Csv = False,
    wav: Wav = False,
    png: Png = False,
    link: Link = False,
    overwrite: Overwrite = False,
    codec: Codec = None,
    crf: Crf = None,
    audio_rate: AudioRate = None,
    source: MadeFrom = None,
    ckpt_dir: CkptDir = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Write the finished clips of a job under names that people and editors understand, with masters, sound and a table.

    Names are safe on every file system; two clips that would have the same name are told before anything is written.

    Examples:

        ovi-ray export out selects --name "{meta_shot}_s{seed}_g{video_guidance_scale}" --csv

        ovi-ray export out edit --pick picks.csv --codec prores --wav

        ovi-ray export out web --crf 23

        ovi-ray export out frames --name "{meta_scene}/{row:04}" --png
    """
    with command_console(display) as console:
        from ovi_ray.export.planning import plan_export
        from ovi_ray.export.selection import select_clips

        def tell(text: str) -> None:
            console.print(text, soft_wrap=True)

        codec = codec or (VideoCodec.H264 if crf is not None else None)
        options = ExportOptions(
            name=name,
            codec=codec,
            crf=DEFAULT_CRF if crf is None else crf,
            audio_rate=EDITING_RATE if audio_rate is None else audio_rate,
            wav=wav,
            png=png,
            csv=table,
            link=link,
            overwrite=overwrite,
            source=source or Source.AUTO,
        )
        given = {"--audio-rate": audio_rate, "--source": source, "--ckpt-dir": ckpt_dir, "--device": device}
        refuse([*_contradictions(options, crf), *_without_use(options, given)])
        target = local_path(folder, "DIR")
        picks = None if pick is None else location(pick, "--pick")
        job = location(out, "OUT").absolute()
        with usable(job):
            selection = select_clips(job, picks, tell)
        with usable(target):
            plan_export(selection, target, options)  # names and files are checked before anything loads
        options, reader = _materials(selection, options, _reader(selection, ckpt_dir, device), tell)
        with usable(target):
            result = _write(
                plan_export(selection, target, options, tell), options, reader, console, quiet=display.quiet
            )
        _summarise(result, target, options, console)
    if as_json:
        answer(json.dumps(_as_json(result, target)))
    raise typer.Exit(ExitCode.FAILED if result.failed else ExitCode.OK)


def _contradictions(options: ExportOptions, crf: int | None) -> Iterator[Problem]:
    if options.codec is None:
        return
    if options.codec is not VideoCodec.H264:
        yield from unused({"--crf": crf}, f"beside --codec {options.codec}")
    yield from unused({"--link": options.link}, "beside --codec or --crf: an encoded file is a new one")


def _without_use(options: ExportOptions, given: Mapping[str, Any]) -> Iterator[Problem]:
    """Problems with options, by name, on files that are not made."""
    rate, source = {"--audio-rate": given["--audio-rate"]}, {"--source": given["--source"]}
    decoder = {name: given[name] for name in ("--ckpt-dir", "--device")}
    if options.codec is None and not options.wav:
        yield from unused(rate, "without --codec, --crf or --wav: the sound of the MP4 stays as it is")
    if not options.decodes:
        yield from unused(source | decoder, "without --codec, --crf, --wav or --png: the MP4 is copied as it is")
    elif options.source is Source.VIDEO:
        yield from unused(decoder, "beside --source video: no latents are decoded")


def _reader(selection: "Selection", ckpt_dir: str | None, device: str | None) -> "Callable[[], LatentsReader]":
    """Opens what decodes latents when it is needed: torch is imported only then."""

    def open_reader() -> "LatentsReader":
        from ovi_ray.devices.probe import probe
        from ovi_ray.export.sources import LatentsReader

        given = ckpt_dir or selection.job.get("ckpt_dir")
        if not given:
            expected = "the checkpoint folder that decodes the latents"
            raise InputError([Problem(file=COMMAND_LINE, field="--ckpt-dir", value="missing", expected=expected)])
        reader = LatentsReader(
            ckpt_dir=location(str(given), "--ckpt-dir"),
            device=probe().devices[0].torch_device if device in (None, "auto") else device,
            dtype=str(selection.job.get("dtype", "bfloat16")),
        )
        reader.open(dict.fromkeys(clip.row["model_name"] for clip in selection.clips if clip.latents is not None))
        return reader

    return open_reader


def _materials(
    selection: "Selection",
    options: ExportOptions,
    open_reader: "Callable[[], LatentsReader]",
    tell: Callable[[str], None],
) -> "tuple[ExportOptions, LatentsReader | None]":
    """The reader of kept latents, if they are used. Latents that cannot be decoded here are told: then the MP4 is used."""
    has_latents = any(clip.latents is not None for clip in selection.clips)
    if not (options.decodes and has_latents) or options.source is Source.VIDEO:
        return options, None
    tell("loading what decodes the kept latents")
    try:
        return options, open_reader()
    except (OviError, OviRayError) as error:
        if options.source is Source.LATENTS:
            raise
        tell(f"the kept latents cannot be decoded here, so all files are made from the MP4: {error}")
        return replace(options, source=Source.VIDEO), None


def _write(
    plan: "ExportPlan", options: ExportOptions, reader: "LatentsReader | None", console: Console, *, quiet: bool
) -> "ExportResult":
    """Write the files, with a bar on a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ovi_ray.export.writing import export as write_files

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task("exporting", total=len(plan.clips))
        return write_files(
            plan,
            options,
            reader,
            tell=lambda text: console.print(text, soft_wrap=True, style="yellow"),
            on_clip_end=lambda: progress.advance(task),
        )


def _summarise(result: "ExportResult", folder: Path, options: ExportOptions, console: Console) -> None:
    done, failed = len(result.exported), len(result.failed)
    line = f"{counted(done, 'clip')} exported to {folder}" + (f", {failed} failed" if failed else "")
    console.print(line, style="bold red" if failed else "bold green", soft_wrap=True)
    copies = sum(not clip.is_linked for clip in result.exported)
    if options.link and copies:
        console.print(
            f"{counted(copies, 'file')} copied: {folder} is on another file system than the job", soft_wrap=True
        )


def _as_json(result: "ExportResult", folder: Path) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "exported": [
            {
                "clip_id": clip.planned.clip.clip_id,
                "source": clip.source,
                "files": [str(path) for path in clip.planned.files],
            }
            for clip in result.exported
        ],
        "failed": [{"clip_id": planned.clip.clip_id, "error": error} for planned, error in result.failed],
    }

"""A bundle: the files of a job that are shipped to a cluster, and the job's id.

The job file is resolved, and names its prompt list, images and cluster profile by their place in the bundle. The id is derived
from the content and the output folder: the same job has the same id, whoever submits it from wherever.
"""

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ovi.weights.layout import ARCHITECTURE
from ovi_ray.errors import InputError, Problem
from ovi_ray.inputs.bad_rows import BadRow, of_good_rows
from ovi_ray.inputs.cluster_profile import read_profile
from ovi_ray.inputs.columns import is_blank, is_meta
from ovi_ray.inputs.job_spec import DeviceKind, Mode, PortableJob
from ovi_ray.inputs.job_summary import manifest_of, summarise
from ovi_ray.inputs.manifest import Manifest, read_prompts
from ovi_ray.inputs.prompt_lists import OPTION_SUFFIXES, PromptList
from ovi_ray.inputs.rows import DERIVED_COLUMNS
from ovi_ray.printing import counted
from ovi_ray.storage.paths import Location, resolve_path

JOB_FILE = "job.yaml"
MAX_BUNDLE_BYTES = 90_000_000  # a Ray head refuses requests of 100 MiB
_EPOCH = (1980, 1, 1, 0, 0, 0)  # of every file in the archive, so that equal bundles are equal bytes
_ID_DIGITS = 10
_MAX_NAME_CHARS = 40


@dataclass(kw_only=True, slots=True, frozen=True)
class Bundle:
    """See the module."""

    job_id: str
    """Lower-case letters, digits and hyphens; at most 63 characters, as every target accepts."""
    job: PortableJob
    clips: int
    files: Mapping[str, bytes]
    """Content by path in the bundle; `JOB_FILE` is the job."""
    must_exist: tuple[str, ...]
    """Paths that are not shipped and must exist on the machines that render."""
    weight_files: tuple[str, ...]
    """Files that the job's models need, relative to its checkpoint folder."""
    notes: tuple[str, ...]
    version: str
    """Of ovi-ray here; there it must be the same."""
    render_options: tuple[str, ...] = ()
    """Options of `ovi-ray render` there that no job file has."""
    bad_rows: tuple[BadRow, ...] = ()
    """Rows that cannot be rendered, and are left out there too."""

    @property
    def output_dir(self) -> str:
        """The output folder, a path there or a URI."""
        return str(self.job.output_dir and self.job.output_dir.absolute())

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(map(len, self.files.values()))

    def devices_by_vendor(self) -> dict[str, int]:
        """GPUs by vendor in the job's cluster profile; empty without one, and for a job on CPUs. Raises InputError."""
        if self.job.cluster is None or self.job.device is DeviceKind.CPU:
            return {}
        counts: dict[str, int] = {}
        for devices in read_profile(self.job.cluster).devices.values():
            if devices.vendor != "cpu":
                counts[devices.vendor] = counts.get(devices.vendor, 0) + devices.count
        return counts

    def write(self, folder: Path) -> None:
        """Write the files into a folder."""
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def archive(self, more: Mapping[str, bytes], *, max_bytes: int = MAX_BUNDLE_BYTES) -> bytes:
        """A zip archive of the files and of `more`. Raises InputError when it is larger than a cluster takes."""
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in sorted({**self.files, **more}.items()):
                archive.writestr(zipfile.ZipInfo(name, _EPOCH), content, zipfile.ZIP_DEFLATED)
        content = packed.getvalue()
        if len(content) > max_bytes:
            raise InputError([_too_large(self, len(content), max_bytes)])
        return content


def bundle_of(
    job: PortableJob,
    *,
    name: str,
    version: str,
    skip_bad_rows: bool = False,
    render_options: tuple[str, ...] = (),
) -> Bundle:
    """The bundle of a job, whose list and images are checked here. Raises InputError, also where it lacks a folder.

    With `skip_bad_rows`, rows with problems are shipped as they are, for the driver to list them among the rejected ones.
    """
    _check_folders(job)
    prompts, bad_rows = read_prompts(job), list[BadRow]()

    def build(prompts: PromptList) -> Manifest:
        return manifest_of(job, prompts)

    if skip_bad_rows:
        manifest, bad_rows = of_good_rows(build, prompts)
        render_options = ("--skip-bad-rows", *render_options)
    else:
        manifest = build(prompts)
    summary = summarise(job, manifest)
    files: dict[str, bytes] = {}
    fields = _fields(job)
    if job.cluster is not None and job.cluster.is_local:
        files["cluster.yaml"] = job.cluster.read_bytes()
        fields["cluster"] = "cluster.yaml"
    if job.image_path is not None and job.mode is not Mode.T2V:
        fields["image_path"] = _shipped(job.image_path, files)
    if job.prompts is not None and job.prompts.is_local:
        fields["prompts"] = f"{job.prompts.stem}.jsonl"
        for name in OPTION_SUFFIXES:  # of the file that was read here
            fields.pop(name, None)
        files[fields["prompts"]] = _shipped_list(prompts, job.mode, files, bad={row.row for row in bad_rows})
    files[JOB_FILE] = yaml.safe_dump(fields, sort_keys=True, allow_unicode=True).encode()
    folders = [str(path.absolute()) for path in (job.ckpt_dir, job.output_dir) if path is not None and path.is_local]
    return Bundle(
        job_id=f"{_slug(name)}-{_digest(files)}",
        job=job,
        clips=summary.clips,
        files=files,
        must_exist=tuple(folders),
        weight_files=(ARCHITECTURE, *dict.fromkeys(file for model in summary.models for file in model.files)),
        notes=summary.notes,
        version=version,
        render_options=render_options,
        bad_rows=tuple(bad_rows),
    )


def job_name(source: str) -> str:
    """A short name for a job: that of its file, or of the folder of a file that is just called job."""
    path = Path(source)
    if path.suffix.lower() not in (".yaml", ".yml"):
        return path.stem if path.suffix and " " not in source else "prompt"
    return path.absolute().parent.name if path.stem == "job" else path.stem


def _check_folders(job: PortableJob) -> None:
    missing = {"ckpt_dir": "the path of a checkpoint folder", "output_dir": "the path of a folder to write to"}
    problems = [
        Problem(file="the job", field=name, value="missing", expected=f"{expected}, on the machines that render")
        for name, expected in missing.items()
        if getattr(job, name) is None
    ]
    if problems:
        raise InputError(problems)


def _fields(job: PortableJob) -> dict[str, Any]:
    """The fields of the job that differ from the defaults, as YAML writes them. Local folders are absolute."""
    settings = json.loads(job.model_dump_json(exclude_defaults=True))
    settings.pop("address", None)
    for name in ("ckpt_dir", "output_dir"):
        settings[name] = str(getattr(job, name).absolute())
    return settings


def _shipped(path: Location, files: dict[str, bytes]) -> str:
    """The name of an image in the bundle, which it is added to; the URI of one in a store."""
    if not path.is_local:
        return str(path)
    content = path.read_bytes()
    name = f"images/{hashlib.sha256(content).hexdigest()[:20]}{path.suffix.lower()}"
    files[name] = content
    return name


def _shipped_list(prompts: PromptList, mode: Mode, files: dict[str, bytes], *, bad: Set[int]) -> bytes:
    """The list in JSON Lines, with its images added to the bundle. Rows keep their numbers.

    Of the rows that are `bad`, images are not shipped, and those that could not be read are lines that cannot be rendered.
    """
    folder = prompts.folder.absolute()
    shipped: dict[str, str] = {}

    def place(cell: str) -> str:
        if cell not in shipped:
            shipped[cell] = _shipped(resolve_path(cell.strip(), folder), files)
        return shipped[cell]

    lines = dict.fromkeys(bad, "{}")
    names = [name for name in prompts.columns if name not in DERIVED_COLUMNS]
    for number, *cells in zip(prompts.rows, *(prompts.columns[name] for name in names), strict=True):
        row = {
            name: cell
            for name, cell in zip(names, cells, strict=True)
            if not is_blank(cell, prompts.has_types or is_meta(name))
        }
        if not is_blank(row.get("image_path")) and mode is not Mode.T2V and number not in bad:
            row["image_path"] = place(row["image_path"])
        lines[number] = json.dumps(row, ensure_ascii=False, default=str)
    return "\n".join(lines[number] for number in sorted(lines)).encode() + b"\n"


def _digest(files: Mapping[str, bytes]) -> str:
    total = hashlib.sha256()
    for name, content in sorted(files.items()):
        total.update(f"{name}\0{len(content)}\0".encode())
        total.update(content)
    return total.hexdigest()[:_ID_DIGITS]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_MAX_NAME_CHARS].strip("-") or "job"


def _too_large(bundle: Bundle, size: int, most: int) -> Problem:
    largest = sorted(bundle.files.items(), key=lambda item: -len(item[1]))[:3]
    shown: Iterable[str] = (f"{name} {len(content) / 1e6:.1f} MB" for name, content in largest)
    return Problem(
        file="the job's files",
        value=f"{size / 1e6:.0f} MB compressed ({counted(len(bundle.files), 'file')}; the largest: {', '.join(shown)})",
        expected=f"at most {most / 1e6:.0f} MB: put the list or its images where the cluster can read them,"
        " and name them by URI, such as s3://bucket/prompts.csv",
    )

"""Prompt lists as files, and what is read of them."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import pyarrow as pa
import pyarrow.parquet
import pytest

from ovi.config import Architecture
from ovi_ray.errors import InputError, Problem
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.inputs.manifest import Manifest, build_manifest

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def manifest_of(path: Path, **options: object) -> Manifest:
    """The manifest of a list, by a job with these options."""
    job = JobSpec.from_options(prompts=path, ckpt_dir=path.parent, output_dir=path.parent / "out", **options)
    return build_manifest(job, Architecture(), weights=lambda _: "w", numerics="n")


def problems_of(path: Path, **options: object) -> tuple[Problem, ...]:
    """The problems of a list."""
    with pytest.raises(InputError) as caught:
        manifest_of(path, **options)
    return caught.value.problems


def write_table(path: Path, table: pa.Table) -> Path:
    """Write a table in the format that the suffix names; an Arrow stream where the name starts so."""
    if path.suffix == ".parquet":
        pa.parquet.write_table(table, path)
        return path
    new = pa.ipc.new_stream if path.name.startswith("stream") else pa.ipc.new_file
    with new(str(path), table.schema) as writer:
        writer.write_table(table)
    return path


def not_utf8(*texts: bytes) -> pa.Array:
    """A column of text with bytes that Arrow does not check."""
    cells = pa.array(texts, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(cells), cells.buffers())


def write_ods(path: Path, *rows: Sequence[object], error: str | None = None) -> Path:
    """Write a sheet as LibreOffice does, which ends it with a million blank rows; `error` is a formula's, in the last row."""
    content = "".join(f"<table:table-row>{''.join(map(_ods_cell, row))}</table:table-row>" for row in rows)
    if error is not None:
        content = content.removesuffix("</table:table-row>") + (
            '<table:table-cell table:formula="of:=1/0" office:value-type="string" office:string-value=""'
            f' calcext:value-type="error"><text:p>{error}</text:p></table:table-cell></table:table-row>'
        )
    spaces = " ".join(
        f'xmlns:{name}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"' for name in ("office", "table", "text")
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mimetype", "application/vnd.oasis.opendocument.spreadsheet")
        archive.writestr(
            "content.xml",
            f"<office:document-content {spaces}"
            ' xmlns:calcext="urn:org:documentfoundation:names:experimental:calc:xmlns:calcext:1.0">'
            f'<office:body><office:spreadsheet><table:table table:name="Sheet1">{content}'
            '<table:table-row table:number-rows-repeated="1048000"><table:table-cell'
            ' table:number-columns-repeated="16384"/></table:table-row></table:table></office:spreadsheet>'
            "</office:body></office:document-content>",
        )
        archive.writestr(
            "META-INF/manifest.xml",
            '<manifest:manifest xmlns:manifest="urn:oasis:names:tc:opendocument:xmlns:manifest:1.0"/>',
        )
    return path


def _ods_cell(value: object) -> str:
    if value is None:
        return "<table:table-cell/>"
    if isinstance(value, str):
        text = escape(value).replace("\n", "</text:p><text:p>")
        return f'<table:table-cell office:value-type="string"><text:p>{text}</text:p></table:table-cell>'
    return f'<table:table-cell office:value-type="float" office:value="{value}"/>'

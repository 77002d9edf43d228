"""Other tools read the results while a run writes them: none fails, and none sees a clip twice or loses one."""

import threading
from concurrent.futures import ThreadPoolExecutor

import duckdb
import pandas
import polars
import pyarrow.csv
import pyarrow.dataset
import pyarrow.parquet
import pytest
from pyarrow import fs

from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.output.result_row import RESULTS_SCHEMA
from ovi_ray.output.results import Results, ResultsConfig
from ovi_ray.storage.paths import to_location
from tests.support.rendered_jobs import unchecked, write_rows
from tests.support.stores import hdfs_folder, memory_folder
from tests.support.waiting import PATIENCE_S
from tests.unit.output.test_results import row

READS = 500
READS_A_FILE = 40

PLAIN = {
    "pyarrow": lambda out: pyarrow.dataset.dataset(out / "results", format="parquet").to_table(columns=["clip_id"]),
    "pandas": lambda out: pandas.read_parquet(out / "results", columns=["clip_id"]),
    "polars": lambda out: polars.scan_parquet(out / "results" / "*.parquet").select("clip_id").collect(),
    "duckdb": lambda out: duckdb.sql(f"select clip_id from read_parquet('{out}/results/**')").to_arrow_table(),
}
"""The ids of all rows, read as a user would who knows nothing of this program."""

ONE_A_CLIP = {
    "pyarrow": lambda out: (
        pyarrow.dataset.dataset(out / "results", format="parquet")
        .to_table()
        .sort_by("status")
        .group_by("clip_id", use_threads=False)
        .aggregate([("status", "first")])
        .rename_columns(["clip_id", "status"])
        .to_pandas()
    ),
    "pandas": lambda out: pandas.read_parquet(out / "results").sort_values("status").drop_duplicates("clip_id"),
    "polars": lambda out: (
        polars.read_parquet(out / "results" / "*.parquet").sort("status").unique("clip_id", keep="first").to_pandas()
    ),
    "duckdb": lambda out: duckdb.sql(
        f"select distinct on (clip_id) * from '{out}/results/*.parquet' order by clip_id, status"
    ).df(),
}
"""The queries of docs/survival.md."""


class Counter:
    """Counts what one thread does, and lets another one wait for a number of it."""

    def __init__(self):
        self._count, self._changed = 0, threading.Condition()

    def add(self, number=1):
        with self._changed:
            self._count += number
            self._changed.notify_all()

    def wait_for(self, number):
        with self._changed:
            assert self._changed.wait_for(lambda: self._count >= number, PATIENCE_S)


@pytest.mark.parametrize("tool", PLAIN)
def test_a_tool_that_reads_beside_a_run_never_fails_and_sees_every_row_once(tmp_path, tool):
    results, reads, files = Results(tmp_path, ResultsConfig(flush_rows=2, merge_files=1)), Counter(), Counter()
    written = ["a"]
    results.append(row("a"))
    results.flush()

    def write():
        for number in range(READS // READS_A_FILE):
            reads.wait_for(number * READS_A_FILE)
            for half in "xy":
                written.append(f"{number} {half}")  # before the row: a reader that is faster sees what may be there
                results.append(row(f"{number} {half}"))
            files.add()
        results.close()

    with ThreadPoolExecutor(1) as pool:
        writer, before = pool.submit(write), 0
        try:
            for number in range(READS):
                ids = list(map(str, PLAIN[tool](tmp_path)["clip_id"]))
                assert len(ids) == len(set(ids))
                assert before <= len(ids)
                before = len(ids)
                files.wait_for(number // READS_A_FILE)  # one is written meanwhile, and no more reads are made without
                reads.add()
        finally:
            reads.add(READS)  # the writer waits for nothing any more
        writer.result()
    assert sorted(map(str, PLAIN[tool](tmp_path)["clip_id"])) == sorted(written)


@pytest.mark.parametrize("tool", ONE_A_CLIP)
def test_the_query_gives_one_row_a_clip_whatever_two_drivers_wrote(tmp_path, tool):
    stale, later = Results(tmp_path), Results(tmp_path)
    for ledger, ends in ((later, {"a": "done", "b": "failed"}), (stale, {"a": "failed", "b": "failed"})):
        for clip_id, status in ends.items():
            ledger.append(row(clip_id, status))
        ledger.close()
    found = ONE_A_CLIP[tool](tmp_path)
    assert sorted(zip(found["clip_id"], found["status"], strict=True)) == [("a", "done"), ("b", "failed")]


class SpiedFileSystem:
    """A local disk that notes which files are written and moved."""

    def __init__(self):
        self._files = fs.LocalFileSystem()
        self.opened = []

    def __getattr__(self, name):
        return getattr(self._files, name)

    def open_output_stream(self, path):
        self.opened.append(path)
        return self._files.open_output_stream(path)


@pytest.mark.parametrize("kind", ["local", "memory", "hdfs", pytest.param("s3", marks=pytest.mark.s3)])
def test_in_every_store_a_run_only_adds_whole_files_and_changes_none(request, tmp_path, kind):
    spy = SpiedFileSystem()
    out = {
        "local": lambda: to_location(tmp_path / "out"),
        "memory": memory_folder,
        "hdfs": lambda: hdfs_folder(tmp_path, file_system=spy),
        "s3": lambda: to_location(request.getfixturevalue("s3_bucket")) / "out",
    }[kind]()
    results = Results(out, ResultsConfig(flush_rows=1, merge_files=1))
    seen = {}
    for number in range(5):
        results.append(row(str(number)))
        files = {entry.name: (entry.size, entry.mtime) for entry in results.results.files()}
        assert seen.items() <= files.items()
        assert len(files) == number + 1
        seen = files
    results.close()
    assert {entry.name for entry in results.results.files()} == set(seen)
    assert not [path for path in spy.opened if "/results/" in path]
    assert results.read().schema.equals(RESULTS_SCHEMA)
    assert len(results.read()) == 5


MANIFEST_READERS = {
    "pandas": lambda path: pandas.read_parquet(path).astype(object).to_dict("records"),
    "polars": lambda path: polars.read_parquet(path).to_dicts(),
    "duckdb": lambda path: duckdb.sql(f"select * from '{path}'").to_arrow_table().to_pylist(),
    "pyarrow.csv": lambda path: csv_rows(path),
}


def csv_rows(path):
    pyarrow.csv.write_csv(pyarrow.parquet.read_table(path), path.with_suffix(".csv"))
    options = pyarrow.csv.ParseOptions(newlines_in_values=True)
    return pyarrow.csv.read_csv(path.with_suffix(".csv"), parse_options=options).to_pylist()


@pytest.mark.parametrize("tool", MANIFEST_READERS)
def test_a_manifest_opens_in_any_tool_for_tables(tmp_path, tiny_dir, tool):
    rows = [{"text_prompt": 'a fox,\n"quoted"', "meta_shot": "sh010"}, {"text_prompt": "a dog", "meta_shot": "sh020"}]
    job = JobSpec.from_options(prompts=write_rows(tmp_path, rows), ckpt_dir=tiny_dir, output_dir=tmp_path / "out")
    path = tmp_path / "manifest.parquet"
    unchecked(job, tiny_dir).manifest.write(path)
    found = MANIFEST_READERS[tool](path)
    names = ("row", "text_prompt", "video_frame_height", "video_frame_width", "meta_shot")
    assert [tuple(row[name] for name in names) for row in found] == [
        (1, rows[0]["text_prompt"], 704, 1280, "sh010"),
        (2, "a dog", 704, 1280, "sh020"),
    ]

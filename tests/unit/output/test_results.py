"""The durable results of a job."""

import errno
import os
from datetime import UTC, datetime

import numpy as np
import pyarrow
import pyarrow.dataset
import pyarrow.parquet
import pytest

from ovi.files import UNFINISHED_PREFIX
from ovi.media.video import VideoWriter
from ovi_ray.errors import ResultsTooNew
from ovi_ray.output.parquet_log import FORMAT_KEY
from ovi_ray.output.result_row import RESULTS_SCHEMA
from ovi_ray.output.results import Results, ResultsConfig
from ovi_ray.storage.paths import to_location
from tests.support.files import UNREADABLE, snapshot
from tests.support.stores import overridden


def row(clip_id, status="done", **changes):
    facts = {
        "clip_id": clip_id,
        "row": 0,
        "repeat": 0,
        "text_prompt": "a fox",
        "prompt": "a fox",
        "seed": 1,
        "model_name": "720x720_5s",
        "sample_steps": 4,
        "solver_name": "unipc",
        "height": 64,
        "width": 64,
        "status": status,
        "dtype": "float32",
        "attempts": 1,
        "finished_at": datetime(2026, 1, 1, tzinfo=UTC),
    }
    return facts | changes


def results_in(folder, **config):
    return Results(to_location(folder), ResultsConfig(**config))


def finish(ledger, clip_id, **changes):
    """A clip as a run leaves it: first the file, then the row."""
    ledger.video_path(clip_id).write_bytes(b"video")
    ledger.append(row(clip_id, **changes))


def finished(ledger):
    return set(ledger.resume().finished.to_pylist())


def ids(ledger):
    return sorted(ledger.read().column("clip_id").to_pylist())


def test_rows_are_a_parquet_dataset_that_any_tool_reads(tmp_path):
    ledger = results_in(tmp_path)
    finish(ledger, "a", error=None)
    ledger.flush()
    finish(ledger, "b")
    ledger.flush()
    table = pyarrow.dataset.dataset(tmp_path / "results", format="parquet").to_table()
    assert table.schema.equals(RESULTS_SCHEMA)
    assert sorted(table.column("clip_id").to_pylist()) == ["a", "b"]


def test_a_row_that_was_not_flushed_is_not_there_and_a_flushed_one_is(tmp_path):
    ledger = results_in(tmp_path)
    finish(ledger, "a")
    assert ids(results_in(tmp_path)) == []
    ledger.flush()
    assert ids(results_in(tmp_path)) == ["a"]


def test_waiting_rows_are_written_in_time(tmp_path):
    ledger = results_in(tmp_path, flush_s=0.0)
    finish(ledger, "a")
    ledger.flush_if_due()
    assert ids(results_in(tmp_path)) == ["a"]


def test_many_rows_do_not_wait(tmp_path):
    ledger = results_in(tmp_path, flush_rows=3)
    for clip_id in "abc":
        finish(ledger, clip_id)
    assert ids(results_in(tmp_path)) == ["a", "b", "c"]


def test_a_new_job_has_nothing_finished(tmp_path):
    assert finished(results_in(tmp_path / "new")) == set()


def test_only_done_clips_with_a_video_are_finished(tmp_path):
    ledger = results_in(tmp_path)
    finish(ledger, "done")
    finish(ledger, "lost")
    ledger.append(row("failed", "failed", error="it broke"))
    ledger.flush()
    ledger.video_path("lost").unlink()
    assert finished(results_in(tmp_path)) == {"done"}


def test_resuming_leaves_the_last_row_of_each_clip(tmp_path):
    ledger = results_in(tmp_path)
    ledger.append(row("again", "failed", error="it broke"))
    ledger.flush()
    finish(ledger, "again")
    finish(ledger, "done")
    ledger.append(row("failed", "failed", error="it broke"))
    ledger.flush()
    results_in(tmp_path).resume()
    table = pyarrow.dataset.dataset(tmp_path / "results", format="parquet").to_table()
    assert sorted(table.select(["clip_id", "status"]).to_pylist(), key=str) == [
        {"clip_id": "again", "status": "done"},
        {"clip_id": "done", "status": "done"},
        {"clip_id": "failed", "status": "failed"},
    ]


def test_a_crash_between_merging_and_removing_leaves_each_clip_once(tmp_path):
    ledger = results_in(tmp_path)
    for clip_id in "ab":
        finish(ledger, clip_id)
        ledger.flush()

    def crash(key):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Results(overridden(to_location(tmp_path), delete=crash), ResultsConfig(merge_files=1)).resume()
    assert len(list((tmp_path / "results").glob("part-*"))) == 2
    assert ids(results_in(tmp_path)) == ["a", "b"]
    assert finished(results_in(tmp_path)) == {"a", "b"}


def test_a_half_written_fragment_is_not_seen(tmp_path):
    ledger = results_in(tmp_path)
    finish(ledger, "a")
    ledger.flush()
    (tmp_path / "results" / f"{UNFINISHED_PREFIX}0badcafe.part-99999999999999999999.parquet").write_bytes(b"PAR1 half")
    assert ids(results_in(tmp_path)) == ["a"]
    assert len(pyarrow.dataset.dataset(tmp_path / "results", format="parquet").to_table()) == 1


def test_failures_of_clips_that_the_job_no_longer_asks_for_are_forgotten(tmp_path):
    ledger = results_in(tmp_path)
    for clip_id in ("asked", "not asked"):
        ledger.append(row(clip_id, "failed", error="it broke"))
    finish(ledger, "done, not asked")
    ledger.flush()
    ledger.resume(wanted=pyarrow.array(["asked"]))
    assert ids(ledger) == ["asked", "done, not asked"]


def test_rows_take_over_their_place_and_own_columns_from_the_list_that_is_rendered(tmp_path):
    ledger = results_in(tmp_path)
    for number, clip_id in enumerate("abc", 1):
        finish(ledger, clip_id, row=number, line=number + 1, meta_shot="old")
    ledger.flush()
    listed = {
        "clip_id": ["c", "b"],
        "row": [1, 2],
        "line": [5, None],
        "meta_shot": ["new", None],
        "meta_take": ["1", "2"],
    }
    again = results_in(tmp_path)
    again.resume(wanted=pyarrow.array(["c", "b"]), listed=pyarrow.table(listed))
    table = pyarrow.parquet.read_table(tmp_path / "results").sort_by("clip_id").to_pylist()
    names = ("clip_id", "row", "line", "meta_shot", "meta_take", "current")
    assert [tuple(row[name] for name in names) for row in table] == [
        ("a", 1, 2, "old", None, False),
        ("b", 2, None, None, "2", True),
        ("c", 1, 5, "new", "1", True),
    ]
    before = snapshot(ledger.results.local_path)
    results_in(tmp_path).resume(wanted=pyarrow.array(["c", "b"]), listed=pyarrow.table(listed))
    assert snapshot(ledger.results.local_path) == before


def test_a_video_of_another_size_than_its_row_says_is_not_finished_and_is_told(tmp_path):
    ledger = results_in(tmp_path)
    finish(ledger, "whole", video_bytes=5)
    finish(ledger, "cut", video_bytes=500)
    ledger.flush()
    found = results_in(tmp_path).resume()
    assert (found.finished.to_pylist(), found.videos.to_pylist()) == (["whole"], ["cut"])
    assert ids(ledger) == ["whole"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: path.write_bytes(b""),
        lambda path: pyarrow.parquet.write_table(pyarrow.table({"a column of": ["another program"]}), path),
        lambda path: pyarrow.parquet.write_table(
            pyarrow.table({"clip_id": ["c"], "status": [{"of another": "type"}]}), path
        ),
    ],
)
def test_a_corrupt_fragment_is_told_and_set_aside_and_its_videos_are_left_over(tmp_path, damage):
    ledger = results_in(tmp_path)
    for clip_id in "ab":
        finish(ledger, clip_id)
        ledger.flush()
    broken = sorted(ledger.results.local_path.glob("part-*"))[0]
    damage(broken)
    found = results_in(tmp_path).resume()
    assert (found.finished.to_pylist(), found.videos.to_pylist()) == (["b"], ["a"])
    assert broken.name in found.notes[0]
    assert [path.name for path in (tmp_path / "broken").iterdir()] == [broken.name]
    assert ids(results_in(tmp_path)) == ["b"]
    assert results_in(tmp_path).resume().notes == ()


@pytest.mark.parametrize("merge_files", [1, 1000])
def test_a_fragment_that_is_damaged_in_a_column_which_is_read_last_is_set_aside_too(tmp_path, merge_files):
    ledger = results_in(tmp_path)
    for clip_id in ("a", "b"):
        finish(ledger, clip_id, text_prompt=f"{clip_id} fox in the snow")
        ledger.append(row(f"{clip_id} again", "failed", error="it broke"))
        ledger.flush()
    broken = sorted(ledger.results.local_path.glob("part-*"))[0]
    column = pyarrow.parquet.ParquetFile(broken).metadata.row_group(0).column(3)
    content = bytearray(broken.read_bytes())
    for place in range(column.dictionary_page_offset, column.dictionary_page_offset + 12):
        content[place] ^= 0xFF
    broken.write_bytes(content)
    found = results_in(tmp_path, merge_files=merge_files).resume(wanted=pyarrow.array(["a", "b"]))
    assert (found.finished.to_pylist(), found.videos.to_pylist()) == (["b"], ["a"])
    assert [path.name for path in (tmp_path / "broken").iterdir()] == [broken.name]


def test_a_reader_that_remembers_reads_each_small_file_once_and_sees_all_that_is_added(tmp_path):
    ledger = results_in(tmp_path, flush_rows=1)
    finish(ledger, "a", meta_shot="one")
    reader = Results(to_location(tmp_path), remembers_bytes=1 << 20)
    assert ids(reader) == ["a"]
    finish(ledger, "b")
    for part in (tmp_path / "results").glob("part-*-000001.parquet"):
        part.write_bytes(b"")  # its content is not looked at again
    assert ids(reader) == ["a", "b"]
    assert [batch.to_pylist() for batch in reader.batches(["clip_id", "meta_shot"])] == [
        [{"clip_id": "a", "meta_shot": "one"}, {"clip_id": "b", "meta_shot": None}]
    ]
    assert ids(Results(to_location(tmp_path), remembers_bytes=1)) == ["b"]


def test_rows_that_are_replaced_are_not_remembered(tmp_path):
    ledger = Results(to_location(tmp_path), ResultsConfig(flush_rows=2), remembers_bytes=1 << 20)
    finish(ledger, "a")
    finish(ledger, "b")
    assert ids(ledger) == ["a", "b"]
    ledger.drop(pyarrow.array(["a"]))
    assert ids(ledger) == ["b"]


def test_rows_of_a_newer_version_are_refused_and_left_alone(tmp_path):
    results_in(tmp_path)
    newer = RESULTS_SCHEMA.with_metadata({FORMAT_KEY: b"99"})
    pyarrow.parquet.write_table(newer.empty_table(), tmp_path / "results" / "part-00000000000000000001.parquet")
    with pytest.raises(ResultsTooNew, match=r"format 99.*update ovi-ray"):
        results_in(tmp_path).resume()
    assert len(list((tmp_path / "results").iterdir())) == 1


def test_rows_of_an_older_version_without_some_columns_are_read(tmp_path):
    ledger = results_in(tmp_path)
    older = pyarrow.Table.from_pylist([row("old")], schema=RESULTS_SCHEMA).drop_columns(["video_bytes", "decode_s"])
    pyarrow.parquet.write_table(older, tmp_path / "results" / "part-00000000000000000001.parquet")
    ledger.video_path("old").write_bytes(b"video")
    finish(ledger, "new", video_bytes=5)
    ledger.flush()
    assert finished(results_in(tmp_path)) == {"old", "new"}
    assert ids(results_in(tmp_path)) == ["new", "old"]


def test_a_later_row_counts_even_when_the_clock_went_back(tmp_path, monkeypatch):
    ledger = results_in(tmp_path)
    ledger.append(row("a", "failed", error="it broke"))
    ledger.flush()
    monkeypatch.setattr("time.time_ns", lambda: 5)
    again = results_in(tmp_path)
    finish(again, "a")
    again.flush()
    assert again.read().column("status").to_pylist() == ["done"]


def test_a_run_that_starts_merges_many_files_and_no_row_is_lost(tmp_path):
    ledger = results_in(tmp_path)
    for number in range(12):
        finish(ledger, f"{number:03d}")
        ledger.flush()
    results_in(tmp_path, merge_files=12).resume()
    assert len(list(ledger.results.local_path.iterdir())) == 12
    found = results_in(tmp_path, merge_files=11).resume()
    assert len(list(ledger.results.local_path.iterdir())) == 1
    assert sorted(found.finished.to_pylist()) == ids(ledger) == [f"{number:03d}" for number in range(12)]


def test_rows_wait_longer_where_there_are_many_files_but_not_for_ever():
    config = ResultsConfig(flush_s=2.0, max_flush_s=300.0, many_files=100)
    waits = [config.flush_interval_s(files) for files in (0, 100, 200, 1000, 10_000)]
    assert waits == [2.0, 2.0, 8.0, 200.0, 300.0]


def test_rows_that_are_dropped_leave_every_other_row_in_its_file(tmp_path):
    ledger = results_in(tmp_path)
    for clips in ("ab", "c"):
        for clip_id in clips:
            ledger.append(row(clip_id, "failed", error="it broke"))
        ledger.flush()
    before = sorted(path.name for path in ledger.results.local_path.iterdir())
    ledger.drop(pyarrow.array(["a", "c"]))
    assert ids(ledger) == ["b"]
    assert sorted(path.name for path in ledger.results.local_path.iterdir()) == before


# -- two drivers -------------------------------------------------------------------------------------------------------


def test_what_a_driver_writes_that_was_taken_for_dead_replaces_nothing_and_no_clip_that_is_done(tmp_path, monkeypatch):
    stale = results_in(tmp_path)
    monkeypatch.setattr("time.time_ns", lambda: 1 << 62)  # its clock is ahead
    stale.append(row("before", "failed", error="it broke"))
    stale.flush()
    successor = results_in(tmp_path)
    finish(successor, "a")
    successor.append(row("b", "failed", error="by the successor"))
    successor.flush()
    for clip_id in "ab":
        stale.append(row(clip_id, "failed", error="late"))
    stale.flush()
    found = {row["clip_id"]: (row["status"], row["error"]) for row in results_in(tmp_path).read().to_pylist()}
    assert found == {
        "before": ("failed", "it broke"),
        "a": ("done", None),
        "b": ("failed", "by the successor"),
    }
    assert finished(results_in(tmp_path)) == {"a"}
    assert len(results_in(tmp_path).read()) == 3


# -- rows that cannot be read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_rows_that_cannot_be_read_are_not_taken_for_damaged_ones_and_nothing_is_changed(tmp_path, number):
    ledger = results_in(tmp_path)
    for clip_id in "ab":
        finish(ledger, clip_id)
        ledger.flush()
    before = snapshot(tmp_path / "results")

    def read(key):
        raise OSError(number, os.strerror(number), key)

    unreadable = Results(overridden(to_location(tmp_path), local_path=lambda key: None, read=read))
    with pytest.raises(OSError, match=os.strerror(number)):
        unreadable.resume()
    assert snapshot(tmp_path / "results") == before


def test_rows_on_a_disk_that_cannot_be_read_are_not_taken_for_damaged_ones(tmp_path):
    ledger = results_in(tmp_path)
    part = ledger.results.local_path / "part-r000001-abcdef-000001.parquet"
    part.symlink_to(UNREADABLE)
    with pytest.raises(OSError, match=part.name):
        results_in(tmp_path).resume()
    assert list(ledger.results.local_path.iterdir()) == [part]


def test_rows_that_cannot_be_written_wait_for_the_next_flush(tmp_path, monkeypatch):
    ledger = results_in(tmp_path)
    finish(ledger, "a")
    with monkeypatch.context() as full:
        full.setattr("os.fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            ledger.flush()
    ledger.flush()
    assert ids(ledger) == ["a"]
    assert len(list(ledger.results.local_path.iterdir())) == 1


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    ledger = results_in(tmp_path)
    (tmp_path / "results" / f"{UNFINISHED_PREFIX}0badcafe.part-1.parquet").write_bytes(b"half")
    writer = VideoWriter(ledger.video_path("a").local_path)
    writer.__enter__().write(np.zeros((99, 32, 32, 3), np.uint8))
    assert len(list((tmp_path / "videos").iterdir())) == 1
    ledger.resume()
    assert not list((tmp_path / "results").iterdir())
    assert not list((tmp_path / "videos").iterdir())


def test_rows_of_an_older_version_counted_from_0_are_counted_from_1(tmp_path):
    ledger = results_in(tmp_path)
    older = pyarrow.Table.from_pylist([row("old", row=0)], schema=RESULTS_SCHEMA.with_metadata({FORMAT_KEY: b"2"}))
    pyarrow.parquet.write_table(
        older.drop_columns(["line"]), tmp_path / "results" / "part-00000000000000000001.parquet"
    )
    ledger.video_path("old").write_bytes(b"video")
    finish(ledger, "new", row=2, line=3)
    ledger.flush()
    for _ in range(2):  # the second time from the file that resuming wrote
        assert finished(results_in(tmp_path)) == {"old", "new"}
        read = results_in(tmp_path).read().select(["clip_id", "row", "line"]).to_pylist()
        assert read == [{"clip_id": "old", "row": 1, "line": None}, {"clip_id": "new", "row": 2, "line": 3}]


def test_the_own_columns_of_every_list_are_kept_whatever_the_last_list_has(tmp_path):
    for clip_id, own in (("a", {"meta_shot": "1"}), ("b", {"meta_take": "x"}), ("c", {})):
        ledger = results_in(tmp_path)
        ledger.resume()
        finish(ledger, clip_id, **own)
        ledger.close()
    results_in(tmp_path).resume()
    table = pyarrow.dataset.dataset(tmp_path / "results", format="parquet").to_table()
    assert table.select(["clip_id", "meta_shot", "meta_take"]).to_pylist() == [
        {"clip_id": "a", "meta_shot": "1", "meta_take": None},
        {"clip_id": "b", "meta_shot": None, "meta_take": "x"},
        {"clip_id": "c", "meta_shot": None, "meta_take": None},
    ]


def test_own_columns_are_kept_when_files_are_merged(tmp_path):
    for clip_id in "abc":
        ledger = results_in(tmp_path)
        finish(ledger, clip_id, **{f"meta_{clip_id}": clip_id})
        ledger.flush()
    results_in(tmp_path, merge_files=2).resume()
    (table,) = [pyarrow.parquet.read_table(path, partitioning=None) for path in (tmp_path / "results").iterdir()]
    assert [table.column(f"meta_{clip_id}").to_pylist().count(clip_id) for clip_id in "abc"] == [1, 1, 1]

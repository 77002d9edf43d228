"""The durable results of a job."""

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


def test_a_crash_between_compacting_and_removing_leaves_each_clip_once(tmp_path):
    ledger = results_in(tmp_path)
    for clip_id in "ab":
        finish(ledger, clip_id)
        ledger.flush()

    def crash(key):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Results(overridden(to_location(tmp_path), delete=crash)).resume()
    assert len(list((tmp_path / "results").glob("part-*"))) == 3
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


def test_a_video_of_another_size_than_its_row_says_is_not_finished_and_is_told(tmp_path):
    ledger = results_in(tmp_path)
    finish(ledger, "whole", video_bytes=5)
    finish(ledger, "cut", video_bytes=500)
    ledger.flush()
    found = results_in(tmp_path).resume()
    assert (found.finished.to_pylist(), found.videos.to_pylist()) == (["whole"], ["cut"])
    assert ids(ledger) == ["whole"]


def test_a_corrupt_fragment_is_told_and_set_aside_and_its_videos_are_left_over(tmp_path):
    ledger = results_in(tmp_path)
    for clip_id in "ab":
        finish(ledger, clip_id)
        ledger.flush()
    broken = sorted(ledger.results.local_path.glob("part-*"))[0]
    broken.write_bytes(broken.read_bytes()[:100])
    found = results_in(tmp_path).resume()
    assert (found.finished.to_pylist(), found.videos.to_pylist()) == (["b"], ["a"])
    assert broken.name in found.notes[0]
    assert ids(results_in(tmp_path)) == ["b"]
    assert results_in(tmp_path).resume().notes == ()


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


def test_many_small_files_are_merged_in_the_background_and_no_row_is_lost(tmp_path):
    ledger = results_in(tmp_path, merge_files=4)
    for number in range(12):
        finish(ledger, f"{number:03d}")
        ledger.close()  # and the merge that it began is over
    assert len(list(ledger.results.local_path.glob("part-*"))) < 4
    assert ids(ledger) == [f"{number:03d}" for number in range(12)]
    assert finished(results_in(tmp_path)) == set(ids(ledger))


def test_files_that_cannot_be_merged_stay_and_are_logged_and_the_job_goes_on(tmp_path, caplog):
    ledger = results_in(tmp_path, merge_files=3)
    for clip_id in "abc":
        finish(ledger, clip_id)
        if clip_id == "c":
            first = sorted(ledger.results.local_path.glob("part-*"))[0]
            whole = first.read_bytes()
            first.write_bytes(whole[:100])
        ledger.flush()
    ledger.close()
    assert "could not be merged" in caplog.text
    assert len(list(ledger.results.local_path.glob("part-*"))) == 3
    first.write_bytes(whole)
    assert ids(results_in(tmp_path)) == ["a", "b", "c"]


def test_a_defect_in_a_merge_is_raised_when_the_results_are_closed(tmp_path):
    def fail(key):
        if "part-" in key:
            raise ZeroDivisionError
        return tmp_path / key

    ledger = results_in(tmp_path, merge_files=2)
    finish(ledger, "a")
    ledger.flush()
    broken = Results(overridden(to_location(tmp_path), delete=fail), ResultsConfig(merge_files=2))
    finish(broken, "b")
    with pytest.raises(ZeroDivisionError):
        broken.close()
    assert ids(results_in(tmp_path)) == ["a", "b"]


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


def test_a_clip_that_failed_and_was_rendered_later_has_one_row_when_the_run_ends(tmp_path):
    ledger = results_in(tmp_path)
    for clip_id in ("a", "b"):
        ledger.append(row(clip_id, "failed", error="it broke"))
    ledger.flush()
    ledger.append(row("a", "done"))
    ledger.flush()
    table = pyarrow.dataset.dataset(tmp_path / "results", format="parquet")
    assert len(table.to_table()) == 3
    ledger.close()
    table = pyarrow.dataset.dataset(tmp_path / "results", format="parquet").to_table()
    assert sorted(zip(*table.select(["clip_id", "status"]).to_pydict().values(), strict=True)) == [
        ("a", "done"),
        ("b", "failed"),
    ]


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


def test_own_columns_are_kept_when_files_that_were_never_read_are_merged(tmp_path):
    for clip_id in "abc":
        ledger = results_in(tmp_path)
        finish(ledger, clip_id, **{f"meta_{clip_id}": clip_id})
        ledger.flush()
    merging = results_in(tmp_path, merge_files=4)
    finish(merging, "d")
    merging.close()
    (table,) = [pyarrow.parquet.read_table(path, partitioning=None) for path in (tmp_path / "results").iterdir()]
    assert [table.column(f"meta_{clip_id}").to_pylist().count(clip_id) for clip_id in "abc"] == [1, 1, 1]

"""The durable results of a job."""

from datetime import UTC, datetime

import pyarrow.dataset
import pytest

from ovi_ray import ledger as ledger_module
from ovi_ray.ledger import RESULTS_SCHEMA, Ledger


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


def finish(ledger, clip_id, **changes):
    """A clip as a run leaves it: first the file, then the row."""
    ledger.video_path(clip_id).write_bytes(b"video")
    ledger.append(row(clip_id, **changes))


def ids(ledger):
    return sorted(ledger.read().column("clip_id").to_pylist())


def test_rows_are_a_parquet_dataset_that_any_tool_reads(tmp_path):
    ledger = Ledger(tmp_path)
    finish(ledger, "a", error=None)
    ledger.flush()
    finish(ledger, "b")
    ledger.flush()
    table = pyarrow.dataset.dataset(tmp_path / "results", format="parquet").to_table()
    assert table.schema.equals(RESULTS_SCHEMA)
    assert sorted(table.column("clip_id").to_pylist()) == ["a", "b"]


def test_a_row_that_was_not_flushed_is_not_there_and_a_flushed_one_is(tmp_path):
    ledger = Ledger(tmp_path)
    finish(ledger, "a")
    assert ids(Ledger(tmp_path)) == []
    ledger.flush()
    assert ids(Ledger(tmp_path)) == ["a"]


def test_waiting_rows_are_written_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger_module, "FLUSH_S", 0.0)
    ledger = Ledger(tmp_path)
    finish(ledger, "a")
    ledger.flush_if_due()
    assert ids(Ledger(tmp_path)) == ["a"]


def test_many_rows_do_not_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger_module, "FLUSH_ROWS", 3)
    ledger = Ledger(tmp_path)
    for clip_id in "abc":
        finish(ledger, clip_id)
    assert ids(Ledger(tmp_path)) == ["a", "b", "c"]


def test_a_new_job_has_nothing_finished(tmp_path):
    assert Ledger(tmp_path / "new").resume() == frozenset()


def test_only_done_clips_with_a_video_are_finished(tmp_path):
    ledger = Ledger(tmp_path)
    finish(ledger, "done")
    finish(ledger, "lost")
    ledger.append(row("failed", "failed", error="it broke"))
    ledger.flush()
    ledger.video_path("lost").unlink()
    assert Ledger(tmp_path).resume() == {"done"}


def test_resuming_leaves_one_row_for_each_finished_clip_and_none_for_the_others(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.append(row("again", "failed", error="it broke"))
    ledger.flush()
    finish(ledger, "again")
    finish(ledger, "done")
    ledger.append(row("failed", "failed", error="it broke"))
    ledger.flush()
    Ledger(tmp_path).resume()
    table = pyarrow.dataset.dataset(tmp_path / "results", format="parquet").to_table()
    assert sorted(table.select(["clip_id", "status"]).to_pylist(), key=str) == [
        {"clip_id": "again", "status": "done"},
        {"clip_id": "done", "status": "done"},
    ]


def test_a_crash_between_compacting_and_removing_leaves_each_clip_once(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path)
    finish(ledger, "a")
    finish(ledger, "b")
    ledger.flush()

    def crash(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.unlink", crash)
        with pytest.raises(KeyboardInterrupt):
            Ledger(tmp_path).resume()
    assert ids(Ledger(tmp_path)) == ["a", "b"]
    assert Ledger(tmp_path).resume() == {"a", "b"}


def test_a_half_written_fragment_is_not_seen(tmp_path):
    ledger = Ledger(tmp_path)
    finish(ledger, "a")
    ledger.flush()
    (tmp_path / "results" / ".part-99999999999999999999.parquet.tmp").write_bytes(b"PAR1 half")
    assert ids(Ledger(tmp_path)) == ["a"]
    assert len(pyarrow.dataset.dataset(tmp_path / "results", format="parquet").to_table()) == 1

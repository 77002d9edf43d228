"""The record that a run leaves: complete, appended to, and never a reason for a job to fail."""

import pytest

from ovi_ray.errors import WorkersLost
from ovi_ray.output.event_log import EndEntry, IdleEntry, MessageEntry, WorkerEntry, recorded_runs
from ovi_ray.protocol.observer import Cycle, Observers
from ovi_ray.runtime.run_record import run_identity, run_record
from tests.support.fake_executor import DIES, FakeExecutor
from tests.support.recording_observer import RecordingObserver
from tests.unit.runtime.test_driver import make_driver


def record_run(tmp_path, executor=None, message=pytest.fail):
    observer = RecordingObserver()
    with run_record(tmp_path / "out", message) as record:
        make_driver(tmp_path, executor or FakeExecutor(), observer=Observers([observer, record])).run()
    return observer


def recorded(tmp_path):
    return recorded_runs(tmp_path / "out" / "events.jsonl")


@pytest.fixture(autouse=True)
def out(tmp_path):
    (tmp_path / "out").mkdir()


def test_every_cycle_is_recorded_with_its_worker_its_idle_times_and_its_end(tmp_path):
    observer = record_run(tmp_path, FakeExecutor(workers=("w0", "w1")))
    (run,) = recorded(tmp_path)
    entries = list(run.entries())
    assert [entry for entry in entries if isinstance(entry, Cycle)] == observer.cycles
    assert [entry.worker for entry in entries if isinstance(entry, WorkerEntry)] == ["w0", "w1"]
    assert any(isinstance(entry, IdleEntry) for entry in entries)
    assert entries[-1] == EndEntry(at_s=observer.ends[0].now, done=2, failed=0, error="")
    assert len(run.clip_ids) == run.workload.clips == 2
    assert run.identity.pid > 0


def test_a_run_that_fails_is_recorded_with_its_reason_and_the_next_one_is_appended(tmp_path):
    with pytest.raises(WorkersLost):
        record_run(tmp_path, FakeExecutor(script=lambda *task: DIES))
    record_run(tmp_path)
    first, second = recorded(tmp_path)
    *_, end = first.entries()
    assert "killed" in end.error
    assert any(isinstance(entry, MessageEntry) for entry in first.entries())
    *_, end = second.entries()
    assert end.error == ""


def test_the_log_has_a_line_for_each_notable_event(tmp_path):
    def script(worker, task, tries):
        return DIES if tries == 1 and task.items == (0,) else None

    record_run(tmp_path, FakeExecutor(script=script, replaces=True))
    log = (tmp_path / "out" / "run.log").read_text(encoding="utf-8")
    (run,) = recorded(tmp_path)
    assert all(f"clip {clip_id} done" in log for clip_id in run.clip_ids)
    for text in ("run started", "worker w0 started in slot w0", "worker w0 lost", "worker w0.1 started", "run ended"):
        assert text in log


def test_an_error_outside_the_driver_is_in_the_log(tmp_path):
    with pytest.raises(WorkersLost), run_record(tmp_path / "out", pytest.fail):
        raise WorkersLost("Ray is gone")
    log = (tmp_path / "out" / "run.log").read_text(encoding="utf-8")
    assert "WorkersLost: Ray is gone" in log
    assert "Traceback" not in log


def test_a_record_that_cannot_be_opened_is_reported_and_the_job_is_rendered(tmp_path):
    (tmp_path / "out" / "events.jsonl").mkdir()
    messages = []
    observer = record_run(tmp_path, message=messages.append)
    assert observer.ends[0].done == 2
    assert len(messages) == 1


def test_a_record_that_cannot_be_written_is_reported_and_the_job_is_rendered(tmp_path):
    (tmp_path / "out" / "events.jsonl").symlink_to("/dev/full")
    messages = []
    observer = record_run(tmp_path, message=messages.append)
    assert observer.ends[0].done == 2
    (message,) = messages
    assert "No space left on device" in message


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (
            ["/opt/bin/ovi-ray", "render", "It's a dog", "--out", "a b"],
            "/opt/bin/ovi-ray render 'It'\"'\"'s a dog' --out 'a b'",
        ),
        (["/src/ovi_ray/__main__.py", "render", "p.csv"], "python -m ovi_ray render p.csv"),
        (["ovi-ray", "render", "s3://me:secret@bucket/p.csv"], "ovi-ray render s3://***@bucket/p.csv"),
    ],
)
def test_the_recorded_command_can_be_run_again_and_shows_no_password(monkeypatch, argv, command):
    monkeypatch.setattr("sys.argv", argv)
    assert run_identity().command == command

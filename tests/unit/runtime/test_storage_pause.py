"""A job waits for storage that fails, is out of reach or is gone. Times are numbers: nothing sleeps."""

import shutil
from dataclasses import replace

import pytest

from ovi.stages import Stage
from ovi_ray.errors import OutputGone
from ovi_ray.output.intermediates import Intermediates
from ovi_ray.output.job_files import JOB_FILE
from ovi_ray.output.results import Results
from ovi_ray.runtime.result_writer import write_rows
from ovi_ray.runtime.storage_pause import StoragePause, StoragePauseConfig
from ovi_ray.scheduling.events import TaskFailed
from ovi_ray.scheduling.task import FailureKind, Task
from ovi_ray.storage.paths import to_location
from tests.unit.output.test_results import row

TOKEN = "the folder's"
CONFIG = StoragePauseConfig(probe_interval_s=1.0, max_wait_s=8.0, missing_s=60.0, max_failures=3)


class Folder:
    """An output folder of a job that runs, and the pause that watches it."""

    def __init__(self, path, config=CONFIG):
        self.path, self.told, self.now = path / "share" / "out", [], 0.0
        self.results = Results(self.path)
        Intermediates(output_dir=to_location(self.path)).prepare()
        self.sign(TOKEN)
        self.pause = StoragePause(
            to_location(self.path),
            self.told.append,
            config,
            token=TOKEN,
            write_rows=lambda: write_rows(self.results),
        )

    def sign(self, token):
        (self.path / JOB_FILE).write_text(f'{{"folder": "{token}"}}')

    def fail(self, worker="w0", *, clip=0, input_path=""):
        event = TaskFailed(
            worker=worker,
            task=Task(stage=Stage.DECODE, items=(clip,)),
            kind=FailureKind.CANCELLED,
            message="it cannot be written",
        )
        self.pause.hold(event, "it cannot be written", self.now, input_path=input_path)

    def wait(self, seconds):
        """The events that are released within some seconds."""
        events, until = [], self.now + seconds
        while self.now < until:
            self.now += 1.0
            events += self.pause.release(self.now)
        return events


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


# -- the output folder -------------------------------------------------------------------------------------------------


def test_a_failure_is_held_until_the_output_can_be_written_and_told_once(tmp_path):
    problems = ["No space left on device"] * 20
    config = StoragePauseConfig(probe_interval_s=1.0, write_problem=lambda folder: problems.pop() if problems else "")
    folder = Folder(tmp_path, config)
    folder.fail("w0")
    folder.fail("w1", clip=1)
    assert folder.wait(19) == []
    assert {event.worker for event in folder.wait(5)} == {"w0", "w1"}
    assert [text.partition(" ")[0] for text in folder.told] == ["paused:", "resumed"]


@pytest.mark.parametrize("what", ["", "videos", "results"])
def test_what_is_not_there_for_a_while_is_waited_for_and_what_is_there_again_is_used(folder, what):
    """As a share that is unmounted, and mounted again."""
    folder.fail()
    (folder.path / what).rename(folder.path.parent / "away")
    assert folder.wait(50) == []
    (folder.path.parent / "away").rename(folder.path / what)
    assert len(folder.wait(10)) == 1
    assert [text.partition(" ")[0] for text in folder.told] == ["paused:", "resumed"]


@pytest.mark.parametrize("what", ["", "videos", "results", JOB_FILE])
def test_what_was_removed_ends_the_job_with_what_to_do_even_if_no_task_failed(folder, what):
    target = folder.path / what
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    with pytest.raises(OutputGone, match=f"{what or JOB_FILE} is not there.*the same command"):
        folder.wait(200)
    assert folder.now <= CONFIG.missing_s + 3
    assert [text.partition(" ")[0] for text in folder.told] == ["paused:"]
    assert folder.path.exists() == bool(what)  # nothing was made in its place


def test_an_empty_folder_in_the_place_of_the_output_is_noticed_and_nothing_is_written_there(folder):
    folder.path.rename(folder.path.parent / "away")
    folder.path.mkdir()
    folder.results.append(row("a"))
    folder.fail()
    assert folder.wait(50) == []
    assert list(folder.path.iterdir()) == []
    with pytest.raises(OutputGone):
        folder.wait(50)


def test_the_folder_of_another_job_in_its_place_is_noticed(folder):
    folder.sign("of another")
    with pytest.raises(OutputGone, match="another job"):
        folder.wait(200)


def test_nothing_is_written_into_the_folder_of_another_job(folder):
    folder.results.append(row("a"))
    folder.sign("of another")
    folder.wait(20)
    assert folder.pause.output_is_missing
    assert list((folder.path / "results").iterdir()) == []
    folder.sign(TOKEN)
    folder.wait(5)
    assert not folder.pause.output_is_missing
    assert folder.results.read().column("clip_id").to_pylist() == ["a"]


@pytest.mark.parametrize("name", ["posters", "latents", "checkpoints", ".unfinished"])
def test_a_folder_whose_content_can_be_made_again_is_made_again(folder, name):
    shutil.rmtree(folder.path / name)
    folder.fail()
    assert len(folder.wait(10)) == 1
    assert (folder.path / name).is_dir()


@pytest.mark.parametrize("name", ["videos", "latents", "checkpoints"])
def test_the_test_write_is_where_the_work_writes(tmp_path, name):
    def probe(folder):
        return "Permission denied" if folder.name == name else ""

    folder = Folder(tmp_path, StoragePauseConfig(probe_interval_s=1.0, write_problem=probe))
    folder.fail()
    assert folder.wait(100) == []


def test_rows_that_wait_are_the_test_of_the_results(folder):
    folder.results.append(row("a"))
    blocked = folder.path / ".unfinished"
    blocked.rmdir()
    blocked.write_text("not a folder")
    folder.pause.begin("rows cannot be written", folder.now)
    folder.wait(20)
    assert [text.partition(" ")[0] for text in folder.told] == ["paused:"]
    blocked.unlink()
    folder.wait(3)
    assert [text.partition(" ")[0] for text in folder.told] == ["paused:", "resumed"]
    assert folder.results.read().column("clip_id").to_pylist() == ["a"]


def test_a_task_that_fails_while_everything_else_can_be_written_is_at_fault_in_the_end(folder):
    kinds = []
    for _ in range(4):
        folder.fail()
        kinds += [event.kind for event in folder.wait(20)]
    assert kinds == [FailureKind.CANCELLED, FailureKind.CANCELLED, FailureKind.ERROR, FailureKind.ERROR]


def test_failures_of_a_task_while_the_storage_was_away_do_not_count(tmp_path):
    problems = []
    config = StoragePauseConfig(
        probe_interval_s=1.0,
        max_wait_s=2.0,
        max_failures=3,
        write_problem=lambda folder: problems.pop() if problems else "",
    )
    folder = Folder(tmp_path, config)
    for _ in range(10):
        problems.append("Stale file handle")
        folder.fail()
        assert [event.kind for event in folder.wait(20)] == [FailureKind.CANCELLED]


# -- inputs ------------------------------------------------------------------------------------------------------------


def test_an_input_whose_storage_is_away_is_waited_for_and_the_output_is_not_blamed(tmp_path):
    reasons = ["the store does not answer"] * 5
    config = StoragePauseConfig(probe_interval_s=1.0, away_reason=lambda path: reasons.pop() if reasons else "")
    folder = Folder(tmp_path, config)
    folder.fail(input_path="s3://bucket/a.png")
    assert folder.wait(5) == []
    assert len(folder.wait(5)) == 1
    assert all("s3://bucket/a.png" in text and str(folder.path) not in text for text in folder.told)


def test_an_output_that_is_away_does_not_hold_back_an_input_that_is_back(folder):
    folder.fail("w0", input_path=str(folder.path / JOB_FILE))
    folder.fail("w1")
    folder.path.rename(folder.path.parent / "away")
    folder.path.parent.joinpath("out").mkdir()
    assert [event.worker for event in folder.wait(20)] == ["w0"]


def test_an_image_on_a_share_that_does_not_come_back_fails_its_clips(folder, tmp_path):
    folder.fail(input_path=str(tmp_path / "unmounted" / "a.png"))
    assert folder.wait(50) == []
    assert [event.kind for event in folder.wait(20)] == [FailureKind.BAD_INPUT]


@pytest.mark.parametrize("answers", [True, False])
def test_an_image_for_which_alone_a_store_does_not_answer_fails_its_clips(tmp_path, answers):
    config = replace(CONFIG, away_reason=lambda path: "" if answers and path.name != "a.png" else "500 InternalError")
    folder = Folder(tmp_path, config)
    folder.fail(input_path="s3://bucket/a.png")
    assert folder.wait(50) == []
    assert [event.kind for event in folder.wait(500)] == [FailureKind.BAD_INPUT] * answers


def test_a_lost_worker_has_no_failure_to_report(folder):
    folder.fail("w0")
    folder.fail("w1", clip=1)
    folder.pause.worker_lost("w0")
    assert [event.worker for event in folder.wait(10)] == ["w1"]

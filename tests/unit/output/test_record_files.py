"""Files that a run appends to: continued after a crash, retried when storage fails, and never a reason to fail."""

from pathlib import Path

import pytest

from ovi_ray.errors import StorageUnavailable
from ovi_ray.output.record_files import AppendedFile, RecordConfig, RecordFolder
from ovi_ray.storage.paths import to_location

NOW = RecordConfig(flush_interval_s=0.0, upload_interval_s=0.0)


class FailingFile(AppendedFile):
    """Its storage is full while `is_full`, after a few bytes."""

    is_full = False

    class _Raw:
        def __init__(self, owner, file):
            self.owner, self.file = owner, file

        def write(self, content):
            if self.owner.is_full:
                if self.owner.bytes_left:
                    written = self.file.write(bytes(content[: self.owner.bytes_left]))
                    self.owner.bytes_left = 0
                    return written
                raise OSError(28, "No space left on device")
            return self.file.write(content)

        def close(self):
            self.file.close()

    def __init__(self, path, config, on_problem):
        super().__init__(path, config, on_problem)
        self._file = self._Raw(self, self._file)
        self.bytes_left = 0


def test_lines_are_appended_and_a_line_that_was_cut_off_is_ended_first(tmp_path):
    path = tmp_path / "log"
    for content in ("", "one\n", "cut o"):
        path.write_text(content)
        file = AppendedFile(path, NOW, pytest.fail)
        file.append("two\n")
        file.close()
        assert path.read_text().splitlines() == [*content.splitlines(), "two"]


def test_nothing_is_written_before_the_flush_interval(tmp_path):
    file = AppendedFile(tmp_path / "log", RecordConfig(flush_interval_s=1e9), pytest.fail)
    file.append("one\n")
    file.flush_if_due()
    assert (tmp_path / "log").read_text() == ""
    file.flush()
    assert (tmp_path / "log").read_text() == "one\n"


def test_a_full_disk_is_reported_once_and_no_line_is_lost_or_torn(tmp_path):
    problems = []
    file = FailingFile(tmp_path / "log", NOW, problems.append)
    file.is_full, file.bytes_left = True, 5
    for line in ("first line\n", "second line\n"):
        file.append(line)
        file.flush_if_due()
    assert (tmp_path / "log").read_text() == "first"
    file.is_full = False
    file.append("third line\n")
    file.close()
    assert (tmp_path / "log").read_text() == "first line\nsecond line\nthird line\n"
    (problem,) = problems
    assert "No space left on device" in problem


def test_recording_stops_when_too_much_could_not_be_written(tmp_path):
    problems = []
    file = FailingFile(tmp_path / "log", RecordConfig(flush_interval_s=0.0, max_buffer_bytes=10), problems.append)
    file.is_full = True
    for _ in range(5):
        file.append("a long line\n")
        file.flush_if_due()
    file.is_full = False
    file.close()
    assert (tmp_path / "log").read_text() == ""
    assert len(problems) == 2


def test_the_record_of_a_local_folder_lies_in_it(tmp_path):
    folder = RecordFolder(to_location(tmp_path), ("log",), NOW, pytest.fail)
    folder.sync_if_due()
    folder.close()
    assert folder.path == tmp_path


@pytest.fixture
def store(s3_bucket):
    return to_location(s3_bucket) / "out"


def mirrored(store, on_problem=pytest.fail):
    return RecordFolder(store, ("log", "other"), NOW, on_problem)


@pytest.mark.s3
def test_the_record_of_a_store_continues_the_one_that_is_there_and_leaves_no_local_copy(store):
    for text in ("one\n", "two\n"):
        folder = mirrored(store)
        file = AppendedFile(folder.path / "log", NOW, pytest.fail)
        file.append(text)
        file.flush()
        folder.sync_if_due()
        file.append("later\n")
        file.close()
        folder.close()
        assert not Path(folder.path).exists()
    assert (store / "log").read_text(encoding="utf-8") == "one\nlater\ntwo\nlater\n"
    assert not (store / "other").exists()


@pytest.mark.s3
def test_a_store_whose_earlier_record_cannot_be_read_is_refused(s3_server):
    with pytest.raises(StorageUnavailable):
        mirrored(to_location("s3://no-such-bucket") / "out")


@pytest.mark.s3
def test_uploads_that_fail_are_reported_once(store):
    problems = []
    folder = mirrored(store, problems.append)
    (folder.path / "log").mkdir()  # cannot be copied
    folder.sync_if_due()
    folder.close()
    assert len(problems) == 1


@pytest.mark.parametrize("setting", ["flush_interval_s", "upload_interval_s", "upload_share"])
def test_settings_out_of_range_are_refused_with_their_name(setting):
    with pytest.raises(ValueError, match=f"{setting} is -1"):
        RecordConfig(**{setting: -1})

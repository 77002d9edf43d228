"""Files in a store, against a real S3 server, and on a file system that knows no atomic uploads."""

import contextlib
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from ovi_ray.errors import StorageUnavailable
from ovi_ray.storage import object_store as remote
from ovi_ray.storage.object_store import RemotePath
from ovi_ray.storage.paths import list_files, local_copy, remove_old_scratch, rename, to_location, write_bytes, written


@pytest.fixture
def folder(s3_bucket):
    return to_location(s3_bucket) / "folder"


@pytest.fixture
def plain_folder(tmp_path):
    """Files that come to be bit by bit, as in HDFS; here on the disk, through pyarrow's file system for it."""
    return RemotePath(scheme="file", authority="", key=str(tmp_path).lstrip("/"))


@pytest.fixture(params=["folder", "plain_folder"])
def any_folder(request):
    return request.getfixturevalue(request.param)


def names(folder, suffix=""):
    return list_files(folder, suffix).column("name").to_pylist()


# -- names -------------------------------------------------------------------------------------------------------------


def test_a_uri_is_written_as_it_was_read():
    for uri in ("s3://bucket/a/b.csv", "hdfs://node:8020/a", "s3://bucket/a?region=eu-west-1", "gs://bucket/ä b.csv"):
        assert str(to_location(uri)) == uri


def test_parts_of_a_name_are_those_of_a_path():
    path = to_location("s3://bucket/a/b.tar.gz?region=eu-west-1")
    assert (path.name, path.stem, path.suffix) == ("b.tar.gz", "b.tar", ".gz")
    assert str(path.parent / "../c.csv") == "s3://bucket/c.csv?region=eu-west-1"
    assert str(path.with_name("d")) == "s3://bucket/a/d?region=eu-west-1"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://key:secret@bucket/x", "without credentials"),
        ("s3:///x", "with a bucket"),
        ("s3://bucket/../other", r"without \. and \.\."),
    ],
)
def test_a_uri_that_cannot_be_used_is_refused_with_what_would_be_right(uri, expected):
    with pytest.raises(ValueError, match=expected):
        to_location(uri)


# -- files -------------------------------------------------------------------------------------------------------------


def test_what_is_written_is_there_and_can_be_read_listed_renamed_and_removed(any_folder):
    path = any_folder / "a file%20#.txt"
    assert not path.exists()
    write_bytes(path, "ä\r\nb".encode())
    assert path.is_file()
    assert any_folder.is_dir()
    assert path.stat().st_size == 5
    assert path.read_text() == "ä\r\nb"
    with path.open(encoding="utf-8", newline="") as lines:
        assert list(lines) == ["ä\r\n", "b"]
    write_bytes(any_folder / ".hidden", b"")
    assert names(any_folder) == [path.name]
    moved = rename(path, "other")
    assert (path.exists(), moved.exists()) == (False, True)
    moved.unlink()
    moved.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match="other: no such file"):
        moved.unlink()
    assert names(any_folder) == []
    assert names(any_folder / "none") == []


def test_a_file_that_is_written_anew_is_the_new_one(any_folder):
    for content in (b"first", b"2nd"):
        write_bytes(any_folder / "file", content)
    with local_copy(any_folder / "file") as local:
        assert local.read_bytes() == b"2nd"
    assert not local.exists()


def test_a_file_of_many_parts_arrives_whole(folder):
    content = os.urandom(12 << 20)
    with written(folder / "big") as local:
        local.write_bytes(content)
    assert (folder / "big").read_bytes() == content


def test_a_write_that_breaks_off_leaves_what_was_there(any_folder, tmp_path):
    write_bytes(any_folder / "file", b"before")
    with contextlib.suppress(RuntimeError), written(any_folder / "file") as local:
        local.write_bytes(b"half")
        raise RuntimeError
    assert (any_folder / "file").read_bytes() == b"before"
    assert not local.exists()
    assert names(any_folder) == ["file"]


def test_a_writer_that_is_killed_leaves_nothing_in_a_store_and_its_scratch_is_removed_later(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    code = "import os, sys; from ovi_ray.storage.paths import *\n"
    code += "with written(to_location(sys.argv[1])) as p: p.write_bytes(b'half'); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(folder / "file")], check=False)
    assert names(folder) == []
    assert len(list(tmp_path.iterdir())) == 1
    remove_old_scratch()
    assert not list(tmp_path.iterdir())


# -- failures ----------------------------------------------------------------------------------------------------------


def test_a_bucket_that_is_not_there_is_storage_that_cannot_be_used(s3_bucket):
    with pytest.raises(StorageUnavailable, match=r"s3://no-such-bucket/x: .*NO_SUCH_BUCKET"):
        write_bytes(to_location("s3://no-such-bucket/x"), b"")


class SlowStore:
    """Takes nothing until it is let go."""

    def __init__(self):
        self.goes, self.is_closed, self.content = threading.Event(), threading.Event(), bytearray()

    @contextlib.contextmanager
    def open_output_stream(self, path):
        try:
            yield self
        finally:  # as pyarrow's: whatever was written is the file
            self.is_closed.set()

    def write(self, content):
        self.goes.wait(10)
        self.content += content

    def get_file_info(self, path):
        return SimpleNamespace(size=len(self.content))


def test_an_upload_that_was_given_up_and_ends_later_is_whole(tmp_path, monkeypatch):
    store = SlowStore()
    monkeypatch.setattr(remote, "_file_system", lambda *parts: (store, "bucket"))
    monkeypatch.setattr(remote, "ANSWER_S", 0.1)
    monkeypatch.setattr(remote, "SLOWEST", 1 << 40)
    local = tmp_path / "big"
    local.write_bytes(bytes(20 << 20))  # more than one chunk
    with pytest.raises(StorageUnavailable, match="no answer"):
        to_location("s3://bucket/big").upload(local)
    local.unlink()
    store.goes.set()
    assert store.is_closed.wait(10)
    assert len(store.content) == 20 << 20


def test_a_file_that_arrives_cut_off_is_an_error_and_not_there(folder, monkeypatch):
    monkeypatch.setattr("shutil.copyfileobj", lambda source, target, size: target.write(source.read()[:-1]))
    with pytest.raises(StorageUnavailable, match="5 of 6 bytes"):
        write_bytes(folder / "file", b"123456")
    assert names(folder) == []

"""URIs, what each kind of store does beyond the common promises, and how failures are told."""

import errno
import os
import pickle
import subprocess
import sys
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from ovi.errors import MediaError
from ovi.files import UNFINISHED_PREFIX
from ovi_ray.errors import StorageUnavailable
from ovi_ray.output.intermediates import Intermediates
from ovi_ray.output.results import Results
from ovi_ray.storage.diagnostics import is_unreachable, plain_reason, storage_error, write_problem
from ovi_ray.storage.object_store import CHUNK_BYTES, ObjectStore
from ovi_ray.storage.paths import Location, remove_unfinished, resolve_path, to_location
from ovi_ray.storage.scratch import remove_old_scratch
from ovi_ray.storage.store import Timeouts
from ovi_ray.storage.uris import connector, region_of
from tests.support.s3 import free_port, running_front
from tests.support.stores import hdfs_folder, overridden

# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/a/b.csv",
        "hdfs://node:8020/a",
        "s3://bucket/a?region=eu-west-1",
        "gs://bucket/ä b.csv",
        "abfs://container@account.dfs.core.windows.net/a",
        "s3://bucket/",
        "relative/path.csv",
        "/absolute",
    ],
)
def test_a_location_is_written_as_it_was_read_and_can_be_sent_to_another_process(uri):
    location = to_location(uri)
    assert str(location) == uri
    assert pickle.loads(pickle.dumps(location)) == location


def test_parts_of_a_name_are_those_of_a_path():
    path = to_location("s3://bucket/a/b.tar.gz?region=eu-west-1")
    assert (path.name, path.stem, path.suffix) == ("b.tar.gz", "b.tar", ".gz")
    assert str(path.parent / "../c.csv") == "s3://bucket/c.csv?region=eu-west-1"
    assert str(path.with_name("d")) == "s3://bucket/a/d?region=eu-west-1"
    assert path.bucket == "s3://bucket/?region=eu-west-1"
    assert path.local_path is None


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://key:secret@bucket/x", "without credentials"),
        ("s3:///x", "with a bucket"),
        ("s3://bucket/../other", r"without \. and \.\."),
        ("s3://bucket/x?regoin=a", "endpoint_override, region, scheme alone, not regoin"),
        ("gs://bucket/x?region=a", "without options"),
    ],
)
def test_a_uri_that_cannot_be_used_is_refused_with_what_would_be_right(uri, expected):
    with pytest.raises(ValueError, match=expected):
        to_location(uri)


@pytest.mark.parametrize(
    ("given", "folder", "expected"),
    [
        ("a.png", "s3://b/lists?region=x", "s3://b/lists/a.png?region=x"),
        ("../a.png", "s3://b/lists", "s3://b/a.png"),
        ("/data/a.png", "s3://b/lists", "/data/a.png"),
        ("gs://c/a.png", "s3://b/lists", "gs://c/a.png"),
        ("a.png", "/data", "/data/a.png"),
    ],
)
def test_a_path_is_relative_to_the_folder_of_the_list_unless_it_says_where_it_is(given, folder, expected):
    assert str(resolve_path(given, to_location(folder))) == expected


def test_a_path_that_leaves_its_bucket_is_refused():
    with pytest.raises(ValueError, match="stays in the bucket"):
        resolve_path("../../x.png", to_location("s3://b/lists"))


def test_two_spellings_of_a_folder_are_one_unless_a_link_leads_elsewhere(tmp_path):
    for name in ("jobs", "far/jobs"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "jobs")
    spelled = {name: to_location(f"{tmp_path}/{name}/../out").absolute().local_path for name in ("jobs", "new", "link")}
    assert spelled == dict.fromkeys(("jobs", "new"), tmp_path / "out") | {"link": tmp_path / "link" / ".." / "out"}


# -- object stores -----------------------------------------------------------------------------------------------------


def test_a_small_file_takes_one_request_to_write_and_one_to_read(s3_bucket, s3_server, tmp_path):
    path = to_location(f"{s3_bucket}/video.mp4")
    (tmp_path / "video.mp4").write_bytes(bytes(1 << 20))
    s3_server.forget_requests()
    path.upload(tmp_path / "video.mp4")
    assert len(s3_server.requests("PUT")) == 1
    assert s3_server.requests("POST") == []
    path.download(tmp_path / "copy")
    assert len(s3_server.requests("GET")) == 1
    assert s3_server.requests("HEAD") == []


def test_parts_of_a_large_file_are_asked_for_at_the_same_time(s3_bucket, s3_server, tmp_path):
    content = os.urandom(2 * CHUNK_BYTES + 1)
    to_location(f"{s3_bucket}/weights").write_bytes(content)
    with running_front(s3_server, together=3) as front:
        there = f"scheme=http&endpoint_override=127.0.0.1:{front.server_port}"
        to_location(f"{s3_bucket}/weights?{there}").download(tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content
    assert sorted(front.parts) == ["bytes=0-8388607", "bytes=16777216-16777216", "bytes=8388608-16777215"]


def test_options_of_a_uri_name_the_server_and_the_region(s3_bucket, s3_server, monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    server = s3_server.endpoint.removeprefix("http://")
    path = to_location(f"{s3_bucket}/a?region=eu-west-1&scheme=http&endpoint_override={server}")
    path.write_bytes(b"x")
    assert path.read_bytes() == b"x"


def test_the_region_of_a_bucket_is_asked_of_the_server(s3_server):
    bucket = s3_server.new_bucket(region="eu-west-1").removeprefix("s3://")
    assert region_of(bucket, s3_server.endpoint) == "eu-west-1"
    assert region_of(bucket, f"http://127.0.0.1:{free_port()}") == "us-east-1"


def quick(bucket: str, options: str = "", *, answer_s: float = 1.0) -> Location:
    """A bucket whose requests are given up early."""
    timeouts = Timeouts(answer_s=answer_s, slowest_bytes_per_s=1 << 40)
    return Location(ObjectStore(bucket, connector("s3", bucket.removeprefix("s3://"), options), timeouts=timeouts), "x")


@pytest.mark.parametrize("request_of", [Location.stat, Location.read_bytes, lambda path: path.write_bytes(b"x")])
def test_a_server_that_never_answers_is_unreachable(s3_bucket, s3_server, request_of):
    with s3_server.frozen(), pytest.raises(StorageUnavailable) as caught:
        request_of(quick(s3_bucket))
    assert is_unreachable(caught.value)
    assert "does not answer" in plain_reason(caught.value)


def test_a_server_that_is_not_there_is_unreachable(s3_server):
    with pytest.raises(StorageUnavailable) as caught:
        quick("s3://bucket", f"scheme=http&endpoint_override=127.0.0.1:{free_port()}", answer_s=30.0).stat()
    assert is_unreachable(caught.value)


@pytest.mark.parametrize(
    "request_of", [Location.read_bytes, lambda path: path.write_bytes(b""), lambda path: list(path.files())]
)
def test_a_bucket_that_does_not_exist_is_told(s3_server, request_of):
    with pytest.raises(StorageUnavailable, match="s3://no-such-bucket/x") as caught:
        request_of(to_location("s3://no-such-bucket/x"))
    assert plain_reason(caught.value) == "there is no such bucket: create it, or correct the name"


def test_credentials_that_are_refused_are_told(s3_bucket, s3_server):
    path = to_location(f"{s3_bucket}/x")
    path.write_bytes(b"x")
    with s3_server.refusing_credentials():
        with pytest.raises(StorageUnavailable) as reading:
            path.stat()
        with pytest.raises(StorageUnavailable) as writing:
            path.write_bytes(b"y")
    assert "access is denied" in plain_reason(reading.value)  # the answer to HEAD has no body that says more
    assert plain_reason(writing.value) == "the store does not know these credentials"
    assert not is_unreachable(writing.value)


def test_credentials_in_a_profile_are_used_through_boto3(s3_bucket, s3_server, tmp_path, monkeypatch):
    (tmp_path / "credentials").write_text("[work]\naws_access_key_id = a\naws_secret_access_key = b\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "work")
    path = quick(s3_bucket, answer_s=30.0)
    path.write_bytes(b"x")
    assert path.read_bytes() == b"x"


def test_credentials_in_a_profile_without_boto3_name_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore.auth.boto3", None)  # an import of it raises ImportError
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_PROFILE", "work")
    with pytest.raises(StorageUnavailable, match=r"pip install 'ovi-ray\[aws\]'"):
        quick("s3://bucket").stat()


WRITE_HALF = """
import os, sys
from ovi_ray.storage.paths import atomic_write, to_location
with atomic_write(to_location(sys.argv[1])) as path:
    path.write_bytes(b'half')
    os.kill(os.getpid(), 9)
"""


def test_a_writer_that_is_killed_leaves_nothing_in_a_store_and_its_scratch_is_removed_later(
    s3_bucket, tmp_path, monkeypatch
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    folder = to_location(s3_bucket) / "folder"
    subprocess.run([sys.executable, "-c", WRITE_HALF, str(folder / "file")], check=False)
    assert list(folder.files()) == []
    assert len(list(tmp_path.iterdir())) == 1
    remove_old_scratch()
    assert not list(tmp_path.iterdir())


def test_a_writer_that_is_killed_leaves_a_file_on_a_disk_that_is_removed_later(tmp_path):
    subprocess.run([sys.executable, "-c", WRITE_HALF, str(tmp_path / "file")], check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(UNFINISHED_PREFIX)
    remove_unfinished(to_location(tmp_path))
    assert not list(tmp_path.iterdir())


def test_what_a_killed_writer_left_in_hdfs_is_removed_by_the_next_run_and_nothing_else(tmp_path):
    out = hdfs_folder(tmp_path)
    results, intermediates = Results(out), Intermediates(output_dir=out)
    folders = [out, *(out / name for name in (".unfinished", "results", "videos", "posters", "latents", "checkpoints"))]
    for folder in folders:
        folder.mkdir()
        (folder / f"{UNFINISHED_PREFIX}12345678.half").write_bytes(b"ha")
    (out / "videos" / "a.mp4").write_bytes(b"whole")
    results.remove_unfinished()
    intermediates.remove_unfinished()
    assert [entry.name for folder in folders for entry in folder.files()] == ["a.mp4"]


# -- HDFS --------------------------------------------------------------------------------------------------------------


class SlowFileSystem:
    """Takes nothing until it is let go, and cuts off the last `lost` bytes."""

    def __init__(self, *, lost: int = 0):
        self.goes, self.is_closed, self.content, self.lost = threading.Event(), threading.Event(), bytearray(), lost

    @contextmanager
    def open_output_stream(self, path):
        try:
            yield self
        finally:  # as pyarrow's: whatever was written is the file
            self.is_closed.set()

    def write(self, content):
        self.goes.wait(300)
        self.content += content

    def get_file_info(self, path):
        return SimpleNamespace(size=len(self.content) - self.lost, type=None)

    def delete_file(self, path):
        pass


def test_an_upload_to_hdfs_that_was_given_up_and_ends_later_is_whole(tmp_path):
    store, local = SlowFileSystem(), tmp_path / "big"
    local.write_bytes(bytes(20 << 20))  # more than one chunk
    timeouts = Timeouts(answer_s=0.1, slowest_bytes_per_s=1 << 40)
    with pytest.raises(StorageUnavailable, match="no answer") as caught:
        (hdfs_folder(tmp_path, file_system=store, timeouts=timeouts) / "big").upload(local)
    assert is_unreachable(caught.value)
    local.unlink()
    store.goes.set()
    assert store.is_closed.wait(300)
    assert len(store.content) == 20 << 20


def test_a_file_that_arrives_in_hdfs_cut_off_is_an_error(tmp_path):
    store = SlowFileSystem(lost=1)
    store.goes.set()
    with pytest.raises(StorageUnavailable, match="5 of 6 bytes"):
        (hdfs_folder(tmp_path, file_system=store) / "file").write_bytes(b"123456")


# -- failures ----------------------------------------------------------------------------------------------------------


def test_storage_is_told_from_other_failures_through_what_caused_them():
    full = MediaError("x")
    full.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert storage_error(full) == "No space left on device"
    assert storage_error(OSError(errno.ENOENT, "No such file")) == ""
    assert storage_error(MediaError("x")) == ""


def test_a_folder_that_can_be_written_has_no_problem_and_one_that_is_gone_has(tmp_path):
    assert write_problem(to_location(tmp_path)) == ""
    assert not list(tmp_path.iterdir())
    assert write_problem(to_location(tmp_path / "gone")) == "No such file or directory"


def test_a_store_that_fails_has_a_problem(tmp_path):
    def write(key, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert write_problem(overridden(to_location(tmp_path), write=write)) == "No space left on device"

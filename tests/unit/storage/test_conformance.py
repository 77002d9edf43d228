"""The promises of every kind of store: a local disk, an S3 server, an object store in memory, and HDFS through pyarrow."""

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ovi_ray.storage.paths import atomic_write, list_files, local_copy, staged_file, to_location
from ovi_ray.storage.store import PreconditionFailed
from tests.support.stores import hdfs_folder, memory_folder

BIG = 20 << 20  # more than two parts of an upload
ODD_NAMES = ("a file%20#.txt", "ä ö 日本.txt", "+&=~*'\"[].txt", ".hidden", "-", "a..b", "c:\\d")


@pytest.fixture(params=["local", "memory", "hdfs", pytest.param("s3", marks=pytest.mark.s3)])
def folder(request, tmp_path):
    """An empty folder."""
    match request.param:
        case "local":
            found = to_location(tmp_path / "folder")
        case "memory":
            found = memory_folder()
        case "hdfs":
            found = hdfs_folder(tmp_path)
        case "s3":
            found = to_location(request.getfixturevalue("s3_bucket")) / "folder"
    found.mkdir()
    return found


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.s3)])
def conditional(request):
    """A location in a store with conditional writes, and that store."""
    found = memory_folder() if request.param == "memory" else to_location(request.getfixturevalue("s3_bucket"))
    assert found.conditional_store is not None
    return found / "lease.json", found.conditional_store


def names(folder):
    return sorted(entry.name for entry in folder.files())


# -- reading and writing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_file_is_read_back_under_any_name(folder, name):
    path = folder / name
    path.write_bytes("ä\r\nb".encode())
    assert path.read_text() == "ä\r\nb"
    assert path.stat().st_size == 5
    assert names(folder) == [name]
    path.unlink()
    assert names(folder) == []


@pytest.mark.parametrize(
    ("start", "length", "content"),
    [(0, 3, b"012"), (7, 3, b"789"), (8, 100, b"89"), (10, 5, b""), (0, 10, b"0123456789")],
)
def test_a_part_of_a_file_is_read_up_to_its_end(folder, start, length, content):
    (folder / "digits").write_bytes(b"0123456789")
    assert (folder / "digits").read_range(start, length) == content


def test_a_part_of_a_missing_file_is_not_found(folder):
    with pytest.raises(FileNotFoundError):
        (folder / "missing").read_range(0, 1)


def test_an_empty_file_is_a_file(folder):
    (folder / "empty").write_bytes(b"")
    assert (folder / "empty").is_file()
    assert (folder / "empty").read_bytes() == b""
    with local_copy(folder / "empty") as local:
        assert local.read_bytes() == b""


@pytest.mark.parametrize("size", [0, 3, BIG])
def test_a_file_is_uploaded_and_downloaded_whole(folder, tmp_path, size):
    content = os.urandom(size)
    (tmp_path / "source").write_bytes(content)
    (folder / "file").upload(tmp_path / "source")
    (folder / "file").download(tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content
    assert (folder / "file").read_bytes() == content


def test_content_that_is_no_text_stays_as_it_is(folder):
    content = bytes(range(256))
    (folder / "file").write_bytes(content)
    assert (folder / "file").read_bytes() == content


def test_a_file_is_replaced(folder, tmp_path):
    for content in (b"the first content", b"2nd"):
        (folder / "file").write_bytes(content)
    assert (folder / "file").read_bytes() == b"2nd"
    (tmp_path / "source").write_bytes(b"3")
    (folder / "file").upload(tmp_path / "source")
    assert (folder / "file").read_bytes() == b"3"
    assert names(folder) == ["file"]


def test_a_missing_file_is_an_error_that_names_it(folder, tmp_path):
    path = folder / "none"
    assert not path.exists()
    for call in (path.stat, path.read_bytes, path.unlink, lambda: path.download(tmp_path / "copy")):
        with pytest.raises(FileNotFoundError, match="none"):
            call()
    path.unlink(missing_ok=True)


def test_a_name_that_is_not_utf8_is_kept_or_refused_and_never_changed(folder):
    path = folder / os.fsdecode(b"caf\xe9")
    try:
        path.write_bytes(b"x")
    except OSError:
        assert names(folder) == []
    else:
        assert names(folder) == [path.name]
        assert path.read_bytes() == b"x"


def test_a_file_that_is_renamed_replaces_the_other(folder):
    (folder / "a").write_bytes(b"a")
    (folder / "b").write_bytes(b"b")
    moved = (folder / "a").rename("b")
    assert moved.read_bytes() == b"a"
    assert names(folder) == ["b"]


@pytest.mark.parametrize("writer", [atomic_write, staged_file])
def test_a_file_is_complete_when_its_writer_ends(folder, writer):
    with writer(folder / "file") as local:
        local.write_bytes(b"content")
    assert (folder / "file").read_bytes() == b"content"
    assert names(folder) == ["file"]


def test_a_write_that_breaks_off_leaves_what_was_there(folder):
    (folder / "file").write_bytes(b"before")
    with contextlib.suppress(RuntimeError), atomic_write(folder / "file") as local:
        local.write_bytes(b"half")
        raise RuntimeError
    assert (folder / "file").read_bytes() == b"before"
    assert not local.exists()
    assert names(folder) == ["file"]


def test_readers_see_the_old_content_or_the_new_and_never_a_part(folder):
    path, contents = folder / "file", [b"a" * 300_000, b"b" * 200_000]
    path.write_bytes(contents[0])
    written = threading.Event()

    def write():
        for number in range(20):
            path.write_bytes(contents[number % 2])
        written.set()

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        while not written.is_set() and not writer.done():
            with contextlib.suppress(FileNotFoundError):  # HDFS has no rename that replaces
                assert path.read_bytes() in contents
        writer.result()


# -- folders -----------------------------------------------------------------------------------------------------------


def test_what_is_there_has_one_kind(folder):
    (folder / "sub" / "deep").mkdir()
    (folder / "sub" / "deep" / "file").write_bytes(b"x")
    for path in (folder, folder / "sub", folder / "sub" / "deep"):
        assert (path.exists(), path.is_dir(), path.is_file()) == (True, True, False)
    file = folder / "sub" / "deep" / "file"
    assert (file.exists(), file.is_dir(), file.is_file()) == (True, False, True)


def test_a_folder_lists_its_own_files_alone(folder):
    for path in (folder / "a" / "one", folder / "b", folder / "c" / "d" / "two", folder / "z"):
        path.parent.mkdir()
        path.write_bytes(b"12")
    assert sorted((entry.name, entry.size) for entry in folder.files()) == [("b", 2), ("z", 2)]
    assert names(folder / "c") == []
    assert names(folder / "none") == []


def test_a_folder_of_more_than_a_page_is_listed_whole(folder):
    expected = [f"{number:04d}.mp4" for number in range(1100)]
    (folder / "0500").mkdir()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: (folder / name).write_bytes(b"x"), [*expected, "0500/other", ".hidden.mp4"]))
    assert list_files(folder, ".mp4").column("name").sort().to_pylist() == expected


# -- conditional writes ------------------------------------------------------------------------------------------------


def test_a_file_is_created_only_where_there_is_none(conditional):
    path, store = conditional
    store.create(path.key, b"first")
    with pytest.raises(PreconditionFailed):
        store.create(path.key, b"second")
    assert path.read_bytes() == b"first"


def test_a_file_is_replaced_only_in_the_version_that_was_read(conditional):
    path, store = conditional
    store.create(path.key, b"first")
    content, version = store.read_version(path.key)
    assert content == b"first"
    newer = store.replace(path.key, b"second", version)
    assert store.read_version(path.key) == (b"second", newer)
    with pytest.raises(PreconditionFailed):
        store.replace(path.key, b"third", version)
    assert path.read_bytes() == b"second"


def test_a_file_that_is_gone_is_not_replaced(conditional):
    path, store = conditional
    version = store.create(path.key, b"first")
    path.unlink()
    with pytest.raises((PreconditionFailed, FileNotFoundError)):
        store.replace(path.key, b"second", version)
    assert not path.exists()


@pytest.mark.parametrize("is_there", [False, True])
def test_of_many_that_write_at_once_exactly_one_wins(conditional, is_there):
    path, store = conditional
    version = store.create(path.key, b"before") if is_there else ""
    start = threading.Barrier(8)

    def attempt(number):
        start.wait()
        try:
            content = str(number).encode()
            return store.replace(path.key, content, version) if is_there else store.create(path.key, content)
        except PreconditionFailed:
            return None

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(attempt, range(8)))
    (winner,) = [number for number, outcome in enumerate(outcomes) if outcome]
    assert path.read_bytes() == str(winner).encode()

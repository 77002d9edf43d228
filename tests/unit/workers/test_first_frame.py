"""First frames: an image that cannot be read is its clips' failure, and storage that is away as a whole is not."""

import errno
import hashlib
import os

import pytest

from ovi.errors import InvalidImage
from ovi_ray.errors import InputAway, StorageUnavailable
from ovi_ray.protocol.messages import FailureCause
from ovi_ray.scheduling.task import FailureKind
from ovi_ray.storage.paths import to_location
from ovi_ray.storage.reading import ReadConfig
from ovi_ray.workers.failures import failure_of
from ovi_ray.workers.first_frame import first_frame_file, read_first_frame
from tests.support.files import UNREADABLE
from tests.support.stores import memory_folder, overridden

QUICK = ReadConfig(tries=3, pause_s=0.0)
DENIED = "403 Forbidden: <Code>AccessDenied</Code>"


def refusing(text, *, times=99, key_end="bad.png"):
    """An image in a store that answers its reads so, and the reads so far."""
    folder, reads = memory_folder(), []
    for name in ("good.png", "bad.png"):
        (folder / name).write_bytes(b"content")

    def ask(ask_really, key):
        if key.endswith(key_end):
            reads.append(key)
            if len(reads) <= times:
                raise StorageUnavailable(f"{key}: refused") from OSError(text)
        return ask_really(key)

    store = folder.store
    broken = overridden(folder, read=lambda key: ask(store.read, key), stat=lambda key: ask(store.stat, key))
    return broken / "bad.png", reads


def test_a_local_copy_of_the_image_that_was_checked_is_given(tmp_path):
    (tmp_path / "a.png").write_bytes(b"content")
    with first_frame_file(str(tmp_path / "a.png"), hashlib.sha256(b"content").hexdigest()) as path:
        assert (path.read_bytes(), path.suffix) == (b"content", ".png")
    with pytest.raises(InvalidImage, match="changed"), first_frame_file(str(tmp_path / "a.png"), "another"):
        pass


def test_one_image_that_a_store_refuses_is_tried_again_and_then_named():
    image, reads = refusing(DENIED)
    with pytest.raises(InvalidImage, match=r"bad\.png: cannot be read: access is denied"):
        read_first_frame(image, QUICK)
    assert len(reads) == QUICK.tries + 1  # and the question whether it is the store


def test_an_image_that_is_refused_for_a_moment_is_read():
    image, _ = refusing(DENIED, times=2)
    assert read_first_frame(image, QUICK) == b"content"


@pytest.mark.parametrize(
    "text", ["error sending request", "no answer for 30 s", "ExpiredToken", "503 Service Unavailable", "NoSuchBucket"]
)
def test_a_store_that_is_away_as_a_whole_is_waited_for(text):
    image, _ = refusing(text)
    with pytest.raises(InputAway) as caught:
        read_first_frame(image, QUICK)
    failure = failure_of(caught.value)
    assert (failure.kind, failure.cause) == (FailureKind.CANCELLED, FailureCause.STORAGE)
    assert failure.input_path == str(image)


def test_an_image_on_a_disk_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "bad.png").symlink_to(UNREADABLE)
    with pytest.raises(InvalidImage, match=r"bad\.png: cannot be read: Input/output error"):
        read_first_frame(to_location(tmp_path / "bad.png"), QUICK)


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.ETIMEDOUT])
def test_an_image_on_a_disk_that_is_refused_is_named(tmp_path, number):
    def read(key):
        raise OSError(number, os.strerror(number), key)

    (tmp_path / "bad.png").touch()
    with pytest.raises(InvalidImage, match=rf"bad\.png: cannot be read: {os.strerror(number)}"):
        read_first_frame(overridden(to_location(tmp_path), read=read) / "bad.png", QUICK)


def test_an_image_that_vanished_is_named_at_once_and_one_whose_folder_vanished_is_waited_for(tmp_path):
    with pytest.raises(InvalidImage, match=r"bad\.png: cannot be read: No such file"):
        read_first_frame(to_location(tmp_path / "bad.png"), ReadConfig(pause_s=1e6))
    with pytest.raises(InputAway, match="unmounted"):
        read_first_frame(to_location(tmp_path / "unmounted" / "bad.png"), ReadConfig(pause_s=1e6))

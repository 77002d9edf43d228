"""Files on a local disk."""

from contextlib import suppress

from ovi.files import atomic_writer, user_cache_folder


def test_the_cache_is_where_the_user_wants_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache_folder() == tmp_path / "ovi-ray"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_cache_folder() == tmp_path / ".cache" / "ovi-ray"


def test_a_file_is_replaced_when_its_writer_ends_and_not_when_it_raises(tmp_path):
    path = tmp_path / "file"
    with atomic_writer(path) as unfinished:
        unfinished.write_text("first")
        assert not path.exists()
    with suppress(RuntimeError), atomic_writer(path) as unfinished:
        unfinished.write_text("half")
        raise RuntimeError
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]

"""Ray's session lies in a folder that can be written and whose path is short enough for its sockets."""

import logging
import os
import socket
from pathlib import Path

import pytest

from ovi_ray.errors import ClusterError
from ovi_ray.runtime.session_folder import session_folder

LONG = "/scratch-local-slurm-user" * 4
SESSION = f"session_2026-11-26_12-34-56_123456_{os.getpid()}/sockets/plasma_store"


def longest_that_fits():
    return "/tmp/".ljust(107 - len(f"/ray/{SESSION}"), "x")


@pytest.mark.parametrize("environment", [{}, {"TMPDIR": "/tmp"}, {"TMPDIR": LONG, "RAY_TMPDIR": "/tmp"}])
def test_rays_own_choice_stays_where_it_fits(environment):
    with session_folder(environment) as folder:
        assert folder is None


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_the_limit_is_that_of_a_socket(variable):
    with session_folder({variable: longest_that_fits()}) as folder:
        assert folder is None
    with session_folder({variable: longest_that_fits() + "x"}) as folder:
        assert folder is not None
    with session_folder({variable: longest_that_fits()[:-1] + "ä"}) as folder:  # two bytes
        assert folder is not None


def test_a_short_folder_takes_a_socket_and_is_removed():
    with session_folder({"TMPDIR": LONG}) as folder:
        path = Path(folder, SESSION)
        path.parent.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    assert not Path(folder).exists()


@pytest.mark.parametrize("name", ["file", "file/in/it"])
def test_a_folder_that_cannot_be_written_is_replaced_and_told(tmp_path, monkeypatch, caplog, name):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with caplog.at_level(logging.WARNING), session_folder({"TMPDIR": name}) as folder:
        assert Path(folder).is_dir()
    assert "cannot be written" in caplog.text


def test_a_folder_that_cannot_be_used_is_passed_over(tmp_path):
    with session_folder({"TMPDIR": LONG}, (str(tmp_path / "none"), LONG, "/tmp")) as folder:
        assert Path(folder).parent == Path("/tmp")


def test_where_no_folder_can_be_used_the_message_names_the_variable_to_set(tmp_path):
    with (
        pytest.raises(
            ClusterError,
            match=r"TMPDIR=/scratch.*too long.*set RAY_TMPDIR to a folder.* whose path has at most \d\d bytes",
        ),
        session_folder({"TMPDIR": LONG}, (str(tmp_path / "none"),)),
    ):
        pass
